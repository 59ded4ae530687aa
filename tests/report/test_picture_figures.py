"""Generated samples in the report: drawn as they are, and only from a file that is sound."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from polyfed.engine.kept_samples import encoded
from polyfed.engine.pictures import CALLED, FILE, LARGEST_SIDE, MOST_BYTES, OVERHEAD, Sampled, Shown
from polyfed.errors import UserError
from polyfed.report.page import write_report
from polyfed.report.picture_figures import heat, picture_cards
from polyfed.report.pictures import LARGEST_FILE, read_pictures
from polyfed.report.plotting import Picture
from polyfed.report.png import png
from polyfed.report.records import load_run

Make = Callable[..., Path]
Head = dict[str, Any]
HOSTILE = '<img src="x" onerror="alert(1)">'


def sampled(task: str = "digit", client: int = 1, form: Any = "image", low: float = 0.0) -> Sampled:
    """Two samples, 2 x 3: all true values are 10, 20 ... 60, those generated 255 less, and one input is missing."""
    values = torch.arange(10, 70, 10, dtype=torch.uint8).view(1, 1, 2, 3).repeat(2, 1, 1, 1)
    colour = torch.arange(36, dtype=torch.uint8).view(2, 3, 2, 3)
    shown = {name: Shown(form, low, 1.0, (True, True)) for name in ("target", "prediction")}
    shown["input.photo"] = Shown("image", 0.0, 1.0, (True, False))
    return Sampled(task, client, shown, {"target": values, "prediction": 255 - values, "input.photo": colour})


def pixels(picture: Picture) -> Image.Image:
    prefix = "data:image/png;base64,"
    assert picture.address.startswith(prefix)
    return Image.open(io.BytesIO(base64.b64decode(picture.address.removeprefix(prefix))))


@given(st.integers(1, 2), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_another_reader_reads_the_same_values(kind: int, height: int, width: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 256, (2 * kind - 1, height, width), generator=draw, dtype=torch.uint8)
    read = Image.open(io.BytesIO(png(values)))
    assert read.size == (width, height)
    assert read.tobytes() == values.permute(1, 2, 0).contiguous().numpy().tobytes()


def test_the_heat_of_sound_gets_brighter() -> None:
    lightness = [sum(heat()[start : start + 3]) for start in range(0, 768, 3)]
    assert len(heat()) == 768
    assert lightness[0] < 10
    assert lightness[-1] > 600
    assert all(later >= earlier - 2 for earlier, later in pairwise(lightness))


def test_strips_stand_below_each_other(make_run: Make, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / FILE).write_bytes(encoded(CALLED, [sampled(), sampled("voice", 2, "audio", -80.0)], 5))
    first, second = picture_cards(load_run(folder))
    assert (first.title, second.title) == ("digit", "voice")
    (gallery,) = first.galleries
    assert gallery.title == "client 1"
    assert gallery.text.startswith("audio, accuracy ")
    given_, true, made = gallery.strips
    assert [strip.label for strip in gallery.strips] == ["photo", "true", "generated"]
    assert [strip.scale for strip in gallery.strips] == ["", "", ""]
    assert (true.pictures[1].words, given_.pictures[1].address) == ("true, sample 2", "")
    assert pixels(true.pictures[0]).tobytes() == bytes([10, 20, 30, 40, 50, 60])
    assert pixels(made.pictures[0]).tobytes() == bytes([245, 235, 225, 215, 205, 195])
    assert pixels(given_.pictures[0]).getpixel((0, 0)) == (0, 6, 12)
    assert "low" not in first.note
    sound = second.galleries[0].strips[1]
    assert sound.scale == "-80 to 1"
    # low frequencies, the first row, are at the bottom
    assert pixels(sound.pictures[0]).tobytes() == bytes([40, 50, 60, 10, 20, 30])
    assert pixels(sound.pictures[0]).convert("RGB").getpixel((0, 0)) == tuple(heat()[120:123])
    assert "frequency upwards" in second.note


def test_the_page_holds_them_and_stays_small(make_run: Make, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    without = write_report(folder).stat().st_size
    assert "Generated samples" not in (folder / "report.html").read_text()
    draw = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (4, 3, LARGEST_SIDE, LARGEST_SIDE), generator=draw, dtype=torch.uint8)
    shown = {name: Shown("image", 0.0, 1.0, (True,) * 4) for name in ("target", "prediction")}
    size = 2 * (noise.nbytes + 4 * OVERHEAD)
    several = [Sampled(HOSTILE, 0, shown, {name: noise.clone() for name in shown}) for _ in range(MOST_BYTES // size)]
    (folder / FILE).write_bytes(encoded(CALLED, several, 5))
    page = write_report(folder).read_text()
    assert len(page) - without < 1_000_000
    assert "Generated samples" in page
    assert HOSTILE not in page
    assert len(
        re.findall(r'<img src="data:image/png;base64,[A-Za-z0-9+/=]+" alt="[a-z]+, sample \d">', page)
    ) == 8 * len(several)


def test_without_the_file_there_is_no_card(make_run: Make, tmp_path: Path) -> None:
    assert picture_cards(load_run(make_run(tmp_path / "run"))) == []


# ------------------------------------------------------------------------------------------------ hostile files


def written(change: Callable[[Head, dict[str, Tensor]], object]) -> bytes:
    """Return a sound file with something changed."""
    one = sampled()
    tensors = {f"0.{name}": value for name, value in one.values.items()}
    shown = {name: {**vars(how)} for name, how in one.shown.items()}
    head: Head = {"format": 1, "round": 5, "entries": [{"task": one.task, "client": one.client, "shown": shown}]}
    change(head, tensors)
    return save(tensors, {"pictures": json.dumps(head)})


def shown_of(head: Head, name: str = "target") -> dict[str, Any]:
    found: dict[str, Any] = head["entries"][0]["shown"][name]
    return found


BROKEN: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not safetensors"),
    "text": (b"hello, I am a picture", "not safetensors"),
    "huge": (bytes(LARGEST_FILE + 1), "more than 1,200,000"),
    "no head": (save({"a": torch.zeros(1)}, {}), "Invalid JSON"),
    "deep head": (save({"a": torch.zeros(1)}, {"pictures": "[" * 100_000}), "Invalid JSON"),
    "format": (written(lambda head, _: head.update(format=2)), "format: Input should be 1"),
    "form": (written(lambda head, _: shown_of(head).update(form="script")), "form: Input should be 'image' or 'audio'"),
    "scale": (written(lambda head, _: shown_of(head).update(low=float("nan"))), "low: Input should be a finite number"),
    "name": (written(lambda head, _: head["entries"][0]["shown"].update(other=shown_of(head))), "pattern"),
    "crowd": (written(lambda head, _: shown_of(head).update(present=[True] * 5)), "at most 4 items"),
    "absent": (written(lambda head, _: head["entries"][0]["shown"].pop("target")), "entry 0 has no target"),
    "tensor": (written(lambda _, held: held.pop("0.target")), "the tensor 0.target is missing"),
    "kind": (written(lambda _, held: held.update({"0.target": torch.zeros(2, 1, 2, 3)})), "torch.float32"),
    "shape": (written(lambda _, held: held.update({"0.target": torch.zeros(2, 6, dtype=torch.uint8)})), r"\(2, 6\)"),
    "empty": (written(lambda _, held: held.update({"0.target": torch.zeros(2, 1, 0, 3, dtype=torch.uint8)})), "sides"),
    "large": (
        written(lambda _, held: held.update({"0.target": torch.zeros(2, 1, 2, LARGEST_SIDE + 1, dtype=torch.uint8)})),
        "sides of 1 to 64",
    ),
    "samples": (written(lambda head, _: shown_of(head).update(present=[True])), r"not torch.uint8 \(1, 1 or 3"),
    "many": (encoded(CALLED, [sampled() for _ in range(101)], 5), "more than 600,000 bytes"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_not_sound_is_refused_by_name(name: str, tmp_path: Path) -> None:
    content, message = BROKEN[name]
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_pictures(tmp_path)
    assert str(tmp_path / FILE) in str(caught.value)


@given(data=st.data())
def test_damage_anywhere_is_refused_or_harmless(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(encoded(CALLED, [sampled()], 5))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("damaged")
    (folder / FILE).write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    try:
        found = read_pictures(folder)
    except UserError:
        return
    assert all(value.dtype == torch.uint8 for one in found for value in one.values.values())
