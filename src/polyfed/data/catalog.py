"""The datasets polyfed knows, by name."""

from __future__ import annotations

from polyfed.data.av_mnist import av_mnist
from polyfed.data.avdigits import avdigits
from polyfed.data.cg_mnist import cg_mnist
from polyfed.data.cmu_mosei import cmu_mosei
from polyfed.data.dataset import DATASETS
from polyfed.data.folder import folder
from polyfed.data.fsdd import fsdd
from polyfed.data.instructions import instructions
from polyfed.data.mnist import fashion_mnist, mnist
from polyfed.data.multi_fmnist import multi_fmnist
from polyfed.data.several import SEVERAL, several
from polyfed.data.tiny_scenes import tiny_scenes
from polyfed.data.uci_har import uci_har
from polyfed.data.vehicle_sensor import vehicle_sensor

__all__ = ["DATASETS"]

DATASETS.add("avdigits", avdigits)
DATASETS.add("mnist", mnist)
DATASETS.add("fashion-mnist", fashion_mnist)
DATASETS.add("fsdd", fsdd)
DATASETS.add("uci-har", uci_har)
DATASETS.add("av-mnist", av_mnist)
DATASETS.add("cg-mnist", cg_mnist)
DATASETS.add("multi-fmnist", multi_fmnist)
DATASETS.add("cmu-mosei", cmu_mosei)
DATASETS.add("vehicle-sensor", vehicle_sensor)
DATASETS.add("tiny-scenes", tiny_scenes)
DATASETS.add("instructions", instructions)
DATASETS.add("folder", folder)
DATASETS.add(SEVERAL, several)
