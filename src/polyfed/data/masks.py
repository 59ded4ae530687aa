"""Which samples have which modality, or a target of which task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor


class Masks(Mapping[str, Tensor]):
    """Masks (samples,) bool by name, in sorted order.

    Only those in ``gaps`` are held; every other name is there in all samples, and its mask is made when it is asked
    for. A mask in ``gaps`` may still be true everywhere.
    """

    __slots__ = ("gaps", "names", "samples")

    def __init__(self, names: tuple[str, ...], samples: int, gaps: Mapping[str, Tensor]) -> None:
        self.names, self.samples, self.gaps = names, samples, gaps

    @staticmethod
    def of(masks: Mapping[str, Tensor], samples: int) -> Masks:
        """Return the masks as they are if they are of this class, else hold those that are false somewhere."""
        return masks if isinstance(masks, Masks) else Masks.over(masks, samples, masks)

    @staticmethod
    def over(names: Iterable[str], samples: int, masks: Mapping[str, Tensor]) -> Masks:
        """Return masks of these names: those given, and true everywhere where none is given."""
        chosen = tuple(sorted(names))
        gaps = {name: masks[name] for name in chosen if name in masks and not bool(masks[name].all())}
        return Masks(chosen, samples, gaps)

    def __getitem__(self, name: str) -> Tensor:
        if name in self.gaps:
            return self.gaps[name]
        if name not in self.names:
            raise KeyError(name)
        return torch.ones(self.samples, dtype=torch.bool)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    @property
    def whole(self) -> frozenset[str]:
        """Names whose masks are known to be true everywhere; none where there are no samples."""
        return frozenset(self.names).difference(self.gaps) if self.samples else frozenset()

    def only(self, names: Iterable[str]) -> Masks:
        """Return the masks of fewer names. Raises KeyError for a name that is not there."""
        chosen = tuple(sorted(names))
        for name in chosen:
            if name not in self.names:
                raise KeyError(name)
        return Masks(chosen, self.samples, {name: mask for name, mask in self.gaps.items() if name in chosen})

    def take(self, positions: Tensor) -> Masks:
        """Return the masks of the samples at these positions (int64)."""
        gaps = {name: mask.index_select(0, positions) for name, mask in self.gaps.items()} if self.gaps else self.gaps
        return Masks(self.names, positions.shape[0], gaps)

    def span(self, start: int, stop: int) -> Masks:
        """Return the masks of consecutive samples, as views."""
        gaps = {name: mask[start:stop] for name, mask in self.gaps.items()} if self.gaps else self.gaps
        return Masks(self.names, stop - start, gaps)

    def minus(self, kept: Mapping[str, Tensor]) -> Masks:
        """Return masks that are false, too, where those given (samples,) are; a name that is not held is left out."""
        gaps = dict(self.gaps)
        for name in self.names:
            if name in kept:
                gaps[name] = kept[name] & gaps[name] if name in gaps else kept[name]
        return Masks(self.names, self.samples, gaps)

    def any(self, names: Iterable[str]) -> Tensor | None:
        """Return which samples have one of these names at least, (samples,); None: all of them have."""
        masks = []
        for name in names:
            if name in self.gaps:
                masks.append(self.gaps[name])
            elif name in self.names:
                return None
        held = torch.stack(masks).any(0) if masks else torch.zeros(self.samples, dtype=torch.bool)
        return None if bool(held.all()) else held


def joined(parts: list[Masks]) -> Masks:
    """Join the masks of consecutive samples; a name that a part does not have is false there."""
    names = tuple(sorted({name for part in parts for name in part.names}))
    gaps = {
        name: torch.cat([part[name] if name in part else torch.zeros(part.samples, dtype=torch.bool) for part in parts])
        for name in names
        if any(name in part.gaps or name not in part for part in parts)
    }
    return Masks(names, sum(part.samples for part in parts), gaps)
