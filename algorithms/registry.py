"""Tables that plugins may add rows to: penalties, environments and algorithms by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, TypeVar

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


class Registry(dict[str, Row]):
    """Rows by name, in the order in which they were added.

    Args:
        what: one row, in a word: `penalty`.
    """

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self._origins: dict[str, Origin | None] = {}

    def add(self, name: str, row: Row) -> None:
        """Enter a row. A plugin that is loaded again replaces its own.

        Raises:
            UserError: somebody else has a row of that name.
        """
        origin = _ORIGIN.get()
        if name in self:
            other = self._origins[name]
            if (other and other.plugin) != (origin and origin.plugin):
                owner = f"plugin {other.plugin}" if other else "the project itself"
                raise UserError(f"{self.what} {name!r} exists already, from {owner}: rename yours")
        self[name] = row
        self._origins[name] = origin

    def origin(self, name: str) -> Origin | None:
        """The plugin that a row comes from; None of the project's own."""
        return self._origins[name]

    @property
    def built_in(self) -> list[str]:
        """The names of the project's own rows."""
        return [name for name, origin in self._origins.items() if origin is None]
