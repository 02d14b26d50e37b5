"""What one row of `ALGORITHMS` says. Importing it imports neither Ray nor torch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from algorithms.presets import Table
from algorithms.settings import OfflineSettings

if TYPE_CHECKING:
    from algorithms.sac.agent import SAC


class Algorithm(NamedTuple):
    """An algorithm by name.

    Attributes:
        base: whose code it is: with the same settings, it is the same training.
        settings: its hyperparameters.
        agent: its agent, as a class, or as `module:class` so that torch is imported when needed.
        pinned: settings that make it what it is; a sweep may not change them.
        presets: by the name of a preset, task -> settings; None: no task's values apply to it.
    """

    base: str
    settings: type[OfflineSettings]
    agent: type[SAC] | str
    pinned: Mapping[str, Any] = {}
    presets: Mapping[str, Table] | None = None

    def agent_class(self) -> type[SAC]:
        """The class of its agent; imports torch."""
        if not isinstance(self.agent, str):
            return self.agent
        module, name = self.agent.split(":")
        found: type[SAC] = getattr(import_module(module), name)
        return found
