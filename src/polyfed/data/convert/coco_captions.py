"""COCO's captions: ``captions_train2017.json`` and the like.

T.-Y. Lin et al., "Microsoft COCO: Common Objects in Context", arXiv:1405.0312; X. Chen et al., "Microsoft COCO
Captions", arXiv:1504.00325. Layout: ``images`` (id, file_name) and ``annotations`` (image_id, caption).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from polyfed.data.conversations import Conversation, Split
from polyfed.data.convert.job import Job
from polyfed.data.json_fields import Fields
from polyfed.data.json_stream import whole

OFFICIAL: dict[str, Split] = {"train": "train", "val": "val"}


def convert(job: Job) -> Iterator[Conversation]:
    """Yield the captions of all files ``captions_*.json``."""
    for path in job.files("captions_*.json", "annotations"):
        content = Fields(whole(path), str(path))
        part = path.stem.removeprefix("captions_")  # train2017
        official = OFFICIAL.get(re.sub(r"\d+$", "", part))
        names = {image.integer("id"): image.text("file_name") for image in content.objects("images")}
        captions: dict[int, list[str]] = {}
        for note in content.objects("annotations"):
            number = note.integer("image_id")
            if number not in names:
                raise note.wrong("image_id", f"{number} is none of the 'images'")
            captions.setdefault(number, []).append(note.text("caption"))
        for number, texts in captions.items():
            name = names[number]
            image = job.picture(str(path), f"{part}/{name}", f"images/{part}/{name}", f"images/{name}", name)
            if image is not None:
                yield from job.captions(str(path), number, image, texts, official)
