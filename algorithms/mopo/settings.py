"""The hyperparameters of MOPO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import field_validator, model_validator

from algorithms.dynamics.penalties import PENALTIES
from algorithms.errors import expected
from algorithms.presets import by_task
from algorithms.registry import Origin
from algorithms.settings import NonNegative, OfflineSettings


class MOPOSettings(OfflineSettings):
    """MOPO (Yu et al. 2020, arXiv 2005.13239)."""

    penalty: str = "max_std"
    penalty_coef: NonNegative = 2.5
    # matched: the coefficient is multiplied by mean(max_std) / mean(penalty) over the ensemble's
    # holdout, so that it means to every penalty what it means to `max_std`.
    penalty_coef_mode: Literal["raw", "matched"] = "raw"

    @property
    def without_effect(self) -> frozenset[str]:
        unused = {"penalty", "penalty_coef"} if not self.uses_model else set[str]()
        # `max_std` is matched to itself.
        if not self.uses_model or self.penalty in ("none", "max_std"):
            unused.add("penalty_coef_mode")
        return super().without_effect | unused

    @property
    def rollout_penalty(self) -> str | None:
        return None if "penalty" in self.without_effect else self.penalty

    @property
    def matched_penalty(self) -> str | None:
        matched = self.penalty_coef_mode == "matched"
        return self.penalty if matched and "penalty_coef_mode" not in self.without_effect else None

    @property
    def origins(self) -> frozenset[Origin]:
        origin = self.rollout_penalty and PENALTIES.origin(self.rollout_penalty)
        return super().origins | ({origin} if origin else set())

    @model_validator(mode="before")
    @classmethod
    def _no_penalty_has_no_coefficient(cls, values: Any) -> Any:
        # A grid over both would train the same thing once for each coefficient.
        if isinstance(values, Mapping) and values.get("penalty") == "none":
            return {**values, "penalty_coef": 0.0}
        return values

    @field_validator("penalty")
    @classmethod
    def _known_penalty(cls, value: str) -> str:
        if value not in PENALTIES:
            raise ValueError(expected("penalty", value, PENALTIES))
        return value


# fmt: off
PRESETS = {
    "offlinerlkit_v2": by_task(
        ("penalty_coef", "rollout_length"),
        #             medium    replay    expert
        hopper=      [(5.0, 5), (2.5, 5), (5.0, 5)],
        walker2d=    [(0.5, 5), (2.5, 1), (2.5, 1)],
        halfcheetah= [(0.5, 5), (0.5, 5), (2.5, 5)],
    ),
    "mopo_v0": by_task(
        ("penalty_coef", "rollout_length"),
        hopper=      [(5.0, 5), (1.0, 5), (1.0, 5)],
        walker2d=    [(5.0, 5), (1.0, 1), (2.0, 1)],
        halfcheetah= [(1.0, 1), (1.0, 5), (5.0, 5)],
    ),
}
# fmt: on
