"""The JSON Schema of sweep files: editors complete and check them with it.

`fixed`, `grid` and `variants` are typed from the algorithms' settings. What holds between keys
(an `evaluation_interval` that divides `epochs`) is checked by `load_sweep` alone.
"""

from __future__ import annotations

from typing import Any

from algorithms import ALGORITHMS
from algorithms.combo.conservatism import IMPORTANCE, PRIORS
from algorithms.data.catalog import CATALOG, D4RL_FILES, TASKS
from algorithms.data.spec import FILE_PREFIX, MINARI_PREFIX
from algorithms.dynamics.penalties import PENALTIES
from algorithms.environments.table import ENVIRONMENTS
from algorithms.presets import PRESETS
from algorithms.seeds import MAX_SEEDS
from orchestrator.sweep.model import DatasetEntry, Sweep
from orchestrator.tracking.names import TRACKERS

AUTO = {"enum": ["auto", True, False]}
# Text that names a row of a table; a plugin may bring others.
NAMES = {"penalty": PENALTIES, "prior": PRIORS, "importance": IMPORTANCE}


def sweep_schema() -> dict[str, Any]:
    """Draft 2020-12."""
    settings = _settings()
    algorithm = _names(ALGORITHMS)
    schema = Sweep.model_json_schema(mode="validation")
    schema.pop("$defs")
    properties: dict[str, Any] = {**schema["properties"]}
    properties |= {
        "algorithm": algorithm,
        "preset": {"enum": list(PRESETS)},
        "seeds": {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": MAX_SEEDS},
                {
                    "type": "array",
                    "items": {"type": "integer", "minimum": 0},
                    "minItems": 1,
                    "uniqueItems": True,
                },
            ]
        },
        "datasets": {"type": "array", "items": _dataset(), "minItems": 1},
        "fixed": _mapping(settings),
        "grid": _mapping(
            {
                key: {"type": "array", "items": value, "minItems": 1, "uniqueItems": True}
                for key, value in {**settings, "algorithm": algorithm}.items()
            }
        ),
        "variants": {
            "type": "object",
            "additionalProperties": _mapping({**settings, "algorithm": algorithm}),
        },
        "compile": AUTO,
        "parallel_evaluation": AUTO,
        "trackers": {"type": "array", "items": {"enum": list(TRACKERS)}, "uniqueItems": True},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A sweep of orchestrator-rl",
        "type": "object",
        "properties": properties,
        "required": ["name", "datasets", "seeds"],
        "additionalProperties": False,
    }


def _settings() -> dict[str, Any]:
    """Every hyperparameter of any algorithm; where two differ in type, either will do."""
    found: dict[str, list[Any]] = {}
    for row in ALGORITHMS.values():
        for key, value in row.settings.model_json_schema(mode="validation")["properties"].items():
            typed = {k: v for k, v in value.items() if k not in ("title", "default")}
            if key in NAMES:
                typed = _names(NAMES[key])
            if typed not in found.setdefault(key, []):
                found[key].append(typed)
    return {key: types[0] if len(types) == 1 else {"anyOf": types} for key, types in found.items()}


def _names(table: Any) -> dict[str, Any]:
    """The names of a table are offered, and others, which may be a plugin's, accepted."""
    return {"anyOf": [{"enum": list(table)}, {"type": "string"}]}


def _dataset() -> dict[str, Any]:
    names = [*CATALOG, *D4RL_FILES]
    file = {"type": "string", "pattern": f"^{FILE_PREFIX}"}
    name = {"anyOf": [{"enum": names}, file, {"type": "string", "pattern": f"^{MINARI_PREFIX}"}]}
    files = {"type": "array", "items": file, "minItems": 1}
    entry = DatasetEntry.model_json_schema(mode="validation")
    keys = entry["properties"] | {"id": {"anyOf": [name, files]}, "task": {"enum": list(TASKS)}}
    keys["env"] = _names(ENVIRONMENTS)
    return {"anyOf": [name, {**_mapping(keys), "required": ["id"]}]}


def _mapping(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}
