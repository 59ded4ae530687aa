"""MNIST and Fashion-MNIST: 28x28 grey images in four idx files each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from polyfed.data.avdigits import DIGIT_NAMES
from polyfed.data.columns import TensorColumn
from polyfed.data.dataset import Dataset, Root
from polyfed.data.idx import Bytes, read_images, read_labels
from polyfed.data.samples import Table
from polyfed.data.schema import Modality, Task
from polyfed.data.source import Layout, locate
from polyfed.errors import UserError

STEMS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
GARMENT_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@dataclass(frozen=True)
class ImageArrays:
    """One split: ``images`` (N, 28, 28) uint8, 0 background to 255 ink, and ``labels`` (N,) uint8, 0 to 9."""

    images: Bytes
    labels: Bytes


def layouts(folder: str) -> tuple[Layout, ...]:
    """Where the four files may lie: ``<folder>/`` as published, or as torchvision stores them; .gz or plain."""
    torchvision = f"{TITLES[folder].replace('-', '')}/raw"
    places = {"idx": folder, "torchvision": torchvision}
    return tuple(
        Layout(name, tuple((f"{place}/{stem}.gz", f"{place}/{stem}") for stem in STEMS))
        for name, place in places.items()
    )


def digits(root: Root, folder: str = "mnist") -> tuple[ImageArrays, ImageArrays]:
    """Read the training and the test split of MNIST (``folder="mnist"``) or Fashion-MNIST (``"fashion_mnist"``).

    Raises UserError where files are missing, damaged, of another shape, or disagree in number.
    """
    paths = locate(TITLES[folder], folder.replace("_", "-"), root, layouts(folder)).paths
    return _split(paths[0], paths[1]), _split(paths[2], paths[3])


def mnist(root: Root) -> Dataset:
    """MNIST handwritten digits: 60,000 training and 10,000 test images.

    Modality ``image`` (1, 28, 28) in [0, 1]; tasks ``digit`` (10 classes) and ``parity`` (even, odd). Source: LeCun
    et al., "Gradient-based learning applied to document recognition", Proc. IEEE 1998.
    """
    tasks = {
        "digit": Task("digit", "classification", classes=10, labels=DIGIT_NAMES),
        "parity": Task("parity", "classification", classes=2, labels=("even", "odd")),
    }
    return _dataset("mnist", digits(root), tasks, lambda label: {"digit": label, "parity": label % 2})


def fashion_mnist(root: Root) -> Dataset:
    """Fashion-MNIST pictures of clothing: 60,000 training and 10,000 test images.

    Modality ``image`` (1, 28, 28) in [0, 1]; task ``garment`` (10 classes). Source: Xiao, Rasul and Vollgraf,
    arXiv:1708.07747.
    """
    tasks = {"garment": Task("garment", "classification", classes=10, labels=GARMENT_NAMES)}
    return _dataset("fashion-mnist", digits(root, "fashion_mnist"), tasks, lambda label: {"garment": label})


def _dataset(
    name: str,
    splits: tuple[ImageArrays, ImageArrays],
    tasks: Mapping[str, Task],
    targets: Callable[[Tensor], Mapping[str, Tensor]],
) -> Dataset:
    def table(part: ImageArrays) -> Table:
        image = TensorColumn(torch.from_numpy(part.images).unsqueeze(1), scale=1 / 255)
        labels = torch.from_numpy(part.labels).long()
        return Table({"image": image}, {task: TensorColumn(values) for task, values in targets(labels).items()})

    image = Modality("image", "image", (1, 28, 28))
    return Dataset(name, {"image": image}, tasks, train=table(splits[0]), test=table(splits[1]))


def _split(image_file: Path, label_file: Path) -> ImageArrays:
    images, labels = read_images(image_file), read_labels(label_file)
    if images.shape[1:] != (28, 28):
        raise UserError(f"{image_file}: images are {images.shape[1]}x{images.shape[2]}, expected 28x28")
    if len(images) != len(labels):
        raise UserError(f"{image_file} holds {len(images)} images but {label_file} {len(labels)} labels")
    if len(labels) and labels.max() > 9:
        raise UserError(f"{label_file}: row {int(labels.argmax())} has the label {labels.max()}, expected 0 to 9")
    return ImageArrays(images, labels)
