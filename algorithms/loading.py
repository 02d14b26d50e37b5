"""How a plugin gets to where it is needed: found on the driver, executed from its source anywhere.

`plugins.py` has what a plugin says.
"""

from __future__ import annotations

import hashlib
import linecache
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from pydantic import BaseModel, ConfigDict

from algorithms.errors import UserError
from algorithms.registry import Origin, Registry, registering

ENTRY_POINTS = "orchestrator.plugins"


class Plugin(BaseModel):
    """A file by its source, or an installed module by its name."""

    model_config = ConfigDict(frozen=True)

    name: str  # as the sweep has it
    path: str  # of the source, where it was found
    sha256: str  # hex, of the source
    source: str | None  # of a file; None of a module, which every machine has installed

    @property
    def origin(self) -> Origin:
        """What its rows are known by."""
        return Origin(self.name, self.sha256)

    @property
    def module_name(self) -> str:
        """What `sys.modules` calls it: pickles of its classes look there."""
        if self.source is None:
            return self.name
        stem = re.sub(r"\W", "_", Path(self.path).stem)
        known_by = hashlib.sha256(f"{self.name}|{self.sha256}".encode()).hexdigest()
        return f"orchestrator_plugin_{stem}_{known_by[:8]}"


def find_plugins(names: Iterable[str], folder: Path) -> tuple[Plugin, ...]:
    """The plugins of a sweep, and those that installed packages offer as entry points.

    Args:
        names: paths of Python files, relative to `folder`, or names of installed modules.
        folder: of the sweep file.

    Raises:
        UserError: a file or module is not there.
    """
    offered = sorted({entry.value.partition(":")[0] for entry in entry_points(group=ENTRY_POINTS)})
    found = [_find(name, folder) for name in dict.fromkeys([*names, *offered])]
    return tuple({Path(p.path).absolute().resolve(): p for p in reversed(found)}.values())[::-1]


def _find(name: str, folder: Path) -> Plugin:
    if name.endswith(".py") or "/" in name:
        return _find_file(name, folder)
    return _find_module(name)


def _find_file(name: str, folder: Path) -> Plugin:
    path = folder / name
    try:
        if name.startswith("~"):
            path = Path(name).expanduser()
        source = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError, RuntimeError) as error:
        reason = "it is not a text file" if isinstance(error, UnicodeDecodeError) else error
        reason = getattr(error, "strerror", None) or reason
        raise UserError(f"plugin {path} cannot be read: {reason}") from None
    sha256 = hashlib.sha256(source.encode()).hexdigest()
    return Plugin(name=name, path=str(path), sha256=sha256, source=source)


def _find_module(name: str) -> Plugin:
    try:
        spec = find_spec(name)
    except Exception as error:  # noqa: BLE001 - of a package that contains it, which is imported
        missing = isinstance(error, ImportError | ValueError)
        if not missing:
            raise UserError(f"plugin {name}: {_sentence(error)}") from None
        spec = None
    if spec is None or not spec.origin or not spec.has_location:
        raise UserError(f"plugin {name}: no such module is installed; a file is named with its .py")
    # Of a package all files count: the module may import its neighbours.
    top = find_spec(name.partition(".")[0])
    root = Path(str(top.origin if top and top.has_location else spec.origin))
    files = sorted(root.parent.rglob("*.py")) if root.name == "__init__.py" else [root]
    digest = hashlib.sha256(name.encode())
    for path in files:
        digest.update(path.relative_to(root.parent).as_posix().encode() + path.read_bytes())
    return Plugin(name=name, path=spec.origin, sha256=digest.hexdigest(), source=None)


_LOADED: set[Origin] = set()  # what this process has executed
_ACTIVE: list[Origin] = []  # whose rows can be seen


def load_plugins(plugins: Sequence[Plugin]) -> None:
    """Make the rows of these plugins visible, and those of no others.

    What this process has not executed yet is executed.

    Raises:
        UserError: one fails, with its file and line.
    """
    wanted = [plugin.origin for plugin in plugins]
    if wanted == _ACTIVE:
        return
    _activate([])
    for plugin in plugins:
        try:
            if plugin.origin not in _LOADED:
                with registering(plugin.origin):
                    _execute(plugin)
                _LOADED.add(plugin.origin)
                _ACTIVE.append(plugin.origin)
            else:
                _activate([*_ACTIVE, plugin.origin])
        except (Exception, SystemExit) as error:
            if plugin.origin not in _LOADED:
                for table in Registry.everyone:
                    table.forget(plugin.origin)
            _activate([])
            raise UserError(f"plugin {place_of(error, plugin.path)}") from error


def _activate(origins: list[Origin]) -> None:
    for table in Registry.everyone:
        table.activate(origins)
    _ACTIVE[:] = origins


def _execute(plugin: Plugin) -> None:
    if plugin.source is None:
        _import(plugin)
        return
    module = ModuleType(plugin.module_name)
    module.__file__ = plugin.path
    # Tracebacks show its lines on machines that do not have the file.
    lines = plugin.source.splitlines(keepends=True)
    linecache.cache[plugin.path] = (len(plugin.source), None, lines, plugin.path)
    sys.modules[module.__name__] = module
    try:
        code = compile(plugin.source, plugin.path, "exec", dont_inherit=True)
        exec(code, module.__dict__)  # noqa: S102 - what a plugin is for
    except BaseException:
        del sys.modules[module.__name__]
        raise


def _import(plugin: Plugin) -> None:
    """Import an installed module, again if it was imported before: then it added no rows."""
    if _find_module(plugin.name).sha256 != plugin.sha256:
        raise UserError("another version is installed here than where the sweep was read")
    top = plugin.name.partition(".")[0]
    for name in [n for n in sys.modules if f"{n}.".startswith(f"{top}.")]:
        del sys.modules[name]
    import_module(plugin.name)


def place_of(error: BaseException, path: str) -> str:
    """File, line and reason of what went wrong in a file, or in a package by its `__init__.py`."""
    if isinstance(error, SyntaxError) and error.filename == path:
        at = f", line {error.lineno}" if error.lineno else ""
        return f"{path}{at}: {type(error).__name__}: {error.msg}"
    package = Path(path).parent if Path(path).name == "__init__.py" else None
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        in_package = package is not None and Path(frame.filename).is_relative_to(package)
        if frame.filename == path or in_package:
            return f"{frame.filename}, line {frame.lineno}: {_sentence(error)}"
    return f"{path}: {_sentence(error)}"


def _sentence(error: BaseException) -> str:
    """What went wrong, in one line."""
    text = " ".join(str(error).split("\n")[0].split())
    if isinstance(error, UserError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
