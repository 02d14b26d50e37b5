"""Tables that plugins may add rows to: penalties, environments and algorithms by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, NamedTuple, TypeVar

from algorithms.errors import UserError

Row = TypeVar("Row")


class Origin(NamedTuple):
    """Where a row comes from that is not the project's own."""

    plugin: str  # a file's name, or a module's
    sha256: str  # hex, of its source: part of the keys of what uses the row


_ORIGIN: ContextVar[Origin | None] = ContextVar("origin", default=None)


@contextmanager
def registering(origin: Origin) -> Iterator[None]:
    """Within it, rows that are added to any table are this plugin's."""
    token = _ORIGIN.set(origin)
    try:
        yield
    finally:
        _ORIGIN.reset(token)


def is_registering() -> bool:
    """Whether rows that are added now are a plugin's."""
    return _ORIGIN.get() is not None


class Registry(dict[str, Row]):
    """Rows by name, in the order in which they were added: the project's own, then plugins'.

    The rows of a plugin are kept for good, and can be seen while the plugin is active: what one
    sweep brings along is not there for the next.

    Args:
        what: one row, in a word: `penalty`.
    """

    everyone: ClassVar[list[Registry[Any]]] = []

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self._origins: dict[str, Origin | None] = {}  # of the rows that can be seen
        self._rows: dict[Origin | None, dict[str, Row]] = {None: {}}
        Registry.everyone.append(self)

    def add(self, name: str, row: Row) -> None:
        """Enter a row.

        Raises:
            UserError: there is a row of that name.
        """
        origin = _ORIGIN.get()
        self._show(name, row, origin)
        self._rows.setdefault(origin, {})[name] = row

    def replace(self, name: str, row: Row) -> None:
        """Change a row that was added just now, by the same plugin."""
        origin = _ORIGIN.get()
        assert self._origins[name] == origin
        self[name] = self._rows[origin][name] = row

    def origin(self, name: str) -> Origin | None:
        """The plugin that a row comes from; None of the project's own."""
        return self._origins[name]

    @property
    def built_in(self) -> list[str]:
        """The names of the project's own rows."""
        return list(self._rows[None])

    def activate(self, origins: Iterable[Origin]) -> None:
        """Show the project's own rows and those of these plugins, and no others.

        Raises:
            UserError: two have a row of the same name.
        """
        self.clear()
        self._origins.clear()
        for origin in (None, *origins):
            for name, row in self._rows.get(origin, {}).items():
                self._show(name, row, origin)

    def forget(self, origin: Origin) -> None:
        """Drop the rows of a plugin that failed half-way."""
        self._rows.pop(origin, None)

    def _show(self, name: str, row: Row, origin: Origin | None) -> None:
        if name in self:
            other = self._origins[name]
            owner = f"plugin {other.plugin}" if other else "the project itself"
            if other == origin:
                raise UserError(f"{self.what} {name!r} is there twice: rename one")
            raise UserError(f"{self.what} {name!r} exists already, from {owner}: rename yours")
        self[name] = row
        self._origins[name] = origin
