"""MOPO, and everything it is made of. `ALGORITHMS` is the only registry of algorithms."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from algorithms.settings import MOPOSettings

if TYPE_CHECKING:
    from algorithms.rllib import OfflineConfig


class AlgorithmEntry(NamedTuple):
    """An algorithm by name, importable without importing Ray or torch."""

    settings: type[MOPOSettings]
    config: str  # 'module:class'

    def config_class(self) -> type[OfflineConfig]:
        """The RLlib config class; importing it imports Ray and torch."""
        module, name = self.config.split(":")
        return getattr(import_module(module), name)


ALGORITHMS: dict[str, AlgorithmEntry] = {
    "mopo": AlgorithmEntry(MOPOSettings, "algorithms.mopo:MOPOConfig"),
}
