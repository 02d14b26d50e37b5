"""A sweep file (YAML) -> a validated `Sweep` -> its variants, the cells of a results table.

Imports neither Ray nor torch, so that a mistake is told in an instant. Every
mistake is one sentence: the path of the key, what is wrong, what is allowed.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from algorithms import ALGORITHMS
from algorithms.data.checks import refuse_unknown_checks
from algorithms.data.file import absolute_id
from algorithms.data.spec import FILE_PREFIX, FILE_SEPARATOR, Choices
from algorithms.errors import UserError, expected
from algorithms.loading import Plugin, find_plugins, load_plugins
from algorithms.presets import PRESETS
from algorithms.seeds import seed_list
from algorithms.settings import auto_or_bool
from orchestrator.sweep.messages import model_sentence, refuse_duplicates, unknown_key
from orchestrator.sweep.variants import ALGORITHM, Variant, check_names, expand, slug
from orchestrator.sweep.yaml_file import parse_yaml, read_yaml
from orchestrator.tracking.names import TRACKERS


def _entry(value: object) -> object:
    return {"id": value} if isinstance(value, str) else value


class DatasetEntry(Choices):
    """One of the sweep's data sets; a plain string in the YAML is an `id` alone.

    Several files of one's own are one data set: a pattern, or a list of `file:` paths.
    """

    id: str
    size: Annotated[int, Field(ge=1)] | None = None

    @field_validator("id", mode="before")
    @classmethod
    def _joined(cls, value: object) -> object:
        if not isinstance(value, list):
            return value
        for path in value:
            if not isinstance(path, str) or not path.startswith(FILE_PREFIX):
                raise UserError(f"lists {FILE_PREFIX} paths only, got {reprlib.repr(path)}")
        if not value:
            raise UserError(f"must list at least one {FILE_PREFIX} path")
        return FILE_PREFIX + FILE_SEPARATOR.join(p.removeprefix(FILE_PREFIX) for p in value)

    @field_validator("allow")
    @classmethod
    def _known_checks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        refuse_unknown_checks(value)
        return value


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
    seeds: Annotated[tuple[int, ...], BeforeValidator(seed_list)]
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
    compile: Annotated[bool | str, BeforeValidator(auto_or_bool)] = "auto"
    # Whether epochs are evaluated on a CPU of their own while training goes on; auto: on GPUs,
    # which are expected to wait for MuJoCo longer than they train.
    parallel_evaluation: Annotated[bool | str, BeforeValidator(auto_or_bool)] = "auto"
    # What a lost machine costs at most. A checkpoint holds the model buffer: some 100 MB per seed.
    checkpoint_minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10
    # Python files beside the sweep, or installed modules: `algorithms.plugins`.
    plugins: Annotated[tuple[str, ...], Field(strict=False)] = ()
    trackers: Annotated[tuple[str, ...], Field(strict=False)] = ("mlflow",)

    _loaded_plugins: tuple[Plugin, ...] = PrivateAttr(default=())

    def with_plugins(self, plugins: tuple[Plugin, ...]) -> Self:
        """The sweep, which remembers what was executed to read it."""
        self._loaded_plugins = plugins
        return self

    @property
    def loaded_plugins(self) -> tuple[Plugin, ...]:
        """Those that were executed to read this sweep; workers have to, as well."""
        return self._loaded_plugins

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

    @field_validator("trackers")
    @classmethod
    def _known_trackers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in TRACKERS:
                raise UserError(expected("tracker", name, TRACKERS))
        refuse_duplicates(value)
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


def load_sweep(path: Path, overrides: Mapping[str, object] | None = None) -> Sweep:
    """Read and validate a sweep file; its plugins are executed first.

    Args:
        path: of the file.
        overrides: other values by key: `epochs` for what stands in `fixed`, `seeds` or
            `grid.penalty` for the rest.

    Raises:
        UserError: the file cannot be read, is not YAML, a plugin fails, or it holds anything
            that cannot run; data sets alone are checked later, by `cells_of`.
    """
    content = read_yaml(path)
    if content is None:
        raise UserError(f"{path} is empty: a sweep needs name, algorithm, datasets, seeds")
    if not isinstance(content, dict):
        raise UserError(f"{path} must be a mapping of keys to values, got {reprlib.repr(content)}")
    for key, value in (overrides or {}).items():
        _override(content, key, value)
    plugins = find_plugins(_plugin_names(content.get("plugins", [])), path.absolute().parent)
    load_plugins(plugins)
    try:
        sweep = Sweep.model_validate(content)
    except ValidationError as error:
        raise UserError(model_sentence(error, Sweep, DatasetEntry)) from None
    return _with_absolute_paths(sweep, path.absolute().parent).with_plugins(plugins)


def _with_absolute_paths(sweep: Sweep, folder: Path) -> Sweep:
    """The sweep, whose files of data lie where its own file says: beside it."""
    entries = []
    for index, entry in enumerate(sweep.datasets):
        try:
            given = absolute_id(entry.id, folder)
        except UserError as error:
            raise UserError(f"datasets[{index}]: {error}") from None
        entries.append(entry.model_copy(update={"id": given}))
    return sweep.model_copy(update={"datasets": tuple(entries)})


def _plugin_names(value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise UserError(
            f"plugins: must be a list of Python files or module names, got {reprlib.repr(value)}"
        )
    return value


def parse_overrides(assignments: Sequence[str]) -> dict[str, object]:
    """`KEY=VALUE` of a command line, the value as in the file, as keys and values.

    Raises:
        UserError: one has no `=`, or its value is not YAML.
    """
    parsed = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator or not key:
            raise UserError(f"--set {assignment}: give KEY=VALUE, for example epochs=5 or seeds=3")
        parsed[key] = parse_yaml(text, f"--set {key}")
    return parsed


def _override(content: dict[str, Any], key: str, value: object) -> None:
    """Set one key, as if the file had it."""
    keys = key.split(".")
    if keys[0] not in Sweep.model_fields:
        keys = ["fixed", *keys]
    section = content
    for part in keys[:-1]:
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            raise UserError(f"{key}: {part} holds no keys")
    section[keys[-1]] = value
