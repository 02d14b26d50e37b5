"""Whether the functions of plugins return what they have to, told before anything is trained.

`orchestrator run` calls them once on made-up input, in a moment, before it trains ensembles. A
penalty is called again where an algorithm is made, on predictions of the data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from algorithms.dynamics.penalties import PENALTIES, Prediction
from algorithms.environments.table import ENVIRONMENTS
from algorithms.errors import UserError
from algorithms.loading import place_of
from algorithms.settings import OfflineSettings

SEEDS, ROWS = 2, 5
ROUNDING = 1e-5  # of the largest value: how far below 0 is still 0


def check_on_made_up_input(settings: OfflineSettings, env_id: str) -> None:
    """Call the plugins' penalty and termination function that a training would use, if any.

    Raises:
        UserError: one fails, or returns something else than it has to.
    """
    generator = torch.Generator().manual_seed(0)
    row = ENVIRONMENTS[env_id]
    name = settings.rollout_penalty
    if name is not None and PENALTIES.origin(name):
        members = 1 if PENALTIES[name].own_member_only else settings.num_ensemble
        mean = torch.randn(SEEDS, members, ROWS, row.obs_dim + 1, generator=generator)
        std = torch.rand(mean.shape, generator=generator) + 0.1
        member = torch.randint(members, (SEEDS, ROWS), generator=generator)
        check_penalty(name, Prediction(mean, std, member))
    if row.termination is not None and ENVIRONMENTS.origin(env_id) and settings.uses_model:
        next_obs = torch.randn(SEEDS, ROWS, row.obs_dim, generator=generator)
        _check_termination(env_id, row.termination, next_obs)


def check_penalty(name: str, prediction: Prediction) -> Tensor:
    """The values of a penalty at a prediction, `[..., B]`.

    Raises:
        UserError: its function fails, or returns anything but one non-negative number per row.
    """
    formula, what = PENALTIES[name].formula, f"penalty {name!r}"
    value = _call(what, formula, prediction)
    needed = tuple(prediction.member.shape)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise _mistake(what, formula, f"returns {_kind(value)}, not a tensor of numbers")
    if tuple(value.shape) != needed:
        raise _mistake(
            what,
            formula,
            f"returns shape {list(value.shape)} for a mean of shape "
            f"{list(prediction.mean.shape)}: one number per row is {list(needed)}",
        )
    if bad := int((~value.isfinite()).sum()):
        raise _mistake(
            what, formula, f"is NaN or infinite in {bad} of {value.numel()} rows: it must be finite"
        )
    if (lowest := float(value.min())) < -ROUNDING * max(1.0, float(value.max())):
        raise _mistake(what, formula, f"is negative, {lowest:.3g}: it must be 0 or more")
    return value


def _check_termination(env_id: str, termination: Callable[[Any], Any], next_obs: Tensor) -> None:
    what = f"the termination function of {env_id}"
    value = _call(what, termination, next_obs)
    needed = list(next_obs.shape[:-1])
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        raise _mistake(what, termination, f"returns {_kind(value)}, not a tensor of booleans")
    if list(value.shape) != needed:
        raise _mistake(
            what,
            termination,
            f"returns shape {list(value.shape)} for observations of shape "
            f"{list(next_obs.shape)}: one boolean per row is {needed}",
        )


def _call(what: str, function: Callable[[Any], Any], argument: Any) -> Any:
    try:
        with torch.no_grad():
            return function(argument)
    except Exception as error:
        raise UserError(f"plugin {place_of(error, _file(function))} (in {what})") from error


def _mistake(what: str, function: Callable[[Any], Any], sentence: str) -> UserError:
    code = getattr(function, "__code__", None)
    line = f", line {code.co_firstlineno}" if code else ""
    return UserError(f"plugin {_file(function)}{line}: {what} {sentence}")


def _file(function: Callable[[Any], Any]) -> str:
    code = getattr(function, "__code__", None)
    return code.co_filename if code else type(function).__module__


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')}"
    return f"{type(value).__name__}"
