"""A user's own instruction data: files in LLaVA's format, pictures on disk, and the checkpoint that is to be tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from polyfed.data.checkpoint_place import HUB, expanded
from polyfed.data.conversation_rules import TASK as TASK_NAME
from polyfed.data.conversations import Split
from polyfed.data.dataset import Dataset, Root
from polyfed.data.feature_cache import FeatureType
from polyfed.data.instruction_checkpoint import Checkpoint, load_checkpoint
from polyfed.data.instruction_clients import PICTURE, fields_of, named_clients
from polyfed.data.instruction_samples import Part, Samples, Source, TextMetric, judged, read_samples
from polyfed.data.instruction_table import Vision, schema_of
from polyfed.data.instruction_vision import feature_columns, pixel_columns
from polyfed.data.source import existing_folder
from polyfed.errors import UserError, unknown
from polyfed.registry import Located, Options


def _folder_or_name(named: str) -> str:
    return named if not named or named.startswith(HUB) else str(expanded(named).absolute())


Files = Located | Annotated[list[Located], Field(min_length=1)]
TaskName = Annotated[str, Field(pattern=rf"^(?:{TASK_NAME.pattern})$")]


class SampleOptions(Options):
    """How samples are taken."""

    task: Annotated[TaskName, Field(description="task of samples that name none")] = "text"
    test_splits: Annotated[
        tuple[Split, ...], Field(description="samples of these splits in training files are for the test")
    ] = ("test",)
    too_long: Annotated[
        Literal["refuse", "cut"], Field(description="longer texts are an error, or cut off at the end")
    ] = "refuse"
    clients_per_task: Annotated[
        int | None, Field(ge=1, description="deal each task's samples to so many clients (field client)")
    ] = None
    seed: Annotated[int, Field(description="seed of clients_per_task")] = 0


class PictureOptions(Options):
    """How pictures are taken."""

    pad: Annotated[bool, Field(description="pad them to squares before the checkpoint's image processor")] = False
    feature_type: Annotated[FeatureType, Field(description="type in which their features are kept")] = "float32"


NOTHING: Mapping[str, TextMetric] = {}
SAMPLES, PICTURES = SampleOptions(), PictureOptions()
FEATURES = "features"


def instructions(  # noqa: PLR0913 - each is an option of the dataset
    root: Root,
    *,
    train: Annotated[Files, Field(description="file or list of files of samples; relative to the working directory")],
    checkpoint: Annotated[
        str,
        AfterValidator(_folder_or_name),
        Field(description="folder of a LLaVA, or hf://owner/name on the hub: its tokenizer and its vision tower"),
    ],
    test: Annotated[
        Files | None, Field(description="the same for the test; null: the samples of train whose split is for it")
    ] = None,
    images: Annotated[
        Located | None, Field(description="folder that names of pictures are relative to; null: the file's own")
    ] = None,
    longest: Annotated[int, Field(ge=1, description="tokens of a text at most, with those of its picture")] = 2048,
    metrics: Annotated[
        Mapping[str, TextMetric],
        Field(description="how answers are judged, by task; left out: as the task's name says"),
    ] = NOTHING,
    features: Annotated[
        Located | None, Field(description="folder where features of pictures are kept; null: in the data folder")
    ] = None,
    vision: Annotated[
        Vision, Field(description="give models what the vision tower makes of pictures, or pixels, to train the tower")
    ] = "features",
    samples: Annotated[SampleOptions, Field(description="how samples are taken")] = SAMPLES,
    pictures: Annotated[PictureOptions, Field(description="how pictures are taken")] = PICTURES,
) -> Dataset:
    """Instruction tuning on your own samples in LLaVA's format, with pictures on disk or without.

    Each sample's ``task`` is its language task and its ``client`` the field ``client``; docs/datasets.md describes the
    files. All answers of a conversation are learned; what is judged is the answer to the first question. What the
    vision tower makes of a picture is computed once and kept in ``features``, by content; pixels are read from the
    pictures whenever they are needed.

    Raises UserError naming the file, line and field for whatever does not fit.
    """
    sources = [*_sources(train, images, "train"), *_sources(test or [], images, "test")]

    def read(found: Checkpoint | None) -> tuple[Samples, dict[str, str]]:
        taken = read_samples(sources, found, task=samples.task, metrics=metrics, test_splits=samples.test_splits)
        judges = judged(taken, metrics)
        check_parts(taken)
        named_clients(taken, samples.clients_per_task)
        return taken, judges

    read(None)  # what is wrong with the files themselves is told before anything that takes time
    found = load_checkpoint(checkpoint, longest, cut=samples.too_long == "cut")
    taken, judges = read(found)
    check_frame(judges, taken, found, pictures.pad)
    fields = fields_of(taken, tuple(judges), samples.clients_per_task, samples.seed)
    if vision == "pixels":
        held = pixel_columns(taken, found, pictures.pad)
    else:
        folder = _feature_folder(root, features, sources[0].file)
        held = feature_columns(taken, found, folder, pictures.pad, pictures.feature_type)
    length = max(part.packing.longest for part in taken.parts)
    tables = [
        part.rows.table(tuple(judges), length, found.processor.tokenizer.pad_token_id, column, table)
        for part, column, table in zip(taken.parts, held, fields.tables, strict=True)
    ]
    modalities, tasks = schema_of(found, length, judges, pictures=bool(taken.pictures), vision=vision)
    return Dataset(
        "instructions",
        modalities,
        tasks,
        tables[0],
        tables[1] if len(tables) > 1 else None,
        unit=PICTURE if fields.repeated else None,
        field_labels=fields.labels,
    )


def check_parts(samples: Samples) -> None:
    """Refuse data with nothing to train on, and a test of what is not trained."""
    if not samples.train.tasks:
        raise UserError(
            "data.train: holds no sample to train on; see data.samples.test_splits and data.samples.too_long"
        )
    trained = set(samples.train.tasks)
    for task, place in zip(samples.test.tasks, samples.test.places, strict=True):
        if task not in trained:
            raise unknown("task", task, trained, place=f"{place} (a test sample of a task that is not trained)")
    if not _has_pictures(samples.train) and _has_pictures(samples.test):
        row = next(i for i, picture in enumerate(samples.test.pictures) if picture is not None)
        raise UserError(f"{samples.test.places[row]}, 'image': a test sample has a picture, but no training sample has")


def check_frame(judges: Mapping[str, str], samples: Samples, found: Checkpoint, pad: bool) -> None:
    """Refuse boxes where pictures are not padded to squares: they would be cut, and boxes mean the padded square."""
    boxed = next((task for task, metric in judges.items() if metric == "grounding"), None)
    if boxed is not None and samples.pictures and not pad and not found.pads:
        raise UserError(
            f"data.checkpoint: its image processor does not pad pictures to squares (do_pad), but boxes of the task "
            f"{boxed!r} are shares of the padded square, and a centre crop would cut them; set data.pictures.pad: true"
        )


def _has_pictures(part: Part) -> bool:
    return any(picture is not None for picture in part.pictures)


def _sources(named: str | Sequence[str], images: str | None, part: Literal["train", "test"]) -> list[Source]:
    files = [Path(file) for file in ([named] if isinstance(named, str) else named)]
    folder = None if images is None else existing_folder(images, "data.images")
    return [Source(file, folder or file.parent, part) for file in files]


def _feature_folder(root: Root, features: str | None, beside: Path) -> Path:
    if features is not None:
        return Path(features)
    return (beside.parent if root is None else root) / FEATURES
