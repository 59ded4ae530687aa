"""Plugins: Python files and modules of the user's, which register their own parts by being imported."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from polyfed.errors import UserError


def located(plugins: object, folder: Path, source: str) -> list[str]:
    """Return the plugins an experiment names; files become absolute, seen from ``folder``.

    Raises UserError naming ``source`` unless they are a list of names (None: there are none).
    """
    if plugins is None:
        return []
    if not isinstance(plugins, list | tuple) or not all(isinstance(plugin, str) and plugin for plugin in plugins):
        raise UserError(f"{source}: plugins: {plugins!r} is not allowed: write a list of files or modules: [own.py]")
    return [str((folder / plugin).resolve()) if plugin.endswith(".py") else plugin for plugin in plugins]


def load(plugin: str) -> None:
    """Import a module or a Python file once. Raises UserError naming it, and the line, where that fails."""
    is_file = plugin.endswith(".py")
    if is_file and not Path(plugin).is_file():
        raise UserError(f"plugins: {plugin}: no such Python file")
    try:
        if is_file:
            _import_file(Path(plugin))
        else:
            importlib.import_module(plugin)
    except Exception as error:  # whatever a user's file may raise
        raise UserError(f"plugins: {plugin}{_line(error, plugin)}: {type(error).__name__}: {error}") from error


def _import_file(path: Path) -> ModuleType:
    name = f"polyfed_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "a name that ends in .py has a loader"
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _line(error: Exception, plugin: str) -> str:
    """Say on which line of the plugin it happened, if it did in the plugin itself."""
    if isinstance(error, SyntaxError):
        return ""  # its message names file and line
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == plugin]
    return f", line {lines[-1]}" if lines else ""
