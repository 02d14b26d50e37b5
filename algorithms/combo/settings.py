"""The hyperparameters of COMBO."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from algorithms.combo.conservatism import IMPORTANCE, PRIORS
from algorithms.errors import expected
from algorithms.presets import by_task
from algorithms.registry import Origin
from algorithms.settings import Count, Fraction, OfflineSettings, Positive, Widths


class COMBOSettings(OfflineSettings):
    """COMBO (Yu et al. 2021, arXiv 2102.08363); defaults of OfflineRL-Kit, where not said."""

    hidden: Widths = Field(default=(256, 256, 256), strict=False)
    real_ratio: Fraction = 0.5
    beta: Positive | Literal["learned"] = 2.5
    prior: str = "uniform"
    importance: str = "own_density"
    rho_states: Literal["mix", "model"] = "mix"
    maximize_dataset_q: bool = True
    num_action_samples: Count = 10  # of each proposal
    temperature: Positive = 1.0
    backup: Literal["deterministic", "soft"] = "deterministic"
    # The learned beta alone; `COMBO` says what it is. All but the learning rate and the
    # warm-up are in units that scale with the rewards: the data's root mean square reward for
    # beta, the spread of the data's advantages for the threshold, which is negative because
    # sampled actions shall look worse than the data's.
    beta_init: Positive = 1.0
    beta_lr: Positive = 3e-5
    beta_warmup_steps: Annotated[int, Field(ge=0)] = 20_000
    beta_min: Positive = 0.01
    beta_max: Positive = 20.0
    beta_threshold: Annotated[float, Field(allow_inf_nan=False)] = -0.5

    @property
    def learns_beta(self) -> bool:
        return self.beta == "learned"

    @property
    def without_effect(self) -> frozenset[str]:
        unused = set()
        if not self.learns_beta:
            unused = {name for name in COMBOSettings.model_fields if name.startswith("beta_")}
        if self.prior == "previous_policy":
            unused.add("importance")
        return super().without_effect | unused

    @property
    def origins(self) -> frozenset[Origin]:
        rows = (PRIORS.origin(self.prior), IMPORTANCE.origin(self.importance))
        return super().origins | frozenset(filter(None, rows))

    @field_validator("prior")
    @classmethod
    def _known_prior(cls, value: str) -> str:
        if value not in PRIORS:
            raise ValueError(expected("prior", value, PRIORS))
        return value

    @field_validator("importance")
    @classmethod
    def _known_importance(cls, value: str) -> str:
        if value not in IMPORTANCE:
            raise ValueError(expected("importance", value, IMPORTANCE))
        return value

    @field_validator("beta", mode="before")
    @classmethod
    def _number_or_learned(cls, value: object) -> object:
        if isinstance(value, str) and value != "learned":
            raise ValueError(f"must be a number above 0, or learned, got {value!r}")
        return value

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.real_rows == 0:
            raise ValueError(
                f"real_ratio {self.real_ratio} leaves no real rows in a batch, whose Q COMBO "
                "compares with the model's: give a larger real_ratio"
            )
        if self.learns_beta and not self.maximize_dataset_q:
            raise ValueError(
                "beta: learned needs maximize_dataset_q: true, because without the data's Q "
                "there is no gap to control: give beta a number"
            )
        if self.rho_states == "model" and not self.uses_model:
            raise ValueError(
                "rho_states: model needs model rows, but real_ratio 1 leaves none: use mix"
            )
        if not self.beta_min <= self.beta_init <= self.beta_max:
            raise ValueError(
                f"beta_init {self.beta_init} must lie between beta_min {self.beta_min} "
                f"and beta_max {self.beta_max}"
            )
        return self


# fmt: off
PRESETS = {
    # Its weight multiplies against a mean squared error without COMBO's 1/2: beta is half.
    "offlinerlkit_v2": by_task(
        ("beta", "rollout_length"),
        #             medium    replay     expert
        hopper=      [(2.5, 5), (0.25, 5), (2.5, 5)],
        walker2d=    [(2.5, 1), (0.25, 1), (2.5, 1)],
        halfcheetah= [(0.25, 5), (0.25, 5), (2.5, 5)],
    ),
}
# fmt: on
