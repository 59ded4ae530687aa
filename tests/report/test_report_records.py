from __future__ import annotations

import json
import math
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from polyfed.errors import UserError
from polyfed.report.entries import group_name
from polyfed.report.history import NO_REPLY
from polyfed.report.records import load_run, read_records

Make = Callable[..., Path]


def client_line(number: int, client: int, loss: float, examples: int, modalities: list[str]) -> str:
    record = {
        "kind": "client",
        "round": number,
        "step": "train",
        "client": client,
        "modalities": modalities,
        "examples": examples,
        "numbers": {"loss": loss},
        "bytes": {"up": {"fusion": 10}, "down": {"fusion": 30, "envelope": 5}},
    }
    return json.dumps(record) + "\n"


def evaluation_line(number: int, client: int, accuracy: float | None) -> str:
    metrics = {"digit": {"accuracy": accuracy}}
    record = {"kind": "evaluation", "round": number, "split": "test", "client": client, "metrics": metrics}
    return json.dumps(record) + "\n"


def test_history_sums_up_the_records_by_hand(tmp_path: Path, make_run: Make) -> None:
    folder = make_run(tmp_path / "run", clients=3)  # modalities: image; audio; audio and image
    lines = [
        evaluation_line(0, 0, 0.1),
        client_line(1, 0, 1.0, 10, ["image"]),
        client_line(1, 2, 4.0, 30, ["image", "audio"]),
        evaluation_line(1, 0, 0.5),
        evaluation_line(1, 1, 0.8),
        json.dumps(
            {"kind": "round", "round": 1, "cohort": [0, 1, 2], "replied": [0, 2], "bytes": {"up": 1, "down": 2}}
        ),
    ]
    (folder / "records.jsonl").write_text("".join(lines))
    history = load_run(folder).history
    assert history.metric("digit", "accuracy", "test").rounds == (0, 1)
    assert history.metric("digit", "accuracy", "test").values == pytest.approx((0.1, 0.65))
    assert history.metric("digit", "accuracy", "test", lambda group: group == "audio").values == (0.8,)
    assert history.trained("train", "loss").values == (3.25,)  # (10·1 + 30·4) / 40
    assert history.active == {0: {1: "image"}, 1: {1: NO_REPLY}, 2: {1: "audio+image"}}
    assert (history.up, history.down) == ({"fusion": 20}, {"fusion": 60, "envelope": 10})
    assert history.traffic[1].both == 3


def test_refused_replies_travelled_too(tmp_path: Path, make_run: Make) -> None:
    folder = make_run(tmp_path / "run", clients=3)
    refused = {"kind": "refused", "round": 1, "client": 1, "component": "fusion", "reason": "NaN"}
    weighed = {**refused, "bytes": {"down": {"fusion": 30, "envelope": 5}, "up": {"fusion": 7}}}
    lines = [client_line(1, 0, 1.0, 10, ["image"]), json.dumps(weighed) + "\n", json.dumps(refused) + "\n"]
    (folder / "records.jsonl").write_text("".join(lines))
    history = load_run(folder).history
    assert (history.up, history.down) == ({"fusion": 17}, {"fusion": 60, "envelope": 10})
    assert len(history.refused) == 2


@pytest.mark.parametrize(
    ("digest", "personal", "told"),
    [
        ("5f", "6a", ("digest", "5f")),
        (sha256().hexdigest(), "6a", ("personal digest", "6a")),
        (sha256().hexdigest(), "", ("digest", sha256().hexdigest())),
    ],
)
def test_where_the_server_holds_nothing_the_personal_digest_is_told(
    digest: str, personal: str, told: tuple[str, str], tmp_path: Path, make_run: Make
) -> None:
    summary = load_run(make_run(tmp_path / "run")).summary
    changed = summary.model_copy(update={"digest": digest, "personal_digest": personal})
    assert changed.told_digest == told


def test_modalities_of_several_exchanges_are_joined(tmp_path: Path, make_run: Make) -> None:
    folder = make_run(tmp_path / "run", clients=3)
    lines = client_line(1, 2, 1.0, 1, ["image"]) + client_line(1, 2, 1.0, 1, ["audio"])
    (folder / "records.jsonl").write_text(lines)
    assert load_run(folder).history.active[2] == {1: "audio+image"}


def test_groups_are_named_in_one_order(tmp_path: Path, make_run: Make) -> None:
    assert group_name(("image", "audio")) == "audio+image"
    assert group_name(()) == "no modality"
    folder = make_run(tmp_path / "run")
    text = (folder / "summary.json").read_text().replace("audio+image", "image+audio")
    (folder / "summary.json").write_text(text)
    assert "audio+image" in load_run(folder).summary.tasks["digit"]["accuracy"].by_modalities


def test_null_reads_as_not_a_number(tmp_path: Path, make_run: Make) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "records.jsonl").write_text(evaluation_line(1, 0, None))
    (value,) = load_run(folder).history.metric("digit", "accuracy", "test").values
    assert math.isnan(value)


def test_a_cut_off_last_line_is_left_out(tmp_path: Path) -> None:
    whole = evaluation_line(1, 0, 0.5)
    path = tmp_path / "records.jsonl"
    path.write_text(whole + whole[:25])
    assert len(list(read_records(path))) == 1
    path.write_text(whole + "\n" + whole.rstrip("\n"))  # blank line; last line whole but without its end
    assert len(list(read_records(path))) == 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Invalid JSON"),
        ('{"kind": "party"}', "party"),
        ('{"kind": "evaluation", "split": "test", "client": 0}', "round"),
        ('{"kind": "refused", "round": -1, "client": 0, "reason": "x"}', "greater than or equal to 0"),
        ("[1]", "not a record"),
        ('{"kind": "round", "round": "\udcff"}', "not a record"),
    ],
)
def test_a_malformed_record_is_named_by_file_and_line(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes((evaluation_line(1, 0, 0.5) + line + "\n").encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"records\.jsonl, line 2: not a record") as caught:
        list(read_records(path))
    assert reason in str(caught.value)


@pytest.mark.parametrize("name", ["experiment.yaml", "records.jsonl", "summary.json"])
def test_a_missing_file_is_named(tmp_path: Path, make_run: Make, name: str) -> None:
    folder = make_run(tmp_path / "run")
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"has no {name}"):
        load_run(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is not a run folder"):
        load_run(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("experiment.yaml", b"a: [1\nb: 2\n", r"experiment\.yaml, line 2: not YAML"),
        ("experiment.yaml", b"- a\n", "mapping of settings, not list"),
        ("experiment.yaml", b"a: !!python/object:os.system x\n", "not YAML"),
        ("experiment.yaml", b"\xff\xfe", "not UTF-8"),
        ("summary.json", b"{", r"summary\.json: Invalid JSON"),
        ("summary.json", b'{"experiment": "a", "method": "b", "seed": "x", "rounds": 1}', r"summary\.json: seed"),
    ],
)
def test_a_malformed_file_is_named(tmp_path: Path, make_run: Make, name: str, content: bytes, reason: str) -> None:
    folder = make_run(tmp_path / "run")
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=reason):
        load_run(folder)


def test_settings_that_are_not_there_are_none(tmp_path: Path, make_run: Make) -> None:
    run = load_run(make_run(tmp_path / "run"))
    assert run.setting("model", "width") == 32
    assert run.setting("model", "width", "deeper") is None
    assert run.setting("nothing") is None
