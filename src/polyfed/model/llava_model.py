"""A client's LLaVA: the components that train, around a frozen base."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polyfed.data.samples import Batch
from polyfed.data.schema import IGNORED
from polyfed.errors import UserError
from polyfed.model.adapter_names import MIXING
from polyfed.model.adapter_weights import (
    AdaptedLayers,
    AdapterMixing,
    default_weights,
    detached_in,
    given_weights,
    mixed,
)
from polyfed.model.architecture import Mixing, Outputs
from polyfed.model.connectors import Connected, Mixture
from polyfed.model.llava_base import LlavaBase, adapted_layers
from polyfed.model.vision_adapters import Between

IMAGE, TEXT = "image", "text"


class LlavaModel(nn.Module):
    """A client's model. Its parameters are those of the components; the base, with its weights, is beside it.

    Batches hold token ids ``text`` (batch, length) padded on the right and, for samples with a picture, ``image``
    (batch, tokens, features), what the vision tower makes of it, or its pixels (batch, 3, height, width). Predictions
    of a task are logits (batch, length up to the longest sample's, vocabulary). Where a sample's picture is taken away,
    the marks that its text has for it are passed over, as if they were not written. The features ``text`` (batch,
    width) embed the prompt: the last hidden state of the last token before the answer.

    Several text adapters are weighed as the batch says (``weighted``), else by the ``mixing``, else by default
    (``default_weights``).
    """

    stackable = False
    """The base's layers hold the adapters themselves, so other values cannot be put in their place for one call."""

    def __init__(
        self,
        base: LlavaBase,
        twin: Any,
        adapters: Mapping[str, Mapping[str, nn.Parameter]],
        modules: Mapping[str, nn.Module],
        connected: nn.Module,
        answer_tokens: int,
        between: Sequence[Between] = (),
    ) -> None:
        super().__init__()
        for component, module in modules.items():
            put(self, component, module)
        for component, held in adapters.items():
            for name, parameter in held.items():
                put(self, f"{component}.{name}", parameter)
        self._base = base
        self._default = default_weights(adapters)
        self._layers = AdaptedLayers(adapted_layers(twin, adapters))
        self._answer_tokens = answer_tokens
        # In tuples, so that they are no modules of this one: what they hold is registered above, or frozen.
        self._twin = (twin,)
        self._connected = (connected,)
        self._between = tuple(between)

    def _apply(self, change: Callable[[Tensor], Tensor], recurse: bool = True) -> LlavaModel:
        """Move the base along."""
        super()._apply(change, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._twin[0]._apply(change, recurse)
        return self

    def train(self, mode: bool = True) -> LlavaModel:
        """Switch the adapters' dropout, too."""
        super().train(mode)
        self._twin[0].train(mode)
        return self

    def forward(self, batch: Batch) -> Outputs:
        """Predict every position's next token."""
        tokens = trimmed(self._texts(batch), self._base.padding)
        embedded, connected = self.embedded(tokens, batch)
        asked, seen = self._asked(tokens, batch, list(batch.targets)), self._seen_tokens(tokens, batch)
        self._weigh(batch, seen, embedded, asked)
        hidden = self._read(seen, embedded)
        logits: Tensor = self._twin[0].lm_head(hidden)
        tasks = list(batch.labelled) or []
        inner = self._inner(connected) if connected is not None else {}
        mixing = {} if self.training or connected is None else self._mixing(connected, batch)
        predictions = dict.fromkeys(tasks, logits)
        return Outputs({TEXT: last(hidden, asked)}, logits[:, -1], predictions, mixing=mixing, inner=inner)

    def _inner(self, connected: Connected) -> dict[str, Tensor]:
        """Return what objectives take: the connector's parts, and the logits of all routers."""
        found = {name: value for name, value in connected._asdict().items() if value is not None and name != IMAGE}
        for place, layer in enumerate(self._between):
            if layer.made is not None and layer.made.logits is not None:
                found[f"logits.{place}"] = layer.made.logits
        return found

    def _texts(self, batch: Batch) -> Tensor:
        """Return the token ids. Raises UserError where a sample has none: it was taken away."""
        if TEXT not in batch.everywhere and not (TEXT in batch.present and bool(batch.present[TEXT].all())):
            raise UserError(
                f"model llava: there are samples without their {TEXT!r}, in which questions and answers are; choose "
                f"scenario.modalities that leave every sample its {TEXT!r}"
            )
        return batch.inputs[TEXT]

    def _seen_tokens(self, tokens: Tensor, batch: Batch) -> Tensor:
        """Return which tokens (batch, length) are read: not padding, and no marks of pictures that are not here."""
        marks = tokens == self._base.image_token
        if IMAGE in batch.inputs and IMAGE in batch.everywhere:
            marks = torch.zeros_like(marks)
        elif IMAGE in batch.inputs:
            marks = marks & ~batch.present[IMAGE].unsqueeze(1)
        return (tokens != self._base.padding) & ~marks

    def _read(self, seen: Tensor, embedded: Tensor) -> Tensor:
        """Return the language model's last hidden states (batch, length, width) where tokens are ``seen``."""
        places = (seen.long().cumsum(1) - 1).clamp(min=0)
        read = self._twin[0].model(
            inputs_embeds=embedded, attention_mask=seen.long(), position_ids=places, use_cache=False
        )
        hidden: Tensor = read.last_hidden_state
        return hidden

    def _asked(self, tokens: Tensor, batch: Batch, tasks: Collection[str]) -> Tensor:
        """Return how many tokens (batch,) come before the answer; all of them where there is none."""
        lengths = (tokens != self._base.padding).sum(1)
        for task in tasks:
            answered = (batch.targets[task] != IGNORED) & batch.labelled[task].unsqueeze(1)
            first = torch.where(answered.any(1), answered.int().argmax(1), lengths)
            lengths = torch.minimum(lengths, first)
        return lengths

    def _weigh(self, batch: Batch, seen: Tensor, embedded: Tensor, asked: Tensor) -> None:
        """Weigh the text adapters for what follows."""
        weights = given_weights(batch)
        mixing = self._modules.get(MIXING)
        if not weights and isinstance(mixing, AdapterMixing):
            prompts = None
            if not mixing.fixed:
                self._layers.weigh(mixed(torch.ones(())))
                with torch.no_grad():
                    prompts = last(self._read(seen, embedded), asked)
            weights = mixed(mixing.own(prompts))
        self._layers.weigh(weights or self._default, detached_in(batch))

    def _mixing(self, connected: Connected, batch: Batch) -> dict[str, Mixing]:
        """Tell how the router weighs the adapters of tasks, mean over a picture's tokens; 0 without a picture."""
        mixture = self._connected[0]
        if connected.logits is None or not isinstance(mixture, Mixture):
            return {}
        here = batch.present[IMAGE]
        weights = connected.logits.new_zeros(len(here), len(mixture.order), dtype=torch.float32)
        weights[here] = torch.softmax(connected.logits.float(), -1).mean(1)
        return dict.fromkeys(batch.labelled, Mixing(tuple(mixture.order), weights, "adapters"))

    @torch.no_grad()
    def write(self, batch: Batch, task: str) -> list[str]:
        """Return the answer to each sample's instruction: what stands before the answer of its target."""
        tokens = self._texts(batch)
        asked, seen = self._asked(tokens, batch, [task]), self._seen_tokens(tokens, batch)
        embedded, _ = self.embedded(tokens, batch)
        self._weigh(batch, seen, embedded, asked)
        before = torch.arange(tokens.shape[1], device=tokens.device) < asked.unsqueeze(1)
        embedded, seen = on_the_right(embedded, seen & before)
        written = self._twin[0].generate(
            inputs_embeds=embedded, attention_mask=seen.long(), max_new_tokens=self._answer_tokens, do_sample=False
        )
        texts: list[str] = self._base.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def embedded(self, tokens: Tensor, batch: Batch) -> tuple[Tensor, Connected | None]:
        """Return the embeddings (batch, length, width) of tokens (batch, length), pictures in place of their marks."""
        values: Tensor = self._twin[0].get_input_embeddings()(tokens)
        if IMAGE not in batch.inputs:
            return values, None
        here = batch.present[IMAGE]
        features = batch.inputs[IMAGE] if IMAGE in batch.everywhere else batch.inputs[IMAGE][here]
        if not len(features):
            return values, None
        connected: Connected = self._connected[0](self._seen(features))
        marks = (tokens == self._base.image_token) & here.unsqueeze(1)
        return values.masked_scatter(marks.unsqueeze(-1), connected.image.to(values.dtype)), connected

    def _seen(self, images: Tensor) -> Tensor:
        """Return the vision tower's features of pictures that are given as pixels (images, 3, height, width)."""
        if images.dim() == 3:
            return images
        tower = self._twin[0].model.vision_tower
        hidden: Tensor = tower(images.to(tower.dtype), output_hidden_states=True).hidden_states[self._base.layer]
        return (hidden if self._base.whole else hidden[:, 1:]).float()


def last(hidden: Tensor, lengths: Tensor) -> Tensor:
    """Return the last of the first ``lengths`` (batch,) positions of (batch, length, width): (batch, width)."""
    places = (lengths - 1).clamp(min=0).view(-1, 1, 1).expand(-1, -1, hidden.shape[-1])
    return hidden.gather(1, places).squeeze(1)


def on_the_right(embedded: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Move the positions of (batch, length, width) that are ``wanted`` to the right, and say where they are."""
    longest = int(wanted.sum(1).max())
    order = torch.argsort(wanted.long(), dim=1, stable=True)[:, wanted.shape[1] - longest :]
    moved = embedded.gather(1, order.unsqueeze(-1).expand(-1, -1, embedded.shape[-1]))
    seen = wanted.gather(1, order)
    return moved * seen.unsqueeze(-1), seen


def put(place: nn.Module, path: str, held: nn.Module | nn.Parameter) -> None:
    """Register a module or a parameter under a dotted path, with plain modules on the way."""
    *above, name = path.split(".")
    for step in above:
        if step not in place._modules:
            place.add_module(step, nn.Module())
        place = place.get_submodule(step)
    if isinstance(held, nn.Parameter):
        place.register_parameter(name, held)
    else:
        place.add_module(name, held)


def trimmed(tokens: Tensor, padding: int) -> Tensor:
    """Cut off the columns in which every sample is padding; one is left at least."""
    used = (tokens != padding).any(0).nonzero()
    return tokens[:, : int(used.max()) + 1 if len(used) else 1]
