"""Methods, nets and presets from outside this repository: files and installed packages that register them.

A plug-in is a Python file, or a module that an installed package names as an entry point in the group
``localpipe.plugins``. Importing it registers what it has. Saved runs name their plug-ins, and are opened with them.
"""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from pipeline.errors import UserError

GROUP = "localpipe.plugins"
"""Group of entry points."""

_loaded: dict[str, ModuleType] = {}


def load_plugin(named: str) -> ModuleType:
    """Imports a plug-in, once.

    Args:
        named: a file ending in .py, or a module that can be imported.

    Raises:
        UserError: there is no such file or module, it fails, or another module has its name.
    """
    name = plugin_name(named)
    if name not in _loaded:
        _loaded[name] = _import_file(Path(name)) if name.endswith(".py") else _import(name, name)
    return _loaded[name]


def plugin_name(named: str) -> str:
    """What a plug-in is saved as: a file by its absolute path, a module by its name."""
    return str(Path(named).expanduser().resolve()) if named.endswith(".py") else named


def load_installed() -> None:
    """Imports the plug-ins of installed packages. Raises UserError as ``load_plugin``."""
    for point in entry_points(group=GROUP):
        load_plugin(point.value.partition(":")[0])


def loaded() -> dict[str, ModuleType]:
    """The plug-ins of this process by what names them: an absolute path, or a module's name."""
    return dict(_loaded)


def _import_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise UserError(f"plug-in {file}: no such file. Give a Python file that registers a method, a net or presets.")
    name = file.stem
    if not name.isidentifier():
        raise UserError(f"plug-in {file}: {name!r} cannot be a module's name. Rename it, with letters, digits and _.")
    there = sys.modules.get(name)
    if there is not None and Path(getattr(there, "__file__", None) or "").resolve() != file:
        raise UserError(f"plug-in {file}: a module called {name!r} is there already. Rename the file.")
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))  # processes that are started later find it by its name
    return _import(name, str(file))


def _import(module: str, named: str) -> ModuleType:
    try:
        imported = importlib.import_module(module)
    except Exception as error:  # whatever somebody's file raises
        raise UserError(f"plug-in {named}: importing it failed: {type(error).__name__}: {error}") from error
    if named.endswith(".py") and Path(imported.__file__ or "").resolve() != Path(named):
        raise UserError(f"plug-in {named}: Python finds {imported.__file__} by that name. Rename the file.")
    return imported
