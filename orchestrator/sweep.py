"""A sweep file (YAML) -> a validated `Sweep` -> its `Trial`s, the cells of a results table.

Imports neither Ray nor torch, so that a mistake is told in an instant. Every
mistake is one sentence: the path of the key, what is wrong, what is allowed.
"""

from __future__ import annotations

import difflib
import itertools
import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from algorithms import ALGORITHMS
from algorithms.data.catalog import DEFAULT_SIZE, DatasetSpec, resolve
from algorithms.errors import UserError, expected
from algorithms.identity import EnsembleSpec, content_key, ensemble_seed
from algorithms.settings import EnsembleSettings, OfflineSettings, reason
from orchestrator.yaml_file import read_yaml

RESULT_FORMAT = 1
MAX_SEEDS = 1000


def _entry(value: object) -> object:
    return {"id": value} if isinstance(value, str) else value


def _seed_list(value: object) -> tuple[int, ...]:
    if type(value) is int and 1 <= value <= MAX_SEEDS:
        return tuple(range(value))
    if (
        isinstance(value, list | tuple)
        and 1 <= len(value) <= MAX_SEEDS
        and all(type(seed) is int and 0 <= seed < 2**31 for seed in value)
    ):
        _refuse_duplicates(value)
        return tuple(value)
    raise UserError(
        f"must be a number of seeds from 1 to {MAX_SEEDS} (2 means seeds 0 and 1) "
        f"or a list of seeds from 0 to 2147483647, got {reprlib.repr(value)}"
    )


class DatasetEntry(BaseModel):
    """One of the sweep's data sets; a plain string in the YAML is an `id` alone."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: str
    env: str | None = None
    size: Annotated[int, Field(ge=1)] | None = None


class Sweep(BaseModel):
    """A question, and the data sets, variants and seeds that answer it.

    `grid` lists the values of the hyperparameters that vary; every combination is
    a variant. `fixed` holds those that do not. Both take the fields of the
    algorithm's settings; what neither names keeps its default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    question: str = ""
    algorithm: str
    datasets: Annotated[
        tuple[Annotated[DatasetEntry, BeforeValidator(_entry)], ...],
        Field(min_length=1, strict=False),
    ]
    seeds: Annotated[tuple[int, ...], BeforeValidator(_seed_list)]
    grid: dict[str, list[Any]] = {}
    fixed: dict[str, Any] = {}
    # per_seed: every seed trains on an ensemble of its own; shared: all on that of seed 0,
    # which is cheaper, but hides the ensemble's share of the spread over seeds.
    dynamics_seeds: Literal["per_seed", "shared"] = "per_seed"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cpus_per_trial: Annotated[int, Field(ge=1)] = 1
    # What a lost machine costs at most. A checkpoint holds the model buffer: some 100 MB per seed.
    checkpoint_minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10

    @field_validator("name")
    @classmethod
    def _safe_name(cls, value: str) -> str:
        # The name becomes a folder and an MLflow experiment.
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
            raise UserError(
                f"{reprlib.repr(value)} must be 1 to 64 letters, digits, '.', '_' and '-', "
                "starting with a letter or digit"
            )
        return value

    @field_validator("algorithm")
    @classmethod
    def _known_algorithm(cls, value: str) -> str:
        if value not in ALGORITHMS:
            raise UserError(expected("algorithm", value, ALGORITHMS))
        return value

    @model_validator(mode="after")
    def _valid_variants(self) -> Self:
        allowed = sorted(ALGORITHMS[self.algorithm].settings.model_fields)
        for section, keys in (("grid", self.grid), ("fixed", self.fixed)):
            for key in keys:
                if key not in allowed:
                    raise UserError(f"{section}.{key}: {_unknown_key(key, allowed)}")
        if "epochs" in self.grid:
            raise UserError(
                "grid.epochs: belongs in 'fixed', because more epochs continue the same result"
            )
        for key, values in self.grid.items():
            if key in self.fixed:
                raise UserError(f"grid.{key}: stands in 'fixed' as well: keep one of the two")
            if not values:
                raise UserError(f"grid.{key}: must list at least one value, got []")
            try:
                _refuse_duplicates(values)
            except UserError as error:
                raise UserError(f"grid.{key}: {error}") from None
        for choices in self.combinations():
            self.settings(choices)
        return self

    def combinations(self) -> list[dict[str, Any]]:
        """The grid's values of every variant, the last key varying fastest."""
        return [
            dict(zip(self.grid, values, strict=True))
            for values in itertools.product(*self.grid.values())
        ]

    def settings(self, choices: Mapping[str, Any]) -> OfflineSettings:
        """Every hyperparameter of one variant.

        Raises:
            UserError: a value is of the wrong type, out of bounds, or does not go with another.
        """
        try:
            return ALGORITHMS[self.algorithm].settings(**self.fixed, **choices)
        except ValidationError as error:
            raise UserError(_settings_sentence(error, self.fixed, choices)) from None


