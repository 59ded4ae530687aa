"""A user's own folder of samples."""

from __future__ import annotations

import re
import sys
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from polyfed.data.catalog import DATASETS
from polyfed.data.dataset import Dataset
from polyfed.data.folder import folder
from polyfed.errors import UserError

Edit = Callable[[Path], object]

DESCRIPTION = """
name: wards
modalities:
  photo: {kind: image, shape: [3, 2, 4]}
  sensor: {kind: sensor, shape: [2, 5]}
tasks:
  finding: {kind: classification, labels: [healthy, ill]}
  age: {kind: regression}
"""
SAMPLES = """photo,sensor,finding,age,site,patient,split
a.png,s0.npy,healthy,41.5,north,7,train
,s1.npy,ill,,south,7,train
b.jpg,,,-3,north,9,test
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "dataset.yaml").write_text(DESCRIPTION)
    (tmp_path / "samples.csv").write_text(SAMPLES)
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / "b.jpg")
    for number in range(2):
        np.save(tmp_path / f"s{number}.npy", np.full((2, 5), number + 0.5))
    return tmp_path


def load(place: Path) -> Dataset:
    return folder(None, path=str(place))


def replace(file: str, old: str, new: str) -> Edit:
    def edit(place: Path) -> None:
        text = (place / file).read_text()
        assert old in text
        (place / file).write_text(text.replace(old, new, 1))

    return edit


def description(edit: Callable[[dict[str, dict[str, dict[str, object]]]], object]) -> Edit:
    def change(place: Path) -> None:
        found = yaml.safe_load((place / "dataset.yaml").read_text())
        edit(found)
        (place / "dataset.yaml").write_text(yaml.safe_dump(found))

    return change


def test_values_masks_fields_and_split(place: Path) -> None:
    dataset = load(place)
    assert dataset.test is not None
    assert (dataset.name, len(dataset.train), len(dataset.test)) == ("wards", 2, 1)
    train = dataset.train.everything().batch()
    assert train.inputs["photo"].shape == (2, 3, 2, 4)
    expected = torch.arange(24).view(2, 4, 3).permute(2, 0, 1) / 255
    assert torch.equal(train.inputs["photo"][0], expected)
    assert torch.equal(train.inputs["photo"][1], torch.zeros(3, 2, 4))
    assert train.present["photo"].tolist() == [True, False]
    assert train.inputs["sensor"][1].unique().tolist() == [1.5]
    assert train.inputs["sensor"].dtype == torch.float32
    assert train.targets["finding"].tolist() == [0, 1]
    assert train.targets["age"].tolist() == [41.5, 0]
    assert train.labelled["age"].tolist() == [True, False]
    test = dataset.test.everything().batch()
    assert test.present["sensor"].tolist() == [False]
    assert test.labelled["finding"].tolist() == [False]
    assert test.inputs["photo"].shape == (1, 3, 2, 4)  # a grey JPEG read as RGB
    assert dataset.train.fields["site"].tolist() == [0, 1]
    assert dataset.field_labels == {"site": ("north", "south")}
    assert dataset.train.fields["patient"].tolist() == [7, 7]


def test_without_a_split_column_there_is_no_test_table(place: Path) -> None:
    (place / "samples.csv").write_text("photo,sensor,finding,age\na.png,,ill,\n")
    dataset = DATASETS.build("folder", {"path": str(place)}, None)
    assert dataset.test is None
    assert len(dataset.train) == 1


def test_arrays_stay_on_disk_and_rows_may_be_asked_for_in_any_order(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, size=(5, 1, 3, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "words.npy", np.array([[1, 2], [3, 0], [2, 2], [0, 0], [1, 3]], dtype=np.int32))
    np.save(tmp_path / "classes.npy", np.array([0, 2, 1, 0, 2]))
    np.save(tmp_path / "places.npy", generator.normal(size=(5, 2)))
    (tmp_path / "dataset.yaml").write_text(
        "modalities: {image: {kind: image, shape: [1, 3, 3], array: images.npy},"
        " text: {kind: tokens, shape: [2], vocabulary: 4, array: words.npy}}\n"
        "tasks: {kind: {kind: classification, classes: 3, array: classes.npy},"
        " place: {kind: regression, shape: [2], array: places.npy}}\n"
    )
    (tmp_path / "samples.csv").write_text("client\n" + "0\n1\n0\n1\n0\n")
    dataset = load(tmp_path)
    order = torch.tensor([4, 0, 2, 0])
    batch = dataset.train.everything().batch(order)
    assert torch.equal(batch.inputs["image"], torch.from_numpy(images)[order] / 255)
    assert batch.inputs["text"].tolist() == [[1, 3], [1, 2], [2, 2], [1, 2]]
    assert batch.inputs["text"].dtype == batch.targets["kind"].dtype == torch.int64
    assert batch.targets["kind"].tolist() == [2, 0, 1, 0]
    assert batch.targets["place"].shape == (4, 2)


def sound(path: Path, samples: np.ndarray, rate: int = 8000, channels: int = 1) -> None:
    with wave.open(str(path), "wb") as stream:
        stream.setnchannels(channels)
        stream.setsampwidth(2)
        stream.setframerate(rate)
        stream.writeframes(samples.astype("<i2").tobytes())


def test_sound_becomes_a_wave_or_a_spectrogram(tmp_path: Path) -> None:
    times = np.arange(4000) / 8000
    sound(tmp_path / "tone.wav", 16384 * np.sin(2 * np.pi * 1000 * times))
    sound(tmp_path / "two.wav", np.array([0, 16384, -32768, 8192]), channels=2)
    (tmp_path / "dataset.yaml").write_text(
        "modalities: {spectrum: {kind: audio, shape: [1, 16, 20], seconds: 0.5},"
        " raw: {kind: sensor, shape: [2, 2]}}\ntasks: {loud: {kind: classification, classes: 2}}\n"
    )
    (tmp_path / "samples.csv").write_text("spectrum,raw,loud\ntone.wav,two.wav,1\n")
    batch = load(tmp_path).train.everything().batch()
    spectrum = batch.inputs["spectrum"][0, 0]
    assert spectrum.mean(1).argmax() in (3, 4)  # 1000 Hz is a quarter of the way to 4000 Hz
    assert (spectrum.min(), spectrum.max()) == (0, 1)
    assert batch.inputs["raw"].tolist() == [[[0.0, -1.0], [0.5, 0.25]]]


def test_vector_targets_classes_as_numbers_and_files_as_targets(place: Path) -> None:
    description(lambda found: found["tasks"].update({"box": {"kind": "regression", "shape": [2]}}))(place)
    description(lambda found: found["tasks"].update({"drawing": {"kind": "generation", "shape": [3, 2, 4]}}))(place)
    description(lambda found: found["tasks"].update({"finding": {"kind": "classification", "classes": 4}}))(place)
    (place / "samples.csv").write_text("photo,sensor,finding,age,box,drawing\na.png,,3,,0.25 1,a.png\n,s0.npy,,,,\n")
    batch = load(place).train.everything().batch()
    assert batch.targets["finding"].tolist() == [3, 0]
    assert batch.targets["box"].tolist() == [[0.25, 1], [0, 0]]
    assert torch.equal(batch.targets["drawing"][0], batch.inputs["photo"][0])
    assert batch.labelled["drawing"].tolist() == [True, False]


def array(file: str, values: np.ndarray) -> Edit:
    return lambda place: np.save(place / file, values)


def cut(file: str) -> Edit:
    return lambda place: (place / file).write_bytes((place / file).read_bytes()[:-8])


def both(*edits: Edit) -> Edit:
    return lambda place: [edit(place) for edit in edits]


def picture(mode: str, size: tuple[int, int]) -> Edit:
    return lambda place: Image.new(mode, size).save(place / "a.png")


def silence(samples: int) -> Edit:
    return lambda place: sound(place / "s.wav", np.zeros(samples), channels=2)


def modality(**changes: object) -> Edit:
    return description(lambda found: found["modalities"]["sensor"].update(changes))


def task(**changes: object) -> Edit:
    return description(lambda found: found["tasks"]["finding"].update(changes))


CASES: list[tuple[str, Edit, str]] = [
    ("no description", lambda place: (place / "dataset.yaml").unlink(), r"dataset\.yaml: no such file"),
    ("no rows file", lambda place: (place / "samples.csv").unlink(), r"samples\.csv: no such file"),
    ("empty csv", lambda place: (place / "samples.csv").write_text(""), r"samples\.csv: holds no samples"),
    ("header only", lambda place: (place / "samples.csv").write_text("photo\n"), r"samples\.csv: holds no samples"),
    ("not text", lambda place: (place / "samples.csv").write_bytes(b"\xff\xfe"), r"samples\.csv: cannot be read"),
    (
        "broken yaml",
        lambda place: (place / "dataset.yaml").write_text("a: [1"),
        r"dataset\.yaml, line 1, column 6: not valid YAML",
    ),
    ("not a mapping", lambda place: (place / "dataset.yaml").write_text("3"), r"dataset\.yaml: the file: "),
    (
        "yaml object",
        lambda place: (place / "dataset.yaml").write_text("!!python/name:os.system"),
        "not valid YAML: could not determine a constructor",
    ),
    (
        "unknown key",
        replace("dataset.yaml", "name:", "title:"),
        r"dataset\.yaml: title: unknown key 'title'. Choices: name",
    ),
    ("key twice", replace("dataset.yaml", "sensor:", "photo:"), "the key .photo. is given twice"),
    ("modality and task share a name", replace("dataset.yaml", "age:", "photo:"), "used twice: photo"),
    ("unusable name", replace("dataset.yaml", "age:", "my.age:"), "'my.age' cannot be a name"),
    ("reserved name", replace("dataset.yaml", "age:", "split:"), "'split' cannot be a name"),
    ("unknown kind", modality(kind="smell"), "modalities.sensor.kind: 'smell' is not one of the choices"),
    ("axes", modality(shape=[5]), r"kind sensor needs a shape of 2 numbers, not \[5\]"),
    ("negative size", modality(shape=[2, -5]), r"modalities.sensor.shape.1: -5 .* greater than 0"),
    ("channels of audio", modality(kind="audio", shape=[2, 3, 4]), "kind audio needs a shape"),
    ("vocabulary", modality(vocabulary=3), "'vocabulary' .* belongs to kind tokens"),
    ("no classes", task(labels=None), "needs 'classes'"),
    ("both", task(classes=2), "either 'classes' or 'labels'"),
    ("same labels", task(labels=["ill", "ill"]), "two or more different names"),
    ("target shape", task(shape=[3]), r"a classification task cannot have the shape \[3\]"),
    ("unknown unit", replace("dataset.yaml", "name: wards", "unit: bed"), "unknown field 'bed'.*patient, site"),
    ("undeclared column", replace("dataset.yaml", "name: wards", "fields: [site]"), "unknown column 'patient'"),
    ("field lacking", replace("dataset.yaml", "name: wards", "fields: [ward]"), "unknown field 'ward'"),
    ("column lacking", replace("samples.csv", "sensor", "senser"), r"'sensor' of dataset\.yaml needs a column"),
    ("column twice", replace("samples.csv", "patient", "site"), "used twice: 'site'"),
    ("bad column name", replace("samples.csv", "patient", "the patient"), "column 'the patient' cannot be a name"),
    ("ragged", replace("samples.csv", "7,train", "7,train,x"), r"line 2: has 8 cells, but the header names 7"),
    ("empty field", replace("samples.csv", "south", ""), r"line 3, column 'site': is empty"),
    ("unknown split", replace("samples.csv", "9,test", "9,tset"), r"line 4, column 'split': unknown split 'tset'"),
    ("no training rows", replace("samples.csv", SAMPLES, SAMPLES.replace("train", "test")), "leaves no row"),
    ("nothing in a row", replace("samples.csv", "b.jpg", ""), r"line 4: every modality is missing"),
    ("missing file", replace("samples.csv", "s1.npy", "s9.npy"), "line 3, column 'sensor': there is no file 's9.npy'"),
    ("outside", replace("samples.csv", "s1.npy", "../s1.npy"), r"line 3, column 'sensor': '../s1.npy' lies outside"),
    ("absolute", replace("samples.csv", "s1.npy", sys.executable), "lies outside the folder"),
    ("kind of file", replace("samples.csv", "s1.npy", "samples.csv"), r"unknown kind of file '\.csv'\. Choices: \.npy"),
    ("unknown label", replace("samples.csv", "ill", "sick"), "line 3, .*: unknown label 'sick'. Choices: healthy, ill"),
    (
        "class out of range",
        both(task(labels=None, classes=2), replace("samples.csv", "healthy", "2")),
        "line 2, column 'finding': '2' is not a class. Choices: 0 to 1",
    ),
    ("not a number", replace("samples.csv", "41.5", "old"), r"line 2, column 'age': could not convert"),
    ("NaN target", replace("samples.csv", "41.5", "nan"), r"line 2, column 'age': 'nan' is not finite"),
    ("two numbers", replace("samples.csv", "41.5", "4 5"), r"line 2, column 'age': '4 5' holds 2 numbers"),
    (
        "shape of a file",
        array("s1.npy", np.zeros((2, 6))),
        r"s1.npy: has the shape \[2, 6\], .* says \[2, 5\] .*line 3",
    ),
    ("type of a file", array("s1.npy", np.zeros((2, 5), dtype=complex)), r"s1\.npy: holds values of type complex128"),
    ("byte order", array("s1.npy", np.zeros((2, 5), dtype=">f4")), r"s1\.npy: .* this machine's byte order"),
    ("pickled", array("s1.npy", np.array([[None] * 5] * 2)), r"s1\.npy: is not a whole \.npy array"),
    ("truncated", cut("s1.npy"), r"s1\.npy: is not a whole \.npy array"),
    ("size of an image", picture("RGB", (2, 4)), r"a\.png: has the shape \[3, 4, 2\]"),
    ("deep image", picture("I;16", (4, 2)), r"a\.png: has more than 8 bits"),
    ("not an image", lambda place: (place / "a.png").write_text("no"), r"a\.png: is not a readable image"),
    ("image for a sensor", replace("samples.csv", "s1.npy", "a.png"), r"an image file cannot have the shape \[2, 5\]"),
    (
        "not a sound",
        both(replace("samples.csv", "s1.npy", "s.wav"), lambda place: (place / "s.wav").write_text("no")),
        r"s\.wav: is not a readable \.wav file",
    ),
    ("short sound", both(replace("samples.csv", "s1.npy", "s.wav"), silence(8)), r"s\.wav: has the shape \[2, 4\]"),
    (
        "cut sound",
        both(replace("samples.csv", "s1.npy", "s.wav"), silence(10), cut("s.wav")),
        r"s\.wav: must be a whole",
    ),
    (
        "sound for an image",
        both(replace("samples.csv", "a.png", "s.wav"), silence(8)),
        "a sound file cannot have the shape",
    ),
    ("array and column", modality(array="s0.npy"), "has an 'array' and a column"),
]


@pytest.mark.parametrize(("edit", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_fault_is_named_when_the_folder_is_loaded(place: Path, edit: Edit, message: str) -> None:
    edit(place)
    with pytest.raises(UserError, match=message):
        load(place)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_a_bad_value_is_named_when_its_file_is_read(place: Path, value: float) -> None:
    np.save(place / "s1.npy", np.full((2, 5), value))
    train = load(place).train.everything()
    train.batch(torch.tensor([0]))
    with pytest.raises(UserError, match=r"s1\.npy: holds NaN or an infinite value"):
        train.batch()


def test_an_image_cut_short_is_named_when_it_is_read(place: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size=(2, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(place / "a.png")
    (place / "a.png").write_bytes((place / "a.png").read_bytes()[:50])
    with pytest.raises(UserError, match=r"a\.png: is not a (whole|readable) image"):
        load(place).train.everything().batch()


def test_a_link_out_of_the_folder_is_refused(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.npy"
    np.save(secret, np.zeros((2, 5)))
    (place / "s1.npy").unlink()
    (place / "s1.npy").symlink_to(secret)
    with pytest.raises(UserError, match=r"'s1\.npy' lies outside the folder"):
        load(place)


def arrays(place: Path, values: np.ndarray, classes: np.ndarray) -> None:
    np.save(place / "x.npy", values)
    np.save(place / "y.npy", classes)
    (place / "dataset.yaml").write_text(
        "modalities: {text: {kind: tokens, shape: [2], vocabulary: 4, array: x.npy}}\n"
        "tasks: {kind: {kind: classification, classes: 2, array: y.npy}}\n"
    )
    (place / "samples.csv").write_text("client\n0\n1\n1\n")


@pytest.mark.parametrize(
    ("values", "classes", "message"),
    [
        (np.zeros((4, 2), dtype=int), np.zeros(3, dtype=int), r"x\.npy: has the shape \[4, 2\].* make \[3, 2\]"),
        (np.zeros((3, 2)), np.zeros(3, dtype=int), r"x\.npy: holds values of type float64, not whole numbers"),
        (np.zeros((3, 2), dtype=int), np.array([0, 1, 2]), r"y\.npy, row 2: holds 2 to 2\. Choices: 0 to 1"),
    ],
)
def test_a_faulty_array_is_named(tmp_path: Path, values: np.ndarray, classes: np.ndarray, message: str) -> None:
    arrays(tmp_path, values, classes)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_a_bad_row_of_an_array_is_named_when_it_is_read(tmp_path: Path) -> None:
    arrays(tmp_path, np.array([[0, 1], [3, 4], [1, 1]]), np.zeros(3, dtype=int))
    train = load(tmp_path).train.everything()
    train.batch(torch.tensor([2, 0]))
    with pytest.raises(UserError, match=r"x\.npy, row 1: holds 3 to 4\. Choices: 0 to 3"):
        train.batch(torch.tensor([2, 1, 0]))


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"path: '{tmp_path / 'none'}' is not a folder")):
        load(tmp_path / "none")


def test_without_pillow_the_extra_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UserError, match=r"polyfed\[image\]"):
        load(place)
