"""The selections polyfed knows, by name."""

from __future__ import annotations

from polyfed.method.select import Selector, everyone, round_robin, uniform
from polyfed.method.select_balanced import bms
from polyfed.method.select_diverse import divfl
from polyfed.method.select_loss import power_of_choice
from polyfed.registry import Registry

SELECTORS: Registry[Selector] = Registry("selection")
SELECTORS.add("all", everyone)
SELECTORS.add("random", uniform)
SELECTORS.add("round_robin", round_robin)
SELECTORS.add("pow-d", power_of_choice)
SELECTORS.add("divfl", divfl)
SELECTORS.add("bms", bms)