@dataclass(frozen=True)
class Trial:
    """One cell of the results table: a variant on a data set, all of its seeds."""

    sweep: str
    algorithm: str
    variant: str  # 'penalty=max_std, rollout_length=5'; 'default' without a grid
    choices: Mapping[str, Any] = field(hash=False)  # the grid's values of this cell
    dataset: DatasetSpec
    settings: OfflineSettings
    seeds: tuple[int, ...]
    dynamics_seeds: str

    @property
    def name(self) -> str:
        """Unique in the sweep; safe as a folder's name and as an MLflow run's."""
        parts = [self.dataset.slug]
        if self.dataset.recipe is None:  # files in different folders may have the same name
            parts.append(self.dataset.content_hash[:8])
        elif self.dataset.size != DEFAULT_SIZE:
            parts.append(str(self.dataset.size))
        return f"{_slug(self.variant)}__{_slug('-'.join(parts))}"

    @property
    def dataset_label(self) -> str:
        """The data set's id, with its size where that is not the default."""
        if self.dataset.recipe is None or self.dataset.size == DEFAULT_SIZE:
            return self.dataset.id
        return f"{self.dataset.id} ({self.dataset.size:,})"

    def ensemble(self, seed: int) -> EnsembleSpec:
        """The dynamics ensemble on which `seed` trains."""
        return EnsembleSpec(
            dataset=self.dataset,
            settings=self.settings.part(EnsembleSettings),
            seed=ensemble_seed(seed, self.dynamics_seeds),
        )

    def result_key(self, seed: int) -> str:
        """Identity of one seed's result: more epochs continue it, anything else is another one."""
        return content_key({**self._identity, "ensemble": self.ensemble(seed).key, "seed": seed})

    @property
    def cell_key(self) -> str:
        """Identity of the cell, whichever of its seeds are trained."""
        ensemble = self.settings.part(EnsembleSettings).model_dump(mode="json")
        return content_key(
            {**self._identity, "ensemble": ensemble, "dynamics_seeds": self.dynamics_seeds}
        )

    @property
    def _identity(self) -> dict[str, Any]:
        # The ensemble's fields stay out because its key stands for them, `epochs` because a
        # longer training is the same training continued.
        left_out = {"epochs", *EnsembleSettings.model_fields}
        return {
            "format": RESULT_FORMAT,
            "algorithm": self.algorithm,
            "settings": self.settings.model_dump(mode="json", exclude=left_out),
            "dataset": self.dataset.content_hash,
            "environment": self.dataset.env_id,
        }


def load_sweep(path: Path) -> Sweep:
    """Read and validate a sweep file.

    Raises:
        UserError: the file cannot be read, is not YAML, or holds anything that cannot run;
            data sets alone are checked later, by `trials`.
    """
    content = read_yaml(path)
    if content is None:
        required = [key for key, info in Sweep.model_fields.items() if info.is_required()]
        raise UserError(f"{path} is empty: a sweep needs {', '.join(required)}")
    if not isinstance(content, dict):
        raise UserError(f"{path} must be a mapping of keys to values, got {reprlib.repr(content)}")
    try:
        return Sweep.model_validate(content)
    except ValidationError as error:
        raise UserError(_sweep_sentence(error)) from None


