"""Public datasets as samples for instruction tuning: small files of the public layouts, and the real small sets."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import re
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from polyfed import UserError
from polyfed.data.boxes import box_text, overlap, parse_box
from polyfed.data.check import check
from polyfed.data.conversation_files import check_pictures, read_conversations
from polyfed.data.conversations import Conversation
from polyfed.data.convert.kinds import KINDS, Made, Options, convert

CAPTION = "<image>\nProvide a one-sentence caption for the provided image."
SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
WHERE = "<image>\nPlease provide the bounding box coordinate of the region this sentence describes: "


def dump(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path


def picture(path: Path, width: int = 8, height: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(path)


def coco(root: Path) -> Path:
    """Two pictures with captions to train on, one to validate on; names and keys as in the files of 2017."""
    for part, numbers in (("train2017", (9, 25)), ("val2017", (139,))):
        images = [{"id": n, "file_name": f"{n:012}.jpg", "width": 8, "height": 4, "license": 1} for n in numbers]
        notes = [
            {"id": 10 * n + i, "image_id": n, "caption": f" Caption {i} of {n}. "} for i in range(2) for n in numbers
        ]
        content = {"info": {}, "licenses": [], "images": images, "annotations": notes}
        dump(root / "annotations" / f"captions_{part}.json", content)
        for n in numbers:
            picture(root / part / f"{n:012}.jpg")
    return root


def gqa(root: Path) -> Path:
    """Three parts with answers and one without, which is left out."""
    for part in ("train", "val", "testdev", "test"):
        question = {"imageId": f"n{part}", "question": f"Is it {part}?", "isBalanced": True, "types": {}, "groups": {}}
        answer = {} if part == "test" else {"answer": "yes", "fullAnswer": "Yes, it is."}
        dump(root / "questions" / f"{part}_balanced_questions.json", {f"0{part}": {**question, **answer}})
        picture(root / "images" / f"n{part}.jpg")
    return root


def refcoco(root: Path) -> Path:
    """A picture of 200 × 100 pixels with two objects; the second one's box is beyond the picture's edges."""
    name = "COCO_train2014_000000000072.jpg"
    images = [{"id": 72, "file_name": name, "width": 200, "height": 100}]
    notes = [
        {"id": 1, "image_id": 72, "bbox": [20.0, 10.0, 100.0, 40.0], "category_id": 25},
        {"id": 2, "image_id": 72, "bbox": [150, -1, 51, 102], "category_id": 25},
    ]
    dump(root / "instances.json", {"images": images, "annotations": notes, "categories": []})
    refs = [reference(11, 1, "train", "giraffe on left", "the left one"), reference(12, 2, "testB", "right")]
    dump(root / "refs(unc).json", refs)
    picture(root / "train2014" / name, 200, 100)
    return root


def reference(number: int, annotation: int, split: str, *texts: str) -> dict[str, Any]:
    sentences = [{"sent_id": 10 * number + i, "sent": text, "raw": text, "tokens": []} for i, text in enumerate(texts)]
    known = {"image_id": 72, "category_id": 25, "sent_ids": [each["sent_id"] for each in sentences]}
    return {"ref_id": number, "ann_id": annotation, "split": split, "sentences": sentences, **known}


def scienceqa(root: Path) -> Path:
    """A problem with a picture and a hint, one without, and one in no split."""
    rest = {"task": "closed choice", "grade": "grade2", "subject": "social science", "lecture": "", "solution": ""}
    first = {"question": "Which?", "choices": ["this", "that"], "answer": 1, "hint": "Look.", "image": "image.png"}
    second = {"question": "Who?", "choices": ["he", "she", "it"], "answer": 0, "hint": "", "image": None}
    problems = {"1": {**first, **rest}, "2": {**second, **rest}, "3": {**second, **rest}}
    dump(root / "problems.json", problems)
    dump(root / "pid_splits.json", {"train": ["1"], "val": [], "test": ["2"], "minival": [], "trainval": ["1"]})
    picture(root / "images/train/1/image.png")
    return root


def ocr_vqa(root: Path) -> Path:
    """Two covers, one of which was stored as .jpg."""
    books = {}
    for split, (key, ending) in enumerate((("076", ".jpg"), ("B00", ".gif")), start=1):
        asked = {"questions": ["Who wrote this book?", "Is this a comic?"], "answers": ["Ann Lee", "No"]}
        books[key] = {"imageURL": f"http://example.org/I/61{ending}", "title": "T", "split": split, **asked}
        picture(root / "images" / f"{key}.jpg")
    dump(root / "dataset.json", books)
    return root


def coco_mini(root: Path) -> Path:
    """Two photographs: one with boxes (a dog, a crowd of people with one more, two cups), one without."""
    photos = []
    with tarfile.open(root / "images.tar", "w") as archive:
        for number, split in ((1, "train"), (2, "val")):
            held = io.BytesIO()
            Image.new("RGB", (8, 4)).save(held, "JPEG")
            member = tarfile.TarInfo(f"{number}.jpg")
            member.size = len(held.getvalue())
            archive.addfile(member, io.BytesIO(held.getvalue()))
            photo = {"id": number, "file": f"{number}.jpg", "split": split, "size": [8, 4], "license": 4}
            photos.append({**photo, "captions": ["one", " two "], "boxes": None, "aokvqa": []})
    photos[0]["boxes"] = [
        ["dog", 0.0, 0.0, 0.5, 1.0, 0],
        ["person", 0.5, 0.0, 1.0, 1.0, 1],
        ["person", 0.5, 0.0, 1.0, 1.0, 0],
        ["cup", 0.1, 0.1, 0.2, 0.2, 0],
        ["cup", 0.3, 0.1, 0.4, 0.2, 0],
        ["fly", 0.501, 0.5, 0.502, 0.6, 0],
    ]
    answers = ["run", "walk", "walk", *["sit"] * 2, *"abcde"]
    photos[1]["aokvqa"] = [{"question_id": "x1", "question": "What does he do?", "direct_answers": answers}]
    header = {
        "licenses": {"4": ["Attribution", "http://example.org"]},
        "categories": ["person", "dog", "cup", "fly", "sofa", "cow"],
    }
    lines = "\n".join(json.dumps(line) for line in (header, *photos))
    (root / "annotations.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return root


def scienceqa_text(root: Path) -> Path:
    asked = {"id": 4, "split": "test", "prompt": "Which?\nA. this\nB. that", "choices": ["this", "that"], "answer": 1}
    lines = (json.dumps({**asked, "has_image": False}), json.dumps({**asked, "id": 5, "has_image": True}))
    (root / "scienceqa_text.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    return root


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "coco-captions": coco,
    "gqa": gqa,
    "refcoco": refcoco,
    "scienceqa": scienceqa,
    "ocr-vqa": ocr_vqa,
    "coco-mini": coco_mini,
    "scienceqa-text": scienceqa_text,
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "made" / "set"


def read(made: Made) -> list[Conversation]:
    found = list(read_conversations(made.file, made.images))
    if made.images is not None:
        check_pictures(made.file, found, made.images)
    assert Counter((each.task, each.split) for each in found) == made.counts
    assert len({each.id for each in found}) == len(found)
    return found


def asked(found: Conversation) -> tuple[str, str | None, str, str]:
    """Return id, split, question and answer."""
    return found.id, found.split, found.turns[0].text, found.turns[1].text


def test_every_kind_has_a_small_layout() -> None:
    assert set(LAYOUTS) == set(KINDS)


# --------------------------------------------------------------------------------------------------- what is made of it


def test_coco_captions(source: Path, target: Path) -> None:
    found = read(convert("coco-captions", coco(source), target))
    assert [asked(each) for each in found] == [
        ("9-caption-0", "train", CAPTION, "Caption 0 of 9."),
        ("9-caption-1", "train", CAPTION, "Caption 1 of 9."),
        ("25-caption-0", "train", CAPTION, "Caption 0 of 25."),
        ("25-caption-1", "train", CAPTION, "Caption 1 of 25."),
        ("139-caption-0", "val", CAPTION, "Caption 0 of 139."),
    ]
    assert found[0].image == "train2017/000000000009.jpg"
    assert [each.answers for each in found] == [(), (), (), (), ("Caption 0 of 139.", "Caption 1 of 139.")]


def test_gqa(source: Path, target: Path) -> None:
    found = read(convert("gqa", gqa(source), target, Options(task="gqa")))
    assert sorted(asked(each) for each in found) == [
        ("0testdev", "test", "<image>\nIs it testdev?" + SHORT, "yes"),
        ("0train", "train", "<image>\nIs it train?" + SHORT, "yes"),
        ("0val", "val", "<image>\nIs it val?" + SHORT, "yes"),
    ]
    assert {each.task for each in found} == {"gqa"}


def test_refcoco_by_hand(source: Path, target: Path) -> None:
    found = read(convert("refcoco", refcoco(source), target))
    assert [asked(each) for each in found] == [
        ("train-11-110", "train", WHERE + "giraffe on left", "[0.10, 0.30, 0.60, 0.50]"),
        ("train-11-111", "train", WHERE + "the left one", "[0.10, 0.30, 0.60, 0.50]"),
        ("testB-12-120", "test", WHERE + "right", "[0.75, 0.25, 1.00, 0.75]"),
    ]
    assert [each.box for each in found] == [(0.1, 0.3, 0.6, 0.5), (0.1, 0.3, 0.6, 0.5), (0.75, 0.25, 1.0, 0.75)]


def test_scienceqa(source: Path, target: Path) -> None:
    made = convert("scienceqa", scienceqa(source), target)
    first, second = read(made)
    question = "<image>\nContext: Look.\nWhich?\nA. this\nB. that" + LETTER
    assert asked(first) == ("1", "train", question, "B")
    assert (first.image, first.choices) == ("images/train/1/image.png", ("this", "that"))
    assert asked(second) == ("2", "test", "Who?\nA. he\nB. she\nC. it" + LETTER, "A")
    assert second.image is None
    assert made.left_out == {"the problem is in no official split": 1}


def test_ocr_vqa(source: Path, target: Path) -> None:
    found = read(convert("ocr-vqa", ocr_vqa(source), target))
    assert [asked(each) for each in found] == [
        ("076-0", "train", "<image>\nWho wrote this book?" + SHORT, "Ann Lee"),
        ("076-1", "train", "<image>\nIs this a comic?" + SHORT, "No"),
        ("B00-0", "val", "<image>\nWho wrote this book?" + SHORT, "Ann Lee"),
        ("B00-1", "val", "<image>\nIs this a comic?" + SHORT, "No"),
    ]
    assert found[2].image == "images/B00.jpg"


@pytest.mark.parametrize("kind", ["gqa", "ocr-vqa"])
def test_questions_without_an_answer_are_left_out(kind: str, source: Path, target: Path) -> None:
    LAYOUTS[kind](source)
    path = {"gqa": source / "questions/val_balanced_questions.json", "ocr-vqa": source / "dataset.json"}[kind]
    path.write_text(path.read_text().replace('"yes"', '" "').replace('"Ann Lee"', '""'))
    made = convert(kind, source, target)
    assert len(read(made)) == 2
    assert made.left_out == {"the answer is blank": {"gqa": 1, "ocr-vqa": 2}[kind]}


def test_coco_mini(source: Path, target: Path) -> None:
    made = convert("coco-mini", coco_mini(source), target)
    found = {each.id: each for each in read(made)}
    answers = {name: each.turns[1].text for name, each in found.items()}
    absent = {name: answers.pop(name) for name in list(answers) if name[11:] in ("sofa", "cow")}
    assert answers == {
        "1-caption-0": "one",
        "1-caption-1": "two",
        "1-presence-dog": "yes",
        "1-count-dog": "1",
        "1-presence-cup": "yes",
        "1-count-cup": "2",
        "1-presence-fly": "yes",
        "1-count-fly": "1",
        "1-where-dog": "[0.00, 0.25, 0.50, 0.75]",  # 8 × 4 pixels: 2 of padding above and below
        "2-caption-0": "one",
        "2-aokvqa-x1": "walk",  # said by two, as was "sit", but earlier
    }
    assert absent == {"1-presence-sofa": "no", "1-presence-cow": "no"}
    assert made.images == target / "images"
    assert made.left_out == {"the box is too small to be written with two decimals": 1}
    assert len(found["2-aokvqa-x1"].answers) == 10
    assert found["2-caption-0"].answers == ("one", "two")
    assert found["1-where-dog"].instruction.endswith(": the dog")
    (credit, _) = json.loads((target / "credits.json").read_text())
    assert (credit["file"], credit["licence"]) == ("1.jpg", "Attribution")


def test_scienceqa_text(source: Path, target: Path) -> None:
    made = convert("scienceqa-text", scienceqa_text(source), target)
    (found,) = read(made)
    assert asked(found) == ("4", "test", "Which?\nA. this\nB. that" + LETTER, "B")
    assert (found.task, made.images) == ("text", None)
    assert sum(made.left_out.values()) == 1


# -------------------------------------------------------------------------------------------------------------- options


def test_our_own_split_keeps_the_samples_of_a_picture_together(source: Path, tmp_path: Path) -> None:
    content: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    for n in range(200):
        content["images"].append({"id": n, "file_name": f"{n}.jpg"})
        content["annotations"] += [{"id": n, "image_id": n, "caption": f"{i}"} for i in range(3)]
        (source / f"{n}.jpg").touch()
    dump(source / "captions_mine.json", content)  # neither train nor val
    parts = []
    for i, seed in enumerate((0, 0, 1)):
        made = convert("coco-captions", source, tmp_path / f"made{i}", Options(seed=seed))
        found = list(read_conversations(made.file))
        of = {each.image: each.split for each in found}
        assert len(found) == sum(1 if split == "test" else 3 for split in of.values())
        assert 20 < sum(split == "test" for split in of.values()) < 60  # a fifth of 200, give or take
        parts.append(of)
    assert parts[0] == parts[1] != parts[2]


def test_a_share_replaces_the_official_splits(source: Path, target: Path) -> None:
    made = convert("coco-captions", coco(source), target, Options(test_share=0.0))
    assert made.counts == {("caption", "train"): 6}


def test_pictures_elsewhere_and_copied(source: Path, target: Path, tmp_path: Path) -> None:
    refcoco(source)
    (source / "train2014").rename(tmp_path / "pictures")
    with pytest.raises(UserError, match=r"line 2: there is no picture 'train2014/COCO_train2014_.*--images names"):
        convert("refcoco", source, target)
    assert not target.parent.exists() or not list(target.parent.iterdir())
    made = convert("refcoco", source, target, Options(images=tmp_path / "pictures", copy_images=True))
    assert made.images == target / "images"
    assert len(read(made)) == 3


def test_missing_pictures_can_be_skipped(source: Path, target: Path) -> None:
    ocr_vqa(source)
    (source / "images/076.jpg").unlink()
    made = convert("ocr-vqa", source, target, Options(skip_missing=True))
    assert made.counts == {("vqa", "val"): 2}
    assert made.left_out == {"the picture is missing": 1}
    (source / "images/B00.jpg").unlink()
    with pytest.raises(UserError, match=r"nothing to convert \(2 left out: the picture is missing\); ocr-vqa needs"):
        convert("ocr-vqa", source, target.with_name("other"), Options(skip_missing=True))


def test_progress_goes_to_standard_error(source: Path, target: Path, capfd: pytest.CaptureFixture[str]) -> None:
    convert("gqa", gqa(source), target, progress=True)
    told = capfd.readouterr()
    assert told.out == ""
    assert "samples" in told.err


def test_one_file_may_be_named(source: Path, target: Path) -> None:
    gqa(source)
    path = source / "questions/val_balanced_questions.json"
    assert read(convert("gqa", path, target, Options(images=source)))[0].split == "val"


# ----------------------------------------------------------------------------------------------------- what is refused


def test_a_folder_in_use_is_left_alone(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    (target / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not empty"):
        convert("gqa", gqa(source), target)
    assert [path.name for path in target.parent.rglob("*")] == ["set", "mine.txt"]
    (target / "mine.txt").unlink()
    convert("gqa", source, target)  # an empty folder is filled


@pytest.mark.parametrize("kind", LAYOUTS)
def test_the_same_bytes_again_and_nothing_half_written(kind: str, source: Path, target: Path) -> None:
    LAYOUTS[kind](source)
    made = [convert(kind, source, target.with_name(name)) for name in ("one", "two")]
    first, second = (each.file.read_bytes() for each in made)
    assert first == second
    assert sorted(path.name for path in target.parent.iterdir()) == ["one", "two"]


def break_in(path: Path, before: str, after: str) -> None:
    """Change a text in a file, compressed or not."""
    packed = path.suffix == ".gz"
    raw = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    assert before.encode() in raw
    changed = raw.replace(before.encode(), after.encode(), 1)
    path.write_bytes(gzip.compress(changed) if packed else changed)


PID, QUESTIONS = "pid_splits.json", "questions/val_balanced_questions.json"
BROKEN = [
    (
        "coco-captions",
        "annotations/captions_val2017.json",
        '"image_id": 139',
        '"image_id": 4',
        "annotations[0].image_id",
    ),
    ("coco-captions", "annotations/captions_val2017.json", '"caption": " C', '"title": " C', "annotations[0].caption"),
    ("coco-captions", "annotations/captions_val2017.json", '"images"', '"pictures"', "'images': is missing"),
    ("gqa", QUESTIONS, '"answer"', '"reply"', "line 2, '0val.answer': is missing"),
    ("gqa", QUESTIONS, '"imageId": "nval"', '"imageId": []', "line 2, '0val.imageId': must be text, not a list"),
    ("gqa", QUESTIONS, "Is it val?", "Is <image> val?", "holds <image> 2 times"),
    ("refcoco", "refs(unc).json", '"split": "train"', '"split": "dev"', "line 2, 'split': unknown split 'dev'"),
    ("refcoco", "refs(unc).json", '"ann_id": 1', '"ann_id": 5', "line 2, 'ann_id': 5 is not in"),
    (
        "refcoco",
        "refs(unc).json",
        '"ann_id": 1',
        '"ann_id": [1]',
        "line 2, 'ann_id': must be a whole number, not a list",
    ),
    ("refcoco", "refs(unc).json", '"sent":', '"s":', "line 2, 'sentences[0].sent': is missing"),
    ("refcoco", "instances.json", '"width": 200', '"width": 0', "'images[0].width': a picture of 0 × 100 pixels"),
    ("refcoco", "instances.json", "-1,", "NaN,", "NaN is no number"),
    (
        "scienceqa",
        "problems.json",
        '"answer": 1',
        '"answer": 2',
        "line 2, '1.answer': 2 is none of the choices. Choices: 0 to 1",
    ),
    ("scienceqa", "problems.json", '"image.png"', '"../../secret"', "there is no picture"),
    ("scienceqa", PID, '"val"', '"dev"', "pid_splits.json, 'val': is missing"),
    ("ocr-vqa", "dataset.json", '"split": 1', '"split": 4', "line 2, '076.split': 4 is no split. Choices: 1 (train)"),
    ("ocr-vqa", "dataset.json", '"Ann Lee",', "", "'076.answers': holds 1 answers to 2 questions"),
    ("coco-mini", "annotations.jsonl.gz", '"1.jpg"', '"5.jpg"', "line 2, 'file': '5.jpg' is not in images.tar"),
    ("coco-mini", "annotations.jsonl.gz", '["dog", 0.0', '["dog", "0"', "line 2, 'boxes[0].box[0]': must be a number"),
    ("coco-mini", "annotations.jsonl.gz", '["dog", ', "[", "line 2, 'boxes[0]': must be [category, left, top"),
    (
        "coco-mini",
        "annotations.jsonl.gz",
        '"size": [8, 4]',
        '"size": [8]',
        "line 2, 'size': [8] is no width and height",
    ),
    ("coco-mini", "images.tar", "1.jpg", "/.jpg", "images.tar: "),
    (
        "scienceqa-text",
        "scienceqa_text.jsonl.gz",
        '"split": "test"',
        '"split": "dev"',
        "line 1, 'split': unknown split 'dev'",
    ),
    ("scienceqa-text", "scienceqa_text.jsonl.gz", '"prompt"', '"text"', "line 1, 'prompt': is missing"),
]


@pytest.mark.parametrize("case", BROKEN, ids=[f"{kind}: {after}" for kind, _, _, after, _ in BROKEN])
def test_what_is_malformed_is_named_and_nothing_is_left(
    case: tuple[str, str, str, str, str], source: Path, target: Path
) -> None:
    kind, file, before, after, message = case
    LAYOUTS[kind](source)
    break_in(source / file, before, after)
    with pytest.raises(UserError) as caught:
        convert(kind, source, target)
    assert message in str(caught.value)
    assert str(source / file) in str(caught.value) or file == "images.tar"
    assert not list(target.parent.iterdir())


def test_a_pickle_is_never_opened(source: Path, target: Path) -> None:
    refcoco(source)
    (source / "refs(unc).json").unlink()
    (source / "refs(unc).p").write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    for path in (source, source / "refs(unc).p"):
        with pytest.raises(UserError, match=r"refs\(unc\)\.p is a pickle, .*polyfed opens none"):
            convert("refcoco", path, target)
    assert not Path("opened").exists()


def test_the_lines_for_the_pickle(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refs = refcoco(source) / "refs(unc).json"
    (source / "refs(unc).p").write_bytes(pickle.dumps(json.loads(refs.read_text())))
    refs.unlink()
    page = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S) if "refs(unc).p" in block]
    monkeypatch.chdir(source)
    exec(compile(code, "docs/datasets.md", "exec"), {})
    assert len(read(convert("refcoco", source, target))) == 3


def test_the_sample_in_the_documents_can_be_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```json\n(.*?)^```$", page, re.M | re.S)
    (tmp_path / "samples.json").write_text(code)
    (found,) = read_conversations(tmp_path / "samples.json")
    assert found.box is not None
    assert box_text(found.box) == found.turns[1].text


def test_several_files_of_references_must_be_named(source: Path, target: Path) -> None:
    refcoco(source)
    dump(source / "refs(google).json", [])
    with pytest.raises(UserError, match=r"has several files; name one: refs\(google\)\.json, refs\(unc\)\.json"):
        convert("refcoco", source, target)
    assert len(read(convert("refcoco", source / "refs(unc).json", target))) == 3


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("gpa", Options(), "unknown kind of dataset 'gpa'; did you mean 'gqa'?"),
        ("coco-mini", Options(task="all"), "--task: coco-mini has several tasks, caption, vqa, grounding"),
        ("gqa", Options(test_share=1.5), "--test-share: 1.5 is no share"),
        ("gqa", Options(images=Path("nowhere")), "--images: 'nowhere' is not a folder"),
        ("gqa", Options(task="a.b"), "cannot be a name"),
        ("gqa", Options(), "there is no file *_balanced_questions.json in it or questions/"),
    ],
)
def test_what_cannot_be_asked_for(source: Path, target: Path, kind: str, options: Options, message: str) -> None:
    with pytest.raises(UserError) as caught:
        convert(kind, source, target, options)
    assert message in str(caught.value)


def test_where_from(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POLYFED_DATA", raising=False)
    for kind in ("gqa", "scienceqa-text"):
        with pytest.raises(UserError, match=r"where from\? Give --from PATH"):
            convert(kind, None, target)
    monkeypatch.setenv("POLYFED_DATA", str(scienceqa_text(source)))
    assert len(read(convert("scienceqa-text", None, target))) == 1
    with pytest.raises(UserError, match="--from: there is no file or folder"):
        convert("gqa", source / "nowhere", target)


# ------------------------------------------------------------------------------------------------------------ real data


def published_set(root: Path, name: str) -> None:
    if check(name, root):
        pytest.skip(f"{name} is not in the folder that POLYFED_DATA names")


def test_the_real_coco_mini(published: Path, target: Path) -> None:
    published_set(published, "coco-mini")
    made = convert("coco-mini", published, target)
    found = read(made)
    tasks = Counter(each.task for each in found)
    kinds = Counter(each.id.split("-")[1] for each in found)
    assert made.images is not None
    assert len(list(made.images.iterdir())) == 390
    assert kinds["aokvqa"] == 74
    assert kinds["caption"] == tasks["caption"] == 400 + 310  # 80 photographs with five each to train on
    assert (tasks["grounding"], sum(made.left_out.values())) == (548, 8)  # of 556
    assert kinds["presence"] == 2 * kinds["count"]
    answers = Counter(each.turns[1].text for each in found if "-presence-" in each.id)
    assert answers["yes"] == answers["no"] == kinds["count"]
    assert all(len(each.answers) in (5, 6) for each in found if each.task == "caption" and each.split == "val")
    for each in found:
        if each.box is not None:
            told = parse_box(each.turns[1].text)
            assert told is not None
            assert overlap(told, each.box) >= 0.5
            assert box_text(each.box) == each.turns[1].text
    dog = next(each for each in found if each.id == "790-where-dog")
    assert (
        dog.turns[1].text == "[0.80, 0.71, 0.96, 0.82]"
    )  # 384 × 253 pixels, 65 above: (0.81844 · 253 + 65) / 384 = 0.708


def test_the_real_scienceqa_text(published: Path, target: Path) -> None:
    published_set(published, "scienceqa-text")
    made = convert("scienceqa-text", published, target)
    found = read(made)
    assert made.counts == {("text", "train"): 520, ("text", "val"): 180, ("text", "test"): 2224}
    assert sum(made.left_out.values()) == 2729
    assert all("\nA. " in each.instruction and each.turns[1].text in "ABCDE" for each in found)
