"""A sweep file (YAML) -> a validated `Sweep` -> its `Trial`s, the cells of a results table.

Imports neither Ray nor torch, so that a mistake is told in an instant. Every
mistake is one sentence: the path of the key, what is wrong, what is allowed.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
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
from algorithms.data.catalog import DEFAULT_SIZE, FILE_PREFIX, DatasetSpec, resolve
from algorithms.dynamics.spec import EnsembleSpec
from algorithms.errors import UserError, expected
from algorithms.identity import content_key, ensemble_seed
from algorithms.presets import PRESETS, preset_settings
from algorithms.settings import EnsembleSettings, OfflineSettings
from orchestrator.sentences import model_sentence, refuse_duplicates, unknown_key
from orchestrator.variants import ALGORITHM, Variant, check_names, expand, slug
from orchestrator.yaml_file import read_yaml

RESULT_FORMAT = 2
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
        refuse_duplicates(value)
        return tuple(value)
    raise UserError(
        f"must be a number of seeds from 1 to {MAX_SEEDS} (2 means seeds 0 and 1) "
        f"or a list of seeds from 0 to 2147483647, got {reprlib.repr(value)}"
    )


def _auto_or_bool(value: object) -> object:
    if value == "auto" or isinstance(value, bool):
        return value
    raise UserError(f"must be auto, true or false, got {reprlib.repr(value)}")


class DatasetEntry(BaseModel):
    """One of the sweep's data sets; a plain string in the YAML is an `id` alone."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: str
    env: str | None = None
    size: Annotated[int, Field(ge=1)] | None = None
    task: str | None = None  # of D4RL, for a file: which of a preset's values apply


class Sweep(BaseModel):
    """A question, and the data sets, variants and seeds that answer it.

    `grid` lists the values of the hyperparameters that vary; every combination is
    a variant. `variants` adds others by name. `fixed` holds what all share that have
    it. All take the fields of the algorithms' settings; what none of them names is the
    preset's, or keeps its default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    question: str = ""
    algorithm: str | None = None  # of variants that do not choose one
    datasets: Annotated[
        tuple[Annotated[DatasetEntry, BeforeValidator(_entry)], ...],
        Field(min_length=1, strict=False),
    ]
    seeds: Annotated[tuple[int, ...], BeforeValidator(_seed_list)]
    preset: str | None = None
    grid: dict[str, list[Any]] = {}
    variants: dict[str, dict[str, Any]] = {}
    fixed: dict[str, Any] = {}
    # per_seed: every seed trains on an ensemble of its own; shared: all on that of seed 0,
    # which is cheaper, but hides the ensemble's share of the spread over seeds.
    dynamics_seeds: Literal["per_seed", "shared"] = "per_seed"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cpus_per_trial: Annotated[int, Field(ge=1)] = 1
    gpus_per_trial: Annotated[float, Field(gt=0, le=1)] = 1  # where trials run on GPUs
    # Whether gradient steps are compiled; auto: in long trainings, where there is a compiler.
    compile: Annotated[bool | str, BeforeValidator(_auto_or_bool)] = "auto"
    # Whether epochs are evaluated on a CPU of their own while training goes on; auto: on GPUs,
    # which are expected to wait for MuJoCo longer than they train.
    parallel_evaluation: Annotated[bool | str, BeforeValidator(_auto_or_bool)] = "auto"
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
    def _known_algorithm(cls, value: str | None) -> str | None:
        if value is not None and value not in ALGORITHMS:
            raise UserError(expected("algorithm", value, ALGORITHMS))
        return value

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, value: str | None) -> str | None:
        if value is not None and value not in PRESETS:
            raise UserError(expected("preset", value, PRESETS))
        return value

    @model_validator(mode="after")
    def _valid_grid(self) -> Self:
        for key, values in self.grid.items():
            if key in self.fixed:
                raise UserError(f"grid.{key}: stands in 'fixed' as well: keep one of the two")
            if not values:
                raise UserError(f"grid.{key}: must list at least one value, got []")
            try:
                refuse_duplicates(values)
            except UserError as error:
                raise UserError(f"grid.{key}: {error}") from None
        return self

    @model_validator(mode="after")
    def _valid_variants(self) -> Self:
        check_names(self.variants)
        variants = self.expanded()
        if ALGORITHM in self.fixed:
            raise UserError("fixed.algorithm: belongs at the top level, in grid or in a variant")
        known = {key for variant in variants for key in variant.row.settings.model_fields}
        for key in self.fixed:
            if key not in known:
                raise UserError(f"fixed.{key}: {unknown_key(key, sorted(known))}")
        taken: dict[str, Variant] = {}
        for variant in variants:
            if "epochs" in variant.choices:
                raise UserError(
                    f"{variant.section}.epochs: belongs in 'fixed', "
                    "because the variants of a table are trained equally long"
                )
            variant.check(self.fixed)
            # A preset's values, which depend on the data set, are valid in themselves.
            label = variant.label(variant.settings(self.fixed, preset={}))
            other = taken.setdefault(slug(label), variant)
            if variant.name is not None and other is not variant:
                raise UserError(
                    f"{variant.section}: names a folder {slug(label)!r}, as "
                    f"{'the grid' if other.name is None else other.section} does: rename one"
                )
        return self

    def expanded(self) -> list[Variant]:
        """The rows of the results table, the grid's first."""
        return expand(self.algorithm, self.grid, self.variants)


