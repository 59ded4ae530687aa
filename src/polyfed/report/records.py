"""Read a run folder. Nothing in it is trusted: every line is checked, every fault named by file and line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from polyfed.errors import UserError
from polyfed.report.entries import RECORD, Baseline, ClientResult, Record, Summary, first_fault
from polyfed.report.history import History, gather


@dataclass(frozen=True)
class RunData:
    """A run as its folder tells it.

    ``experiment`` is the resolved experiment, ``text`` its YAML as written; ``history`` sums up the records.
    """

    folder: Path
    experiment: Mapping[str, Any]
    text: str
    summary: Summary
    history: History

    @property
    def clients(self) -> tuple[ClientResult, ...]:
        """Clients in ascending id."""
        return tuple(sorted(self.summary.clients, key=lambda client: client.id))

    @property
    def baseline(self) -> Baseline | None:
        """The baseline the run was held against, if there was one."""
        return self.summary.baseline

    def setting(self, *path: str) -> Any:
        """Return one setting of the experiment, such as ``setting("data", "name")``; None where it is not set."""
        value: Any = self.experiment
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value


def load_run(folder: Path) -> RunData:
    """Read a run folder.

    A last line of the records that was cut off while being written is left out. Raises UserError, naming file and
    line, if a file is missing or malformed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a run folder: there is no such folder")
    text, experiment = _experiment(folder / "experiment.yaml")
    summary = _summary(folder / "summary.json")
    groups = {client.id: client.group for client in summary.clients}
    history = gather(read_records(folder / "records.jsonl"), groups)
    return RunData(folder, experiment, text, summary, history)


def read_records(path: Path) -> Iterator[Record]:
    """Yield the records of a file one by one."""
    if not path.is_file():
        raise _missing(path)
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield RECORD.validate_json(line)
            except ValidationError as error:
                if not line.endswith(b"\n"):  # only the last line can lack its end: the writer was stopped
                    return
                raise UserError(f"{path}, line {number}: not a record polyfed wrote: {first_fault(error)}") from error


def _missing(path: Path) -> UserError:
    return UserError(f"{path.parent} is not the folder of a finished run: it has no {path.name}")


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise _missing(path)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from error


def _experiment(path: Path) -> tuple[str, Mapping[str, Any]]:
    text = _read_text(path)
    try:
        experiment = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{place}: not YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(experiment, dict):
        raise UserError(f"{path}, line 1: an experiment is a mapping of settings, not {type(experiment).__name__}")
    return text, experiment


def _summary(path: Path) -> Summary:
    text = _read_text(path)
    try:
        return Summary.model_validate_json(text)
    except ValidationError as error:
        raise UserError(f"{path}: {first_fault(error)}") from error
