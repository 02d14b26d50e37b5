"""Every hyperparameter, with its type, bounds, default and the source of the default.

One flat name space: the keys of a sweep's `fixed` and `grid`, the arguments of
`MOPOConfig().training(...)`, the logged parameters and the hashed identity are
the same names. This module imports neither Ray nor torch, so that a sweep is
validated in an instant.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from algorithms.errors import UserError, expected
from algorithms.registry import Origin

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Widths = Annotated[tuple[Count, ...], Field(min_length=1)]

Part = TypeVar("Part", bound="Settings")


class Settings(BaseModel):
    """A frozen group of hyperparameters; an unknown key is an error, and no type is guessed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def part(self, kind: type[Part]) -> Part:
        """The fields that belong to `kind`, as a `kind`."""
        return kind(**{name: getattr(self, name) for name in kind.model_fields})


class SACSettings(Settings):
    """Soft actor-critic. Learning rates: OfflineRL-Kit's, tuned for D4RL v2."""

    gamma: Fraction = 0.99
    tau: Fraction = 0.005
    actor_lr: Positive = 1e-4
    critic_lr: Positive = 3e-4
    alpha_lr: Positive = 1e-4
    hidden: Widths = Field(default=(256, 256), strict=False)
    num_critics: Count = 2
    target_entropy: float | None = Field(default=None, allow_inf_nan=False)  # None: -A
    batch_size: Count = 256


class EnsembleSettings(Settings):
    """Dynamics ensemble. MBPO, appendix C, and the code of MOPO."""

    num_ensemble: Count = 7
    num_elites: Count = 5
    dynamics_hidden: Widths = Field(default=(200, 200, 200, 200), strict=False)
    dynamics_lr: Positive = 1e-3
    dynamics_batch_size: Count = 256
    # One coefficient per layer, output layer last.
    dynamics_weight_decay: tuple[NonNegative, ...] = Field(
        default=(2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4), strict=False
    )
    dynamics_max_epochs: Count = 200
    dynamics_patience: Count = 5
    holdout_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    holdout_max: Count = 1000

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_elites > self.num_ensemble:
            raise ValueError(
                f"num_elites {self.num_elites} exceeds num_ensemble {self.num_ensemble}: "
                f"at most {self.num_ensemble}"
            )
        layers = len(self.dynamics_hidden) + 1
        if len(self.dynamics_weight_decay) != layers:
            raise ValueError(
                f"dynamics_weight_decay has {len(self.dynamics_weight_decay)} values for {layers} "
                f"layers: give {layers}, output layer last"
            )
        return self


class OfflineSettings(SACSettings, EnsembleSettings):
    """What every offline algorithm here has: model rollouts, a mixed batch, epochs, evaluation."""

    rollout_length: Count = 5
    rollout_batch_size: Count = 50_000
    rollout_retain_epochs: Count = 5
    real_ratio: Fraction = 0.05
    # Cosine: from `actor_lr` to 0 over the run's `epochs` (OfflineRL-Kit).
    actor_lr_schedule: Literal["constant", "cosine"] = "constant"
    epochs: Count = 1000
    gradient_steps_per_epoch: Count = 1000
    evaluation_interval: Count = 1
    evaluation_episodes: Count = 10
    # Of the matrix products of hidden layers in rollouts and gradient steps, forwards and
    # backwards. All else is float32 in any case: parameters, last layers, sums, activations,
    # losses, the optimizer, and the whole of ensemble training and evaluation.
    matmul_dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def real_rows(self) -> int:
        """Rows of a batch that come from the data: 12 of 256 at 5 %."""
        return int(self.batch_size * self.real_ratio + 1e-9)  # 100 * 0.29 is 28.999...

    @property
    def uses_model(self) -> bool:
        """Whether any row of a batch is the model's; without one there is no ensemble at all."""
        return self.real_rows < self.batch_size

    @property
    def without_effect(self) -> frozenset[str]:
        """Fields that change nothing, given the others: they are no part of a result's identity."""
        if self.uses_model:
            return frozenset()
        rollouts = {"rollout_length", "rollout_batch_size", "rollout_retain_epochs"}
        return frozenset(rollouts | EnsembleSettings.model_fields.keys())

    @property
    def rollout_penalty(self) -> str | None:
        """The penalty by which the rewards of model rollouts are less, if one has an effect."""
        return None

    @property
    def matched_penalty(self) -> str | None:
        """The penalty whose mean over an ensemble's holdout decides a coefficient, if one does."""
        return None

    @property
    def origins(self) -> frozenset[Origin]:
        """The plugins of which the values that have an effect come."""
        return frozenset()

    @model_validator(mode="after")
    def _evaluated_at_the_end(self) -> Self:
        if self.epochs % self.evaluation_interval:
            raise ValueError(
                f"evaluation_interval {self.evaluation_interval} does not divide epochs "
                f"{self.epochs}: the last epoch must be evaluated"
            )
        return self


def validated(kind: type[Part], values: Mapping[str, Any]) -> Part:
    """`kind(**values)`.

    Raises:
        UserError: the first thing that is wrong with `values`, in one sentence.
    """
    unknown = sorted(values.keys() - kind.model_fields.keys())
    if unknown:
        raise UserError(expected("setting", unknown[0], kind.model_fields))
    try:
        return kind(**values)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        raise UserError(": ".join([*map(str, detail["loc"][:1]), reason(detail)])) from None


def auto_or_bool(value: object, key: str = "") -> bool | str:
    """`value`, if it is auto, true or false; `key` is what the user calls it, for the message.

    Raises:
        UserError: it is something else.
    """
    if isinstance(value, bool) or value == "auto":
        return value
    raise UserError(f"{key}must be auto, true or false, got {reprlib.repr(value)}")


_EXPECTED_TYPE = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping of keys to values",
    "model_type": "text or a mapping with 'id'",
    "finite_number": "a finite number",
}


def reason(detail: Any) -> str:
    """One of pydantic's error details in words a user knows: what is needed, what was given."""
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    got = reprlib.repr(detail["input"])
    if detail["type"] in _EXPECTED_TYPE:
        return f"must be {_EXPECTED_TYPE[detail['type']]}, got {got}"
    return f"{detail['msg'].replace('Input should', 'must')}, got {got}"