@dataclass(frozen=True)
class Trial:
    """One cell of the results table: a variant on a data set, all of its seeds."""

    sweep: str
    algorithm: str
    variant: str  # its name, or 'penalty=max_std, rollout_length=5'; 'default' without choices
    choices: Mapping[str, Any] = field(hash=False)  # the settings that the variant chooses
    preset: Mapping[str, Any] = field(hash=False)  # those that are as the sweep's preset has them
    dataset: DatasetSpec
    settings: OfflineSettings
    seeds: tuple[int, ...]
    dynamics_seeds: str

    @property
    def name(self) -> str:
        """Unique in the sweep; safe as a folder's name and as an MLflow run's."""
        parts = [self.dataset.slug]
        if self.dataset.id.startswith(FILE_PREFIX):
            # Files in different folders may have the same name.
            parts.append(self.dataset.content_hash[:8])
        elif self.dataset.size not in (DEFAULT_SIZE, None):
            parts.append(str(self.dataset.size))
        return f"{slug(self.variant)}__{slug('-'.join(parts))}"

    @property
    def dataset_label(self) -> str:
        """The data set's id, with its size where that is not the default."""
        if self.dataset.recipe is None or self.dataset.size == DEFAULT_SIZE:
            return self.dataset.id
        return f"{self.dataset.id} ({self.dataset.size:,})"

    def ensemble(self, seed: int) -> EnsembleSpec | None:
        """The dynamics ensemble on which `seed` trains; None if it trains without a model."""
        if not self.settings.uses_model:
            return None
        return EnsembleSpec(
            dataset=self.dataset,
            settings=self.settings.part(EnsembleSettings),
            seed=ensemble_seed(seed, self.dynamics_seeds),
        )

    @property
    def ensembles(self) -> list[EnsembleSpec]:
        """All that the seeds train on, each once."""
        specs = filter(None, map(self.ensemble, self.seeds))
        return list({spec.key: spec for spec in specs}.values())

    def result_key(self, seed: int) -> str:
        """Identity of one seed's result: anything that changes what it learns is another one."""
        ensemble = self.ensemble(seed)
        return content_key({**self._identity, "ensemble": ensemble and ensemble.key, "seed": seed})

    @property
    def cell_key(self) -> str:
        """Identity of the cell, whichever of its seeds are trained."""
        if self.settings.uses_model:
            model = {
                "ensemble": self.settings.part(EnsembleSettings).model_dump(mode="json"),
                "dynamics_seeds": self.dynamics_seeds,
            }
        else:
            model = {}
        return content_key({**self._identity, **model})

    @property
    def _identity(self) -> dict[str, Any]:
        settings = self.settings
        # The ensemble's fields stay out because its key stands for them.
        left_out = {*EnsembleSettings.model_fields, *settings.without_effect}
        # At a constant rate, a longer training is the same training continued. A cosine over
        # more epochs is another training, because every epoch's rate is another.
        if settings.actor_lr_schedule == "constant":
            left_out.add("epochs")
        if settings.matmul_dtype == "float32":  # as every result was before there was a choice
            left_out.add("matmul_dtype")
        return {
            "format": RESULT_FORMAT,
            # Of the same settings, MBPO and MOPO without a penalty are one training.
            "algorithm": ALGORITHMS[self.algorithm].base,
            "settings": settings.model_dump(mode="json", exclude=left_out),
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
        raise UserError(f"{path} is empty: a sweep needs name, algorithm, datasets, seeds")
    if not isinstance(content, dict):
        raise UserError(f"{path} must be a mapping of keys to values, got {reprlib.repr(content)}")
    try:
        return Sweep.model_validate(content)
    except ValidationError as error:
        raise UserError(model_sentence(error, Sweep, DatasetEntry)) from None


def trials(sweep: Sweep) -> list[Trial]:
    """The cells of the sweep: every variant on the first data set, then on the next.

    Variants of different names may be the same training; of the grid's combinations,
    those that differ in nothing that has an effect are one.

    Raises:
        UserError: a data set is unknown, missing, unreadable, or listed twice, or the preset
            has no values for it.
    """
    datasets: dict[str, DatasetSpec] = {}
    cells: list[Trial] = []
    for index, entry in enumerate(sweep.datasets):
        try:
            dataset = resolve(entry.id, env=entry.env, size=entry.size, task=entry.task)
            same = datasets.setdefault(dataset.content_hash, dataset)
            if same is not dataset:
                raise UserError(f"{entry.id} holds the same data as {same.id}")
            cells += [_cell(sweep, variant, dataset) for variant in sweep.expanded()]
        except UserError as error:
            raise UserError(f"datasets[{index}]: {error}") from None
    return list({(cell.cell_key, cell.variant): cell for cell in cells}.values())


def _cell(sweep: Sweep, variant: Variant, dataset: DatasetSpec) -> Trial:
    preset: dict[str, Any] = {}
    if sweep.preset is not None:
        preset = preset_settings(sweep.preset, variant.algorithm, dataset.task)
    settings = variant.settings(sweep.fixed, preset)
    in_force = {key: value for key, value in preset.items() if getattr(settings, key) == value}
    return Trial(
        sweep=sweep.name,
        algorithm=variant.algorithm,
        variant=variant.label(settings),
        choices={key: getattr(settings, key) for key in variant.chosen_settings},
        preset={k: v for k, v in in_force.items() if k not in settings.without_effect},
        dataset=dataset,
        settings=settings,
        seeds=sweep.seeds,
        dynamics_seeds=sweep.dynamics_seeds,
    )
