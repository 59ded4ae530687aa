"""Where each set comes from, and the checksums its files have there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Files:
    """Files that are downloaded one by one into a folder: name -> checksum (``md5:...`` or ``sha256:...``)."""

    url: str
    folder: str
    checksums: Mapping[str, str]
    note: str = ""


@dataclass(frozen=True)
class Archive:
    """A zip archive, and the folder its content becomes.

    ``url`` + ``file`` is what is downloaded; ``inner`` is an archive inside it that holds the content.
    """

    url: str
    file: str
    folder: str
    checksum: str | None = None
    inner: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Manual:
    """A set that only its user can obtain: ``instructions`` say what to put into ``folder``, for which {place} stands.

    ``folder`` is relative to the folder of downloaded sets; empty, it is that folder.
    """

    instructions: str
    folder: str = ""
    note: str = ""

    def told(self, root: Path | None) -> str:
        """Return the instructions for a folder of downloaded sets, or for one that is not named yet."""
        place = "the folder of downloaded sets" if root is None else f"{root}/"
        if self.folder:
            place = f"{self.folder}/ in {place}" if root is None else f"{place}{self.folder}/"
        return self.instructions.format(place=place)


@dataclass(frozen=True)
class Built:
    """A set made from other sets when it is loaded; none where it ships inside the package."""

    parts: tuple[str, ...] = field(default=())
    note: str = ""


Origin = Files | Archive | Manual | Built

ORIGINS: Mapping[str, Origin] = {
    "mnist": Files(
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        folder="mnist",
        checksums={
            "train-images-idx3-ubyte.gz": "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "md5:d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "md5:9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "md5:ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion-mnist": Files(
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        folder="fashion_mnist",
        checksums={
            "train-images-idx3-ubyte.gz": "sha256:3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "sha256:a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "sha256:346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "sha256:67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
    "fsdd": Archive(
        url="https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/",
        file="v1.0.10.zip",
        folder="free-spoken-digit-dataset",
        note="GitHub makes the archive anew, so it has no fixed checksum; the sound samples are checked once unpacked.",
    ),
    "uci-har": Archive(
        url="https://archive.ics.uci.edu/static/public/240/",
        file="human+activity+recognition+using+smartphones.zip",
        folder="UCI HAR Dataset",
        checksum="sha256:c00b803081a5c797cd5e4b83700a9810b38d53d9d84e01917e090e1fdbc81031",
        inner="UCI HAR Dataset.zip",
        note="The publisher states no checksum; the one used is that which several public repositories record.",
    ),
    "coco-mini": Manual(
        "Photographs of COCO carry their photographers' licences, many of them non-commercial, so polyfed does not "
        "hand them out. Put images.tar and annotations.jsonl.gz (docs/datasets.md has their format) into "
        "{place}.",
        folder="coco_mini",
    ),
    "scienceqa-text": Manual(
        "ScienceQA is licensed CC BY-NC-SA 4.0; get it from its authors (arXiv:2209.09513). Put "
        "scienceqa_text.jsonl.gz (docs/datasets.md has its format) into {place}."
    ),
    "cmu-mosei": Manual(
        "Get the word-aligned features of CMU-MOSEI from its authors (the CMU-MultimodalSDK leads to them). They are "
        "mostly pickles; polyfed opens none, since a pickle may run any program. Convert them yourself "
        "(docs/datasets.md has the lines) and put train.npz, valid.npz and test.npz into {place}.",
        folder="cmu_mosei",
    ),
    "vehicle-sensor": Manual(
        "Get the features of M. F. Duarte and Y. H. Hu's vehicle data from their authors (SensIT, University of "
        "Wisconsin-Madison) or, as one Matlab file, from a repository for federated multi-task learning; convert them "
        "(docs/datasets.md has the lines) and put vehicle_sensor.npz into {place}."
    ),
    "avdigits": Built(),
    "av-mnist": Built(("mnist", "fsdd")),
    "cg-mnist": Built(("mnist",)),
    "multi-fmnist": Built(("mnist", "fashion-mnist")),
}
