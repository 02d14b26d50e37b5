"""The hyperparameters of MOBILE."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import field_validator, model_validator

from algorithms.presets import by_task
from algorithms.settings import Count, NonNegative, OfflineSettings, Positive


class MOBILESettings(OfflineSettings):
    """MOBILE (Sun et al. 2023, ICML); defaults of OfflineRL-Kit, the authors' own code."""

    dynamics_max_epochs: Count = 30
    penalty_coef: NonNegative = 1.5
    num_next_samples: Count = 10  # of (s', a'), of each elite
    backup: Literal["deterministic", "soft"] = "deterministic"
    # Targets below 0 become 0: for tasks whose returns are positive.
    clamp_target: bool = True
    alpha: Positive | Literal["auto"] = "auto"  # the entropy's weight; auto: learned
    alpha_max: Positive = 1.0  # of a learned alpha

    @property
    def penalises(self) -> bool:
        """Whether any target is less than the model's: else MBPO's critics, or SAC's."""
        return self.uses_model and self.penalty_coef > 0.0

    @property
    def without_effect(self) -> frozenset[str]:
        unused = set[str]()
        if not self.uses_model:
            unused.add("penalty_coef")
        if not self.penalises:
            unused.add("num_next_samples")
        if self.alpha != "auto":
            unused |= {"alpha_max", "alpha_lr", "target_entropy"}
        return super().without_effect | unused

    @field_validator("alpha", mode="before")
    @classmethod
    def _number_or_auto(cls, value: object) -> object:
        if isinstance(value, str) and value != "auto":
            raise ValueError(f"must be a number above 0, or auto, got {value!r}")
        return value

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.penalises and self.num_elites < 2:
            raise ValueError(
                f"num_elites {self.num_elites} leaves no members to disagree, whose spread is "
                "MOBILE's penalty: at least 2, or penalty_coef 0"
            )
        return self


# fmt: off
PRESETS = {
    "offlinerlkit_v2": by_task(
        ("penalty_coef", "rollout_length", "alpha"),
        #             medium            replay            expert
        hopper=      [(1.5, 5, 0.2),    (0.1, 5, "auto"), (1.5, 5, "auto")],
        walker2d=    [(0.5, 5, "auto"), (0.5, 1, "auto"), (1.5, 1, "auto")],
        halfcheetah= [(0.5, 5, "auto"), (0.1, 5, "auto"), (2.0, 5, "auto")],
    ),
}
# fmt: on
