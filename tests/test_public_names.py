"""The names of ``import polyfed``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import polyfed
from polyfed.registry import Registry


def in_a_new_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_all_is_complete_and_in_order() -> None:
    constants = [name for name in polyfed.__all__ if name.isupper()]
    classes = [name for name in polyfed.__all__ if name[0].isupper() and not name.isupper()]
    functions = [name for name in polyfed.__all__ if name.islower()]
    assert polyfed.__all__ == sorted(constants) + sorted(classes) + sorted(functions)
    assert set(polyfed.__all__) == set(polyfed._MODULE_OF)
    assert set(polyfed.__all__) <= set(dir(polyfed))


@pytest.mark.parametrize("name", polyfed.__all__)
def test_every_name_is_what_it_says(name: str) -> None:
    value = getattr(polyfed, name)
    assert not isinstance(value, ModuleType)
    assert isinstance(value, Registry) if name.isupper() else callable(value)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'fly'"):
        polyfed.fly  # noqa: B018


def test_importing_polyfed_does_not_import_torch() -> None:
    code = "import sys, polyfed; print(polyfed.__version__, 'torch' in sys.modules)"
    assert in_a_new_process(code) == f"{polyfed.__version__} False"


def test_no_module_hides_a_function_of_its_name() -> None:
    modules = {path.stem for path in Path(polyfed.__file__).parent.iterdir()}
    assert not modules & {name for name in polyfed.__all__ if name.islower()}
