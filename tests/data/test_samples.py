"""Samples and their masks: cheap where nothing is missing, and right where something is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyfed.data.columns import Column, IndirectColumn, LoadedColumn, TensorColumn
from polyfed.data.masks import Masks
from polyfed.data.samples import Samples, Table, concatenate

ROWS = 6
GAP = torch.tensor([True, True, False, True, False, True])
often = settings(deadline=None, max_examples=40)


def table(present: Mapping[str, Tensor] | None = None, labelled: Mapping[str, Tensor] | None = None) -> Table:
    """Rows 0 to 5: ``image`` is 10 + row, ``audio`` 20 + row, ``digit`` 30 + row, ``age`` 40 + row."""
    rows = torch.arange(ROWS)
    return Table(
        {"image": TensorColumn(10.0 + rows), "audio": TensorColumn(20.0 + rows)},
        {"digit": TensorColumn(30 + rows), "age": TensorColumn(40.0 + rows)},
        present=present or {},
        labelled=labelled or {},
    )


def lists(values: Mapping[str, Tensor]) -> dict[str, list[float]]:
    return {name: value.tolist() for name, value in values.items()}


def test_what_is_missing_in_a_batch_is_masked_and_zero() -> None:
    samples = table({"image": GAP}, {"age": ~GAP}).everything()
    batch = samples.batch(torch.tensor([4, 1, 2]))
    assert lists(batch.inputs) == {"audio": [24, 21, 22], "image": [0, 11, 0]}
    assert lists(batch.present) == {"audio": [True, True, True], "image": [False, True, False]}
    assert lists(batch.targets) == {"age": [44, 0, 42], "digit": [34, 31, 32]}
    assert lists(batch.labelled) == {"age": [True, False, True], "digit": [True, True, True]}


def test_a_batch_has_the_modalities_asked_for_that_are_held() -> None:
    samples = table({"image": GAP}).everything().only(["audio"], ["digit"])
    batch = samples.batch(modalities=frozenset({"audio", "image"}))
    assert lists(batch.inputs) == {"audio": [20, 21, 22, 23, 24, 25]}
    assert list(batch.targets) == ["digit"]
    assert samples.batch(modalities=()).inputs == {}


def test_writing_into_the_masks_of_a_batch_changes_no_samples() -> None:
    samples = table({"image": GAP}).everything()
    for mask in samples.batch(torch.arange(ROWS)).present.values():
        mask[:] = False
    assert lists(samples.present) == {"audio": [True] * ROWS, "image": GAP.tolist()}
    assert samples.batch(torch.tensor([0])).present["audio"].tolist() == [True]


masks = st.lists(st.booleans(), min_size=ROWS, max_size=ROWS).map(torch.tensor)
places = st.lists(st.integers(0, ROWS - 1), max_size=8).map(lambda found: torch.tensor(found, dtype=torch.int64))


@often
@given(masks, masks, places, st.integers(0, ROWS), st.integers(0, ROWS))
def test_positions_and_spans_choose_rows_and_masks_alike(
    image: Tensor, age: Tensor, chosen: Tensor, start: int, stop: int
) -> None:
    samples = table({"image": image}, {"age": age}).everything()
    start, stop = min(start, stop), max(start, stop)
    for found, rows in ((samples.take(chosen), chosen), (samples.span(start, stop), torch.arange(start, stop))):
        assert found.rows.tolist() == rows.tolist()
        assert lists(found.present) == {"audio": [True] * len(rows), "image": image[rows].tolist()}
        assert lists(found.labelled) == {"age": age[rows].tolist(), "digit": [True] * len(rows)}
        batch = found.batch()
        assert batch.inputs["image"].tolist() == torch.where(image, 10.0 + torch.arange(ROWS), 0.0)[rows].tolist()
        assert batch.present["image"].tolist() == image[rows].tolist()


@often
@given(masks, masks, st.sets(st.sampled_from(["image", "audio", "video"])))
def test_holding_keeps_the_samples_with_one_of_the_modalities(image: Tensor, audio: Tensor, names: set[str]) -> None:
    samples = table({"image": image, "audio": audio}).everything()
    held = torch.zeros(ROWS, dtype=torch.bool)
    for name, mask in (("image", image), ("audio", audio)):
        held |= mask if name in names else torch.zeros(ROWS, dtype=torch.bool)
    assert samples.holding(names).rows.tolist() == torch.nonzero(held).flatten().tolist()


def test_nothing_is_chosen_where_all_samples_have_a_modality() -> None:
    samples = table({"image": GAP}).everything()
    assert samples.holding(["image", "audio"]) is samples
    assert samples.holding(["audio", "video"]) is samples


def test_modalities_are_taken_away_where_a_mask_says_so() -> None:
    samples = table({"image": GAP}).everything()
    fewer = samples.masked({"image": torch.tensor([False, True] * 3), "audio": ~GAP, "video": GAP})
    assert lists(fewer.present) == {
        "audio": (~GAP).tolist(),
        "image": [False, True, False, True, False, True],
    }
    assert fewer.batch().inputs["audio"].tolist() == [0, 0, 22, 0, 24, 0]
    assert samples.present["audio"].all()


def test_masks_put_in_by_hand_count() -> None:
    """What is known of the old masks must not outlive them."""
    samples = replace(table().everything(), present={"image": GAP, "audio": ~GAP})
    assert samples.modalities == ("audio", "image")
    assert samples.holding(["image"]).rows.tolist() == [0, 1, 3, 5]
    assert samples.batch(torch.tensor([2, 3])).inputs["image"].tolist() == [0, 13]
    assert samples.take(torch.tensor([2])).present["image"].tolist() == [False]


def test_only_what_is_false_somewhere_is_held() -> None:
    everything = torch.ones(ROWS, dtype=torch.bool)
    found = Masks.of({"image": GAP, "audio": everything}, ROWS)
    assert (found.names, list(found.gaps)) == (("audio", "image"), ["image"])
    assert (list(found), len(found), "audio" in found, "video" in found) == (["audio", "image"], 2, True, False)
    assert found["audio"].tolist() == [True] * ROWS
    assert Masks.of(found, ROWS) is found
    for wrong in (lambda: found["video"], lambda: found.only(["video"])):
        with pytest.raises(KeyError, match="video"):
            wrong()


def test_joined_samples_lack_what_a_part_does_not_hold() -> None:
    samples = table({"image": GAP}).everything()
    one, other = samples.span(0, 3), samples.span(3, 5).only(["image"], ["digit"])
    both = concatenate([one, other])
    assert both.rows.tolist() == [0, 1, 2, 3, 4]
    assert lists(both.present) == {"audio": [True] * 3 + [False] * 2, "image": GAP[:5].tolist()}
    assert lists(both.labelled) == {"age": [True] * 3 + [False] * 2, "digit": [True] * 5}
    with pytest.raises(ValueError, match="different tables"):
        concatenate([one, table().everything()])


def test_samples_are_resident_when_every_column_they_offer_is() -> None:
    loaded = LoadedColumn(lambda row: torch.tensor(float(row)), ROWS, ())
    held = TensorColumn(torch.zeros(ROWS))

    def samples(image: Column, age: Column) -> Samples:
        return Table({"image": image, "audio": held}, {"age": age, "digit": held}).everything()

    order = torch.arange(ROWS)
    assert samples(held, IndirectColumn(held, order)).resident
    assert not samples(IndirectColumn(loaded, order), held).resident
    assert not samples(held, loaded).resident
    assert samples(loaded, loaded).only(["audio"], ["digit"]).resident