def trials(sweep: Sweep) -> list[Trial]:
    """The cells of the sweep: every variant on the first data set, then on the next.

    Raises:
        UserError: a data set is unknown, missing, unreadable, or listed twice.
    """
    datasets: dict[str, DatasetSpec] = {}
    for index, entry in enumerate(sweep.datasets):
        try:
            dataset = resolve(entry.id, env=entry.env, size=entry.size)
        except UserError as error:
            raise UserError(f"datasets[{index}]: {error}") from None
        same = datasets.setdefault(dataset.content_hash, dataset)
        if same is not dataset:
            raise UserError(f"datasets[{index}]: {entry.id} holds the same data as {same.id}")
    cells = [
        Trial(
            sweep=sweep.name,
            algorithm=sweep.algorithm,
            variant=_variant(settings, choices),
            choices={key: getattr(settings, key) for key in choices},
            dataset=dataset,
            settings=settings,
            seeds=sweep.seeds,
            dynamics_seeds=sweep.dynamics_seeds,
        )
        for dataset in datasets.values()
        for choices in sweep.combinations()
        for settings in [sweep.settings(choices)]
    ]
    return list({cell.cell_key: cell for cell in cells}.values())  # equal cells once


def _variant(settings: OfflineSettings, keys: Iterable[str]) -> str:
    return ", ".join(f"{key}={_text(getattr(settings, key))}" for key in keys) or "default"


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return "x".join(map(_text, value))
    if isinstance(value, float):
        return str(value).removesuffix(".0").replace("e+", "e")
    return str(value)


def _slug(text: str, longest: int = 96) -> str:
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", text.replace(", ", "_"))
    if len(slug) <= longest:
        return slug
    # File systems end a name at 255 bytes, MLflow at 250 characters.
    return f"{slug[: longest - 9]}-{content_key({'text': text})[:8]}"


# --- pydantic's errors as sentences ---------------------------------------------------------


def _sweep_sentence(error: ValidationError) -> str:
    details = error.errors(include_url=False)
    # A misspelt key is the cause, the key that is therefore missing a consequence.
    detail = next((d for d in details if d["type"] == "extra_forbidden"), details[0])
    path = _path(detail["loc"])
    if detail["type"] == "extra_forbidden":
        model = Sweep if len(detail["loc"]) == 1 else DatasetEntry
        return f"{path}: {_unknown_key(str(detail['loc'][-1]), model.model_fields)}"
    if detail["type"] == "missing":
        return f"{path}: this key is required"
    return f"{path}: {reason(detail)}" if path else reason(detail)


def _settings_sentence(
    error: ValidationError, fixed: Mapping[str, Any], choices: Mapping[str, Any]
) -> str:
    detail = error.errors(include_url=False)[0]
    sentence = reason(detail)
    given = [*(("grid", key) for key in choices), *(("fixed", key) for key in fixed)]
    # A rule between several keys has no location of its own, but its sentence names them.
    named = set(detail["loc"][:1] or re.findall(r"\w+", sentence))
    path = ", ".join(f"{section}.{key}" for section, key in given if key in named)
    return f"{path or 'fixed'}: {sentence}"


def _path(location: tuple[int | str, ...]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return "".join(parts).removeprefix(".")


def _unknown_key(key: str, allowed: Iterable[str]) -> str:
    allowed = list(allowed)
    nearest = difflib.get_close_matches(key, allowed, n=1)
    hint = f" (did you mean {nearest[0]!r})" if nearest else ""
    return f"unknown key{hint}: one of {', '.join(allowed)}"


def _refuse_duplicates(values: Iterable[object]) -> None:
    seen: list[object] = []  # not a set: a value may be a list
    for value in values:
        if value in seen:
            raise UserError(f"{value!r} is listed twice")
        seen.append(value)
