"""The dataset ``instructions``: a user's own samples in LLaVA's format, read, encoded and dealt to clients."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tests.language import shared_checkpoint

import polyfed
from polyfed.data.catalog import DATASETS
from polyfed.data.conversations import Conversation, Turn
from polyfed.data.convert.kinds import Options, convert
from polyfed.data.dataset import Dataset
from polyfed.data.instruction_answers import references
from polyfed.data.instruction_checkpoint import SYSTEM, VICUNA, Checkpoint, Encoded, load_checkpoint
from polyfed.data.instruction_columns import Packing
from polyfed.data.instruction_pictures import PictureFile, padded
from polyfed.data.instruction_samples import METRICS, numbered
from polyfed.data.schema import IGNORED
from polyfed.errors import UserError
from polyfed.experiment import config
from polyfed.experiment.world import build_world
from polyfed.model.text_metrics import TEXT_METRICS

pytest.importorskip("transformers", reason="language models need the extra polyfed[mllm]")
pytest.importorskip("peft", reason="language models need the extra polyfed[mllm]")

Samples = Sequence[Mapping[str, Any]] | str
COLOURS = ("red", "green", "blue", "white")


def sample(number: int, task: str | None = "vqa", **more: Any) -> dict[str, Any]:
    """One sample about the picture of a colour."""
    colour = COLOURS[number % len(COLOURS)]
    said = [{"from": "human", "value": "<image>\nWhich colour?"}, {"from": "gpt", "value": colour}]
    return {"id": number, "image": f"{colour}.png", "conversations": said, "task": task, **more}


def plain(number: int, *turns: str, **more: Any) -> dict[str, Any]:
    """A sample without a picture."""
    said = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(turns)]
    return {"id": number, "conversations": said, **more}


def write(folder: Path, samples: Samples, name: str = "samples.json") -> Path:
    """Write samples and their pictures, which are twice as wide as high."""
    folder.mkdir(parents=True, exist_ok=True)
    for colour in COLOURS:
        Image.new("RGB", (40, 20), colour).save(folder / f"{colour}.png")
    path = folder / name
    path.write_text(samples if isinstance(samples, str) else "[\n" + ",\n".join(map(json.dumps, samples)) + "\n]")
    return path


def built(path: Path | list[Path], **options: Any) -> Dataset:
    """Build the dataset with the tiny checkpoint; features are kept beside the samples."""
    files = [str(path)] if isinstance(path, Path) else [str(each) for each in path]
    return DATASETS.build("instructions", {"train": files, "checkpoint": shared_checkpoint(), **options}, None)


@pytest.fixture(scope="module")
def found() -> Checkpoint:
    return load_checkpoint(shared_checkpoint(), 512)


# ------------------------------------------------------------------------------------------------ texts and labels


def spoken(found: Checkpoint, encoded: Encoded) -> list[str]:
    """Return what is learned, as texts."""
    return [found.processor.tokenizer.decode(encoded.tokens[start:end]) for start, end in encoded.answers]


def test_only_answers_and_their_ends_are_learned(tmp_path: Path, found: Checkpoint) -> None:
    dataset = built(write(tmp_path, [sample(0), sample(1)]))
    batch = dataset.train.everything().batch()
    tokens, targets = batch.inputs["text"], batch.targets["vqa"]
    tokenizer = found.processor.tokenizer
    assert ((tokens == tokenizer.image_token_id).sum(1) == found.tokens).all(), "tokens of one picture each"
    for row, colour in enumerate(COLOURS[:2]):
        learned = targets[row] != IGNORED
        assert tokenizer.decode(targets[row][learned]) == f" {colour}</s>"
        assert torch.equal(targets[row][learned], tokens[row][learned])
        before = tokens[row][: int(learned.nonzero()[0])]
        assert tokenizer.decode(before).endswith("<image>\nWhich colour? ASSISTANT:")
        assert not learned[len(before) + int(learned.sum()) :].any()
    assert not (targets == tokenizer.image_token_id).any()


def test_all_answers_of_a_conversation_are_learned_and_the_first_is_asked_for(
    tmp_path: Path, found: Checkpoint
) -> None:
    turns = ("Which word?", "one", "And now?", "two words", "The end?", "yes")
    encoded = found.encoded(turns, picture=False, place="here")
    assert spoken(found, encoded) == [" one</s>", " two words</s>", " yes</s>"]
    said = [f"USER: {turns[i]} ASSISTANT: {turns[i + 1]}</s>" for i in (0, 2, 4)]
    assert found.processor.tokenizer.decode(encoded.tokens) == "<s>" + "".join(said)
    (asked,) = built(write(tmp_path, [plain(0, *turns, answers=["yes", "no"])])).train.asked
    assert (asked.question, asked.answers, asked.picture) == ("Which word?", ("one",), None)
    told = Conversation("0", None, (Turn("human", "?"), Turn("gpt", "a")), answers=("a", "b"))
    assert references(told) == ("a", "b")


# As several published checkpoints have it: no beginning, no end of sequence, and a space behind every text.
ENDLESS = (
    "{%- for m in messages -%}{{ m.role.upper() ~ ': ' }}"
    "{%- for p in m.content -%}{{ '<image>\\n' if p.type == 'image' else p.text ~ ' ' }}{%- endfor -%}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"
)
CHATML = (
    "{%- for m in messages -%}{{ '[' ~ m.role ~ ']\\n' }}"
    "{%- for p in m.content -%}{{ '<image>\\n' if p.type == 'image' else p.text }}{%- endfor -%}"
    "{{ eos_token ~ '\\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '[assistant]\\n' }}{%- endif -%}"
)


@pytest.mark.parametrize(("template", "space"), [(None, " "), (ENDLESS, " "), (CHATML, "")])
def test_labels_are_right_for_other_templates(template: str | None, space: str) -> None:
    found = load_checkpoint(shared_checkpoint(), 512)
    found.processor.chat_template = template
    encoded = found.encoded(("Which?", "one", "And?", "two"), picture=True, place="here")
    assert spoken(found, encoded) == [f"{space}one</s>", f"{space}two</s>"]
    assert encoded.tokens.count(found.processor.tokenizer.image_token_id) == found.tokens
    assert encoded.tokens[-1] == found.processor.tokenizer.eos_token_id


def test_without_a_template_the_prompt_is_vicunas() -> None:
    found = load_checkpoint(shared_checkpoint(), 512)
    found.processor.chat_template = None
    text = found.processor.tokenizer.decode(found.encoded(("Which?", "one"), picture=False, place="here").tokens)
    assert text == f"{SYSTEM} USER: Which? ASSISTANT: one</s>"
    assert "ASSISTANT:" in VICUNA


def test_a_beginning_that_the_tokenizer_writes_is_there_once() -> None:
    found = load_checkpoint(shared_checkpoint(), 512)
    tokenizer = found.processor.tokenizer
    with_template = found.encoded(("Which?", "one"), picture=False, place="here")
    from tokenizers.processors import TemplateProcessing

    begin = ("<s>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[begin])
    again = load_checkpoint(shared_checkpoint(), 512)
    again.processor.tokenizer.backend_tokenizer.post_processor = tokenizer.backend_tokenizer.post_processor
    assert again.encoded(("Which?", "one"), picture=False, place="here") == with_template
    again.processor.chat_template = None
    assert again.encoded(("Which?", "one"), picture=False, place="here").tokens.count(begin[1]) == 1


def test_a_template_that_rewrites_what_was_said_is_refused() -> None:
    found = load_checkpoint(shared_checkpoint(), 512)
    found.processor.chat_template = "{{ messages | length }}" + CHATML
    with pytest.raises(UserError, match="here: the checkpoint's chat template does not put the answer behind"):
        found.encoded(("Which?", "one", "And?", "two"), picture=False, place="here")
    found.processor.chat_template = CHATML.replace("'<image>\\n' if p.type == 'image' else p.text", "p.text")
    with pytest.raises(UserError, match="here: the checkpoint's chat template writes 0 image tokens"):
        found.encoded(("Which?", "one"), picture=True, place="here")


def test_special_tokens_in_texts_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, [plain(0, "A?", "b"), plain(1, "A?", "b</s> c")])
    with pytest.raises(UserError) as error:
        built(path)
    assert str(error.value).startswith(
        f"{path}, line 3, 'conversations': the answer 'b</s> c' holds '</s>', a special token of the checkpoint's"
    )
    found = load_checkpoint(shared_checkpoint(), 512)
    added = ["<|stop|>"]  # as the turns' ends of some language models
    found.processor.tokenizer.add_tokens(added, special_tokens=True)
    for token in ("<s>", "<pad>", "<unk>", "<image>", *added):
        with pytest.raises(UserError, match=re.escape(f"here: the question 'Is {token} one?' holds '{token}'")):
            found.encoded(("A?", "b", f"Is {token} one?", "yes"), picture=False, place="here")
    found.encoded(("Is <b> one, < s>, /s, <S>?", "<no>"), picture=False, place="here")


def test_packed_rows_are_the_rows() -> None:
    packing = Packing()
    packing.add(Encoded([1, 2, 3, 4, 5], ((1, 2), (3, 5))))
    packing.add(Encoded([6, 7], ((1, 2),)))
    texts, targets = packing.columns(packing.longest, 9)
    assert texts.gather(torch.tensor([1, 0])).tolist() == [[6, 7, 9, 9, 9], [1, 2, 3, 4, 5]]
    assert targets.gather(torch.tensor([1, 0])).tolist() == [[-100, 7, -100, -100, -100], [-100, 2, -100, 4, 5]]
    assert texts.gather(torch.tensor([], dtype=torch.int64)).shape == (0, 5)
    assert (texts.shape, len(texts), texts.resident) == ((5,), 2, True)


def test_long_texts_are_refused_or_cut(tmp_path: Path) -> None:
    path = write(tmp_path, [plain(0, "A?", "b"), plain(1, "A?", "b " * 60), plain(2, "A " * 60, "b")])
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}, line 3, 'conversations': the text has 70 tokens"):
        built(path, longest=40)
    table = built(path, longest=40, samples={"too_long": "cut"}).train
    assert len(table) == 2, "nothing is left to learn of the third"
    batch = table.everything().batch()
    assert batch.inputs["text"].shape == (2, 40)
    assert ((batch.targets["text"] != IGNORED).sum(1) > 1).all()


# ------------------------------------------------------------------------------------------------ tasks and clients


def test_every_metric_of_texts_can_be_named() -> None:
    assert set(METRICS) == set(TEXT_METRICS)


def test_tasks_are_judged_by_their_names_unless_told(tmp_path: Path) -> None:
    samples = [
        sample(0),
        sample(1, "caption"),
        sample(2, "mood"),
        plain(3, "A?", "b"),
        plain(4, "A?", "B", task="quiz"),
    ]
    path = write(tmp_path, samples)
    with pytest.raises(
        UserError,
        match=rf"^{re.escape(str(path))}, line 4, 'task': nothing says how answers of the task 'mood' .*"
        r"data.metrics: \{mood: \.\.\.\}. Choices: caption,",
    ):
        built(path)
    with pytest.raises(UserError, match=r"json, line 2: nothing says how answers of the task 'mood'"):
        built(write(tmp_path / "one", [plain(0, "A?", "b")]), samples={"task": "mood"})
    found = built(path, metrics={"mood": "vqa", "quiz": "choice"}, samples={"task": "caption"})
    judges = {name: task.metric for name, task in found.tasks.items()}
    assert judges == {"caption": "caption", "mood": "vqa", "quiz": "choice", "vqa": "vqa"}
    assert found.train.labelled["caption"].tolist() == [False, True, False, True, False]
    assert found.train.present["image"].tolist() == [True, True, True, False, False]
    with pytest.raises(UserError, match=r"data\.metrics: unknown task 'mod'; did you mean 'mood'"):
        built(path, metrics={"mood": "vqa", "quiz": "choice", "mod": "vqa"})
    with pytest.raises(UserError, match=r"metrics\.mood: 'bleu' is not one of the choices: 'caption'"):
        built(path, metrics={"mood": "bleu"})


def test_questions_with_choices_are_judged_by_the_letter(tmp_path: Path) -> None:
    lettered = [plain(i, "A. x\nB. y", "B", choices=["x", "y"]) for i in range(2)]
    assert built(write(tmp_path, lettered)).tasks["text"].metric == "choice"
    assert built(write(tmp_path, [*lettered, plain(2, "A?", "b")])).tasks["text"].metric == "text"
    assert built(write(tmp_path, lettered), metrics={"text": "text"}).tasks["text"].metric == "text"


def test_clients_are_numbered_in_order(tmp_path: Path) -> None:
    assert list(numbered(["10", "9", "9", "-1"])) == ["-1", "9", "10"]
    assert list(numbered(["b", "10", "9"])) == ["10", "9", "b"]
    samples = [sample(i, client=client) for i, client in enumerate([10, 9, "10", 9])]
    samples += [sample(4, client=7), sample(4, client=7, split="test"), sample(5, client=9, split="test")]
    found = built(write(tmp_path, samples))
    assert found.field_labels["client"] == ("7", "9", "10")
    assert found.train.fields["client"].tolist() == [2, 1, 2, 1, 0]
    assert found.test is not None
    assert found.test.fields["client"].tolist() == [0, 1]
    path = write(tmp_path, [sample(0, client="ann"), sample(1)])
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}, line 3, 'client': is missing"):
        built(path)


def test_test_samples_of_a_client_that_does_not_train_are_refused(tmp_path: Path) -> None:
    test = [sample(i, client=client, split="test") for i, client in enumerate((9, 8, 7))]
    path = write(tmp_path, [sample(0, client=9), *test])
    with pytest.raises(UserError) as error:
        built(path)
    assert str(error.value).startswith(
        f"{path}, line 4, 'client': the client '8' of this test sample has no training sample; "
    )
    named = write(tmp_path, [sample(0), *test], "test_only.json")
    assert len(built(named).test or ()) == 3, "nobody is named to train, so nothing is dealt by clients"


def test_samples_of_a_task_are_dealt_to_clients_by_picture(tmp_path: Path) -> None:
    samples = [sample(i, task) for task in ("vqa", "caption") for i in range(12)]
    found = built(write(tmp_path, samples), samples={"clients_per_task": 2})
    assert found.field_labels["client"] == ("caption 0", "caption 1", "vqa 0", "vqa 1")
    fields, tasks = found.train.fields, found.train.fields["task"]
    assert torch.equal(fields["client"] // 2, tasks)
    assert tasks.tolist() == [1] * 12 + [0] * 12
    for task in range(2):
        owners = [set(fields["client"][(tasks == task) & (fields["picture"] == one)].tolist()) for one in range(4)]
        assert [len(owner) for owner in owners] == [1] * 4
        assert sorted(owner.pop() % 2 for owner in owners) == [0, 0, 1, 1]
    with pytest.raises(
        UserError, match=r"5 clients for each task, but 'caption' has training samples of 4 pictures; use"
    ):
        built(write(tmp_path, samples), samples={"clients_per_task": 5})
    named = [sample(0, client=1)]
    with pytest.raises(UserError, match="the samples name their clients"):
        built(write(tmp_path, named), samples={"clients_per_task": 1})


def test_splits_and_test_files(tmp_path: Path) -> None:
    first = write(tmp_path, [sample(0), sample(1, split="val"), sample(2, split="test")])
    second = write(tmp_path, [sample(3), sample(0, split="train")], "more.json")
    assert [len(table or ()) for table in (built(first).train, built(first).test)] == [2, 1]
    both = built([first, second], samples={"test_splits": ["val", "test"]})
    assert both.test is not None
    assert [[asked.answers[0] for asked in table.asked] for table in (both.train, both.test)] == [
        ["red", "white", "red"],
        ["green", "blue"],
    ]
    apart = built(second, test=str(first))
    assert apart.test is not None
    assert [asked.answers[0] for asked in apart.test.asked] == ["blue"], "a file with a test split gives only that"
    assert len(built(first, test=str(second)).test or ()) == 3, "one without gives everything"
    assert built(second).test is None
    with pytest.raises(UserError, match=r"^data.train: holds no sample to train on"):
        built(write(tmp_path, [sample(0, split="test")], "tests.json"))
    other = write(tmp_path, [sample(0, "caption")], "other.json")
    with pytest.raises(
        UserError, match=r"line 2 \(a test sample of a task that is not trained\): unknown task 'caption'"
    ):
        built(second, test=str(other))


def test_text_alone_needs_no_pictures(tmp_path: Path) -> None:
    found = built(write(tmp_path, [plain(i, "A?", "b") for i in range(3)]))
    assert set(found.modalities) == {"text"}
    assert set(found.train.inputs) == {"text"}
    assert not found.train.labelled
    assert not (tmp_path / "features").exists()
    text, seen = (
        write(tmp_path, [one], name) for one, name in ((plain(0, "A?", "b"), "a.json"), (sample(0, None), "b.json"))
    )
    with pytest.raises(
        UserError, match=r"b.json, line 2, 'image': a test sample has a picture, but no training sample"
    ):
        built(text, test=str(seen))


# ------------------------------------------------------------------------------------------------ what is malformed


def replaced(number: int, **more: Any) -> Callable[[Path], Samples]:
    return lambda folder: [sample(0), {**sample(number), **more}]


def torn(folder: Path) -> Samples:
    (folder / "torn.png").write_bytes((folder / "red.png").read_bytes()[:60])
    return [sample(0), {**sample(1), "image": "torn.png"}]


def no_picture(folder: Path) -> Samples:
    (folder / "notes.png").write_text("no picture")
    return [sample(0), {**sample(1), "image": "notes.png"}]


BAD: dict[str, tuple[Callable[[Path], Samples], str]] = {
    "speaker": (
        replaced(1, conversations=[{"from": "you", "value": "<image>"}]),
        "FILE, line 3, 'conversations[0].from': unknown speaker 'you'",
    ),
    "no answer": (replaced(1, conversations=[]), "FILE, line 3, 'conversations': holds no answer"),
    "task": (replaced(1, task="a b"), "FILE, line 3, 'task': 'a b' cannot be a name"),
    "client": (replaced(1, client=[1]), "FILE, line 3, 'client': must be text, not a list"),
    "missing picture": (replaced(1, image="pink.png"), "FILE, line 3, 'image': there is no file 'pink.png' in FOLDER"),
    "outside": (replaced(1, image="../red.png"), "FILE, line 3, 'image': '../red.png' lies outside the folder"),
    "no picture": (no_picture, "FOLDER/notes.png: is not a readable image"),
    "torn picture": (torn, "FOLDER/torn.png: is not a whole image"),
    "box": (replaced(1, task="grounding"), "FILE, line 3, 'conversations[1].value': 'green' is no box"),
    "reference": (
        replaced(1, task="grounding", answers=["here"]),
        "FILE, line 3, 'answers[0]': 'here' is no box",
    ),
    "trailing comma": (
        lambda folder: f"[{json.dumps(sample(0))},]",
        "FILE, line 1: not valid JSON: unexpected ']' after ','",
    ),
    "blank answer": (
        lambda folder: [sample(0), plain(1, "A?", "")],
        "FILE, line 3, 'conversations[1].value': is blank",
    ),
    "cut off": (lambda folder: '[{"id": 0', "FILE, line 1: the file ends too early"),
    "empty": (lambda folder: "[]", "FILE: holds no samples"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_malformed_is_named(case: str, tmp_path: Path) -> None:
    write(tmp_path, [])
    samples, message = BAD[case]
    path = write(tmp_path, samples(tmp_path))
    with pytest.raises(UserError) as error:
        built(path)
    assert str(error.value).startswith(message.replace("FILE", str(path)).replace("FOLDER", str(tmp_path)))
    if "picture" in case:
        assert f"{path}, line 3, 'image'" in str(error.value)


UNREAD: dict[str, tuple[Samples, dict[str, Any], str]] = {
    "cut off": ('[{"id": 0', {}, "ends too early"),
    "missing picture": ([sample(0), {**sample(1), "image": "pink.png"}], {}, "there is no file 'pink.png'"),
    "no box": ([sample(0, "grounding")], {}, "is no box"),
    "unknown task": ([sample(0)], {"metrics": {"mood": "vqa"}}, "unknown task 'mood'"),
    "unknown metric": ([sample(0, "mood")], {}, "nothing says how answers"),
    "nothing to train on": ([sample(0, split="test")], {}, "holds no sample to train on"),
    "untrained task": ([sample(0), sample(1, "caption", split="test")], {}, "a task that is not trained"),
    "untrained pictures": ([plain(0, "A?", "b"), sample(1, None, split="test")], {}, "no training sample has"),
    "a word for a letter": (
        [plain(0, "A?", "red", choices=["x", "y"])],
        {"metrics": {"text": "choice"}},
        "is judged by the letter",
    ),
    "a client that does not train": (
        [sample(0, client=1), sample(1, client=2, split="test")],
        {},
        "has no training sample",
    ),
    "unnamed client": ([sample(0, client=1), sample(1)], {}, "other samples name their client"),
    "dealt although named": ([sample(0, client=1)], {"samples": {"clients_per_task": 1}}, "name their clients"),
}


@pytest.mark.parametrize("case", UNREAD)
def test_what_is_wrong_with_files_is_told_before_the_checkpoint_is_read(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: object, **__: object) -> None:
        pytest.fail("something heavy came first")

    monkeypatch.setattr("polyfed.data.instructions.load_checkpoint", opened)
    monkeypatch.setattr(PictureFile, "check", opened)
    monkeypatch.setattr(PictureFile, "digest", opened)
    samples, options, message = UNREAD[case]
    with pytest.raises(UserError, match=message):
        built(write(tmp_path, samples), **options)


@pytest.mark.filterwarnings("ignore:.*will be removed in Click 9:DeprecationWarning")
def test_a_malformed_file_is_one_message_of_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from polyfed.command.app import main

    path = write(tmp_path, [sample(0), {**sample(1), "conversations": "hello"}])
    out = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["polyfed", "run", str(experiment_file(tmp_path, path)), "--out", str(out)])
    with pytest.raises(SystemExit) as done:
        main()
    told = " ".join(capsys.readouterr().err.split())
    assert done.value.code == 2
    assert "samples.json, line 3, 'conversations': must be a list, not text" in told
    assert "Traceback" not in told
    assert not out.exists()


def experiment_file(folder: Path, samples: Path) -> Path:
    values = {
        "data": {"name": "instructions", "train": str(samples), "checkpoint": shared_checkpoint()},
        "model": {"name": "llava", "path": shared_checkpoint()},
    }
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_file_or_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.json: no such file"):
        built(tmp_path / "nowhere.json")
    with pytest.raises(UserError, match=r"data.images: .* is not a folder that exists"):
        built(write(tmp_path, [sample(0)]), images=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"data.checkpoint: .* cannot be loaded as a LLaVA"):
        built(write(tmp_path, [sample(0)]), checkpoint=str(tmp_path))


def test_boxes_need_pictures_that_are_padded(tmp_path: Path) -> None:
    cropping = tmp_path / "checkpoint"
    shutil.copytree(shared_checkpoint(), cropping)
    for settings in cropping.glob("*processor_config.json"):
        settings.write_text(settings.read_text().replace('"do_pad": true', '"do_pad": false'))
    boxed = sample(0, "grounding")
    boxed["conversations"][1]["value"] = "[0.00, 0.25, 1.00, 0.75]"
    path = write(tmp_path / "data", [boxed])
    with pytest.raises(
        UserError, match=r"does not pad pictures to squares .* 'grounding' .* set data.pictures.pad: true"
    ):
        built(path, checkpoint=str(cropping))
    ours = built(path, checkpoint=str(cropping), pictures={"pad": True})
    theirs = built(path)
    seen = [each.train.everything().batch().inputs["image"] for each in (ours, theirs)]
    torch.testing.assert_close(*seen)
    sample_of = ours.train.asked[0]
    assert sample_of.picture is not None
    assert sample_of.picture().shape == (3, 40, 40), "shown in the frame of its box"


# ------------------------------------------------------------------------------------------------ pictures


def test_pictures_are_shown_small(tmp_path: Path) -> None:
    Image.new("RGB", (1200, 300), "red").save(tmp_path / "wide.jpg")
    Image.new("L", (30, 20), 7).save(tmp_path / "grey.png")
    wide, grey = (PictureFile(tmp_path / name, "here")() for name in ("wide.jpg", "grey.png"))
    assert wide.shape == (3, 128, 512)
    assert wide.dtype == np.uint8
    assert grey.shape == (3, 20, 30)
    assert (grey == 7).all()
    assert PictureFile(tmp_path / "wide.jpg", "here").opened().size == (1200, 300)


def test_padding_puts_the_picture_in_the_middle() -> None:
    square = np.asarray(padded(Image.new("RGB", (5, 2), "white"), (1, 2, 3)))
    assert square.shape == (5, 5, 3)
    assert (square[1:3] == 255).all()
    assert (square[[0, 3, 4]] == (1, 2, 3)).all()


# ------------------------------------------------------------------------------------------------ whole runs


def experiment(data: dict[str, Any], **changes: Any) -> config.Experiment:
    path = shared_checkpoint()
    values: dict[str, Any] = {
        "rounds": 1,
        "data": {"name": "instructions", "checkpoint": path, **data},
        "scenario": {"clients": None, "partition": {"name": "natural", "field": "client"}},
        "model": {"name": "llava", "path": path, "lora": {"rank": 2, "alpha": 4, "dropout": 0.0}, "answer_tokens": 2},
        "train": {"optimizer": "adamw", "lr": 0.01, "batch_size": 8},
        "engine": {"workers": 1, "device": "cpu"},
    }
    return config.parse(config.changed(values, {key.replace("__", "."): value for key, value in changes.items()}))


@pytest.mark.parametrize("partition", [{"name": "iid"}, {"name": "quantity"}, {"name": "natural", "field": "task"}])
def test_partitions_without_clients(tmp_path: Path, partition: dict[str, Any]) -> None:
    path = write(tmp_path, [sample(i, ("vqa", "caption")[i % 2]) for i in range(24)])
    chosen = experiment({"train": str(path)}, scenario__partition=partition, scenario__clients=2)
    clients = build_world(chosen).federation.clients()
    assert all(len(client.train) and len(client.test) for client in clients)


def test_partitions_by_label_say_that_there_are_none(tmp_path: Path) -> None:
    path = write(tmp_path, [sample(i) for i in range(24)])
    chosen = experiment({"train": str(path)}, scenario__partition={"name": "dirichlet"}, scenario__clients=2)
    with pytest.raises(UserError, match="partition dirichlet: the dataset has no classification task"):
        build_world(chosen)


def test_real_photographs_run_from_end_to_end(published: Path, tmp_path: Path) -> None:
    made = convert("coco-mini", published, tmp_path / "coco", Options(test_share=0.2))
    lines = [line.removesuffix(",") for line in made.file.read_text().splitlines()[1:-1]]
    kept: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        read = json.loads(line)
        kept.setdefault((read["task"], read["split"]), []).append(line)
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(line for held in kept.values() for line in held[:: len(held) // 18][:18]))
    data = {"train": str(few), "images": str(made.images), "features": str(tmp_path / "features")}
    named = experiment({**data, "samples": {"clients_per_task": 3}}, method={"name": "pilot"}, scenario__validation=0)
    result = polyfed.run(named, tmp_path / "run")
    assert {client["name"] for client in result.summary["clients"]} == {
        f"client {task} {number}" for task in ("caption", "grounding", "vqa") for number in range(3)
    }
    assert set(result.summary["tasks"]["grounding"]) >= {"accuracy", "iou"}
    assert all(client["metrics"] for client in result.summary["clients"])


def test_questions_without_pictures_run_from_end_to_end(published: Path, tmp_path: Path) -> None:
    made = convert("scienceqa-text", published, tmp_path / "science")
    short = [json.loads(line.removesuffix(",")) for line in made.file.read_text().splitlines()[1:-1]]
    short = [one for one in short if len(one["conversations"][0]["value"]) < 200]
    some = [{**one, "client": i % 2} for i, one in enumerate(short[:24])]
    path = write(tmp_path / "few", some)
    result = polyfed.run(experiment({"train": str(path), "samples": {"test_splits": []}}), tmp_path / "run")
    assert result.summary["tasks"].keys() == {"text"}
    assert [client["name"] for client in result.summary["clients"]] == ["client 0", "client 1"]
    assert all(client["metrics"] for client in result.summary["clients"])
