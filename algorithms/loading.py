"""How a plugin gets to where it is needed: found on the driver, executed from its source anywhere.

`plugins.py` has what a plugin says.
"""

from __future__ import annotations

import hashlib
import linecache
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
from algorithms.registry import Origin, registering

ENTRY_POINTS = "orchestrator.plugins"


class Plugin(BaseModel):
    """A file by its source, or an installed module by its name."""

    model_config = ConfigDict(frozen=True)

    name: str  # as the sweep has it
    path: str  # of the source, where it was found
    sha256: str  # hex, of the source
    source: str | None  # of a file; None of a module, which every machine has installed

    @property
    def module_name(self) -> str:
        """What `sys.modules` calls it: pickles of its classes look there."""
        if self.source is None:
            return self.name
        return f"orchestrator_plugin_{Path(self.path).stem}_{self.sha256[:8]}"


def find_plugins(names: Iterable[str], folder: Path) -> tuple[Plugin, ...]:
    """The plugins of a sweep, and those that installed packages offer as entry points.

    Args:
        names: paths of Python files, relative to `folder`, or names of installed modules.
        folder: of the sweep file.

    Raises:
        UserError: a file or module is not there.
    """
    offered = [entry.module for entry in entry_points(group=ENTRY_POINTS)]
    return tuple(_find(name, folder) for name in dict.fromkeys([*names, *offered]))


def _find(name: str, folder: Path) -> Plugin:
    if name.endswith(".py") or "/" in name:
        path = folder / name
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not a text file"
            raise UserError(f"plugin {path} cannot be read: {reason}") from None
        sha256 = hashlib.sha256(source.encode()).hexdigest()
        return Plugin(name=name, path=str(path), sha256=sha256, source=source)
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin:
        raise UserError(f"plugin {name}: no such module is installed; a file is named with its .py")
    root = Path(spec.origin)
    digest = hashlib.sha256()
    for path in sorted(root.parent.rglob("*.py")) if root.name == "__init__.py" else [root]:
        digest.update(path.read_bytes())
    return Plugin(name=name, path=spec.origin, sha256=digest.hexdigest(), source=None)


_LOADED: dict[str, str] = {}  # SHA-256 by name: what this process has executed last


def load_plugins(plugins: Sequence[Plugin]) -> None:
    """Execute plugins that this process has not executed yet; rows they had before are replaced.

    Raises:
        UserError: one fails, with its file and line.
    """
    for plugin in plugins:
        if _LOADED.get(plugin.name) == plugin.sha256:
            continue
        with registering(Origin(plugin.name, plugin.sha256)):
            try:
                _execute(plugin)
            except Exception as error:
                raise UserError(f"plugin {_where(plugin, error)}") from error
        _LOADED[plugin.name] = plugin.sha256


def _execute(plugin: Plugin) -> None:
    if plugin.source is None:
        if plugin.name in sys.modules:
            sys.modules.pop(plugin.name)  # imported before, its rows were nobody's
        import_module(plugin.name)
        return
    module = ModuleType(plugin.module_name)
    module.__file__ = plugin.path
    # Tracebacks show its lines on machines that do not have the file.
    lines = plugin.source.splitlines(keepends=True)
    linecache.cache[plugin.path] = (len(plugin.source), None, lines, plugin.path)
    sys.modules[module.__name__] = module
    try:
        exec(compile(plugin.source, plugin.path, "exec"), module.__dict__)  # noqa: S102
    except BaseException:
        del sys.modules[module.__name__]
        raise


def _where(plugin: Plugin, error: Exception) -> str:
    """File, line and reason of what went wrong in a plugin, in one sentence."""
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    if isinstance(error, UserError):
        reason = str(error)
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == plugin.path]
    return f"{plugin.path}, line {frames[-1].lineno}: {reason}" if frames else (
        f"{plugin.path}: {reason}"
    )  # fmt: skip
