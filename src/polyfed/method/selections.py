"""The selections polyfed knows, by name."""

from __future__ import annotations

from polyfed.method.select import Selector, everyone, uniform
from polyfed.method.select_balanced import bms
from polyfed.method.select_diverse import divfl
from polyfed.registry import Registry

SELECTORS: Registry[Selector] = Registry("selection")
SELECTORS.add("all", everyone)
SELECTORS.add("random", uniform)
SELECTORS.add("divfl", divfl)
SELECTORS.add("bms", bms)
