"""The cells of a sweep's results table: a variant on a data set, all of its seeds.

A cell's keys say what makes a result what it is: results of other sweeps are found by them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from algorithms import ALGORITHMS
from algorithms.data.catalog import CATALOG, full_id
from algorithms.data.source import resolve
from algorithms.data.spec import DatasetSpec
from algorithms.dynamics.spec import EnsembleSpec
from algorithms.environments.table import ENVIRONMENTS, make_env
from algorithms.errors import UserError
from algorithms.identity import content_key, ensemble_seed
from algorithms.presets import preset_settings
from algorithms.registry import Origin
from algorithms.settings import EnsembleSettings, OfflineSettings
from algorithms.storage import Storage
from orchestrator.sweep.model import DatasetEntry, Sweep
from orchestrator.sweep.variants import Variant, slug

RESULT_FORMAT = 2


@dataclass(frozen=True)
class Cell:
    """One cell of the results table: a variant on a data set, all of its seeds."""

    sweep: str
    algorithm: str
    base: str  # whose code the algorithm is
    variant: str  # its name, or 'penalty=max_std, rollout_length=5'; 'default' without choices
    choices: Mapping[str, Any] = field(hash=False)  # the settings that the variant chooses
    preset: Mapping[str, Any] = field(hash=False)  # those that are as the sweep's preset has them
    dataset: DatasetSpec
    settings: OfflineSettings
    seeds: tuple[int, ...]
    dynamics_seeds: str
    # The plugins that decide something of it: their sources are part of its keys.
    origins: frozenset[Origin] = frozenset()

    @property
    def name(self) -> str:
        """Unique in the sweep; safe as a folder's name and as an MLflow run's."""
        return f"{slug(self.variant)}__{slug(self.dataset.unique_slug)}"

    @property
    def dataset_label(self) -> str:
        return self.dataset.label

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
        plugins = sorted(origin.sha256 for origin in self.origins)
        return {
            "format": RESULT_FORMAT,
            # Of the same settings, MBPO and MOPO without a penalty are one training.
            "algorithm": self.base,
            "settings": settings.model_dump(mode="json", exclude=left_out),
            "dataset": self.dataset.content_hash,
            "environment": self.dataset.env_id,
            **({"plugins": plugins} if plugins else {}),
        }


Resolve = Callable[[DatasetEntry], DatasetSpec]


def resolve_entry(entry: DatasetEntry, storage: Storage | None = None) -> DatasetSpec:
    """The data set of an entry of a sweep; a file of one's own is read and checked.

    So is an environment that a plugin brings along, or that needs a package which may be missing:
    it is made once, before anything is read or downloaded where it is known.
    """
    row = CATALOG.get(full_id(entry.id))
    known = entry.env if row is None else row.env_id
    if known is not None and known in ENVIRONMENTS:
        _try(known)
    dataset = resolve(entry.id, **entry.model_dump(exclude={"id"}), storage=storage)
    if dataset.env_id != known:
        _try(dataset.env_id)
    return dataset


def _try(env_id: str) -> None:
    if ENVIRONMENTS.origin(env_id) or ENVIRONMENTS[env_id].make:
        make_env(env_id).close()


def resolve_in(storage: Storage) -> Resolve:
    """Resolves entries; what has to be downloaded for that is kept in `storage`."""
    return partial(resolve_entry, storage=storage)


def cells_of(sweep: Sweep, resolve: Resolve = resolve_entry) -> list[Cell]:
    """The cells of the sweep: every variant on the first data set, then on the next.

    Variants of different names may be the same training; of the grid's combinations,
    those that differ in nothing that has an effect are one.

    Args:
        sweep: validated.
        resolve: entry of `datasets` -> what it is.

    Raises:
        UserError: a data set is unknown, missing, unreadable, or listed twice, or the preset
            has no values for it.
    """
    datasets: dict[str, DatasetSpec] = {}
    found: list[Cell] = []
    for index, entry in enumerate(sweep.datasets):
        try:
            dataset = resolve(entry)
            same = datasets.setdefault(dataset.content_hash, dataset)
            if same is not dataset:
                raise UserError(f"{entry.id} holds the same data as {same.id}")
            found += [_cell(sweep, variant, dataset) for variant in sweep.expanded()]
        except UserError as error:
            raise UserError(f"datasets[{index}]: {error}") from None
    return list({(cell.cell_key, cell.variant): cell for cell in found}.values())


def _cell(sweep: Sweep, variant: Variant, dataset: DatasetSpec) -> Cell:
    preset: dict[str, Any] = {}
    if sweep.preset is not None:
        preset = preset_settings(sweep.preset, variant.algorithm, dataset.task)
    settings = variant.settings(sweep.fixed, preset)
    rows = (ALGORITHMS.origin(variant.algorithm), ENVIRONMENTS.origin(dataset.env_id))
    in_force = {key: value for key, value in preset.items() if getattr(settings, key) == value}
    return Cell(
        sweep=sweep.name,
        algorithm=variant.algorithm,
        base=variant.row.base,
        variant=variant.label(settings),
        choices={key: getattr(settings, key) for key in variant.chosen_settings},
        preset={k: v for k, v in in_force.items() if k not in settings.without_effect},
        dataset=dataset,
        settings=settings,
        seeds=sweep.seeds,
        dynamics_seeds=sweep.dynamics_seeds,
        origins=settings.origins | frozenset(filter(None, rows)),
    )
