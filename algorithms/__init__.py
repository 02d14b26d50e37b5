"""MOPO, COMBO, and what they are made of. `ALGORITHMS` is the only registry of algorithms."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from algorithms.settings import COMBOSettings, MOPOSettings, OfflineSettings

if TYPE_CHECKING:
    from algorithms.rllib import OfflineConfig


class AlgorithmEntry(NamedTuple):
    """An algorithm by name, importable without importing Ray or torch."""

    base: str  # whose code it is: with the same settings, it is the same training
    settings: type[OfflineSettings]
    config: str  # 'module:class'
    # Settings that make the algorithm what it is; a sweep may not change them.
    fixed: Mapping[str, Any] = {}

    def config_class(self) -> type[OfflineConfig]:
        """The RLlib config class; importing it imports Ray and torch."""
        module, name = self.config.split(":")
        return getattr(import_module(module), name)


_MOPO = ("mopo", MOPOSettings, "algorithms.mopo:MOPOConfig")
_COMBO = ("combo", COMBOSettings, "algorithms.combo:COMBOConfig")

ALGORITHMS: dict[str, AlgorithmEntry] = {
    "mopo": AlgorithmEntry(*_MOPO),
    "combo": AlgorithmEntry(*_COMBO),
    # What is left of them without a penalty, or without a model.
    "mbpo": AlgorithmEntry(*_MOPO, {"penalty": "none"}),
    "sac": AlgorithmEntry(*_MOPO, {"penalty": "none", "real_ratio": 1.0}),
    "cql": AlgorithmEntry(*_COMBO, {"real_ratio": 1.0}),
}
