"""MOPO, MOBILE, COMBO, and what they are made of. `ALGORITHMS` has one row for each algorithm."""

from __future__ import annotations

from algorithms.algorithm import Algorithm
from algorithms.combo import settings as combo
from algorithms.mobile import settings as mobile
from algorithms.mopo import settings as mopo
from algorithms.registry import Registry

ALGORITHMS: Registry[Algorithm] = Registry("algorithm")

MOPO = Algorithm("mopo", mopo.MOPOSettings, "algorithms.mopo.agent:MOPO", presets=mopo.PRESETS)
COMBO = Algorithm(
    "combo", combo.COMBOSettings, "algorithms.combo.agent:COMBO", presets=combo.PRESETS
)

ALGORITHMS.add("mopo", MOPO)
ALGORITHMS.add("combo", COMBO)
ALGORITHMS.add(
    "mobile",
    Algorithm(
        "mobile", mobile.MOBILESettings, "algorithms.mobile.agent:MOBILE", presets=mobile.PRESETS
    ),
)
# What is left of them without a penalty, or without a model.
ALGORITHMS.add("mbpo", MOPO._replace(pinned={"penalty": "none"}))
ALGORITHMS.add("sac", MOPO._replace(pinned={"penalty": "none", "real_ratio": 1.0}, presets=None))
ALGORITHMS.add("cql", COMBO._replace(pinned={"real_ratio": 1.0}))
