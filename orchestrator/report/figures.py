"""The penalties, seen: what an ensemble's members predict for single rows, in two dimensions.

Each panel is one row (s, a): a dot is a member's mean next-observation delta, an
ellipse its Gaussian at one std. Penalties are drawn where they can be, and told
in numbers for all. Figures know no backend and no global state of matplotlib.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse
from torch import Tensor

from algorithms.data.source import at_hand, load
from algorithms.data.spec import DatasetSpec
from algorithms.dynamics.penalties import PENALTIES, Prediction
from algorithms.dynamics.spec import EnsembleSpec
from algorithms.dynamics.store import PublishedEnsemble, stack_ensembles
from algorithms.storage import Storage

log = logging.getLogger(__name__)

PICTURE = "penalties.png"  # in an ensemble's folder
BATCH_ROWS, BATCH_SEED = 1000, 0
# The rows shown, by where they stand in the batch's order of `max_pairwise_distance`.
ROWS = {
    "low disagreement (10 % quantile)": 0.1,
    "median disagreement": 0.5,
    "high disagreement (90 % quantile)": 0.9,
    "highest disagreement": 1.0,
}
INK, PALE = "#20242b", "#8b929c"
ELITE, OTHER = "#31688e", "#a9b0ba"
OWN_RING: dict[str, Any] = {
    "marker": "o",
    "markersize": 13,
    "markerfacecolor": "none",
    "markeredgecolor": PENALTIES["member_std"].colour,
    "markeredgewidth": 1.8,
    "linestyle": "none",
}
CAPTION = """\
A panel's plane holds the first two principal components of the members' means. The projection is \
orthonormal, so distances and stds in the plane are at most the true ones.
The numbers are the true ones, over all dimensions of the observation; those made of stds count \
the reward's as well."""


def ensemble_picture(
    published: PublishedEnsemble, spec: EnsembleSpec, storage: Storage
) -> Path | None:
    """The PNG that lies with a published ensemble; drawn the first time it is asked for.

    It needs the data set, so a sweep whose ensembles have their pictures reads none.
    Where data would have to be generated or fetched first, there is no picture: None.
    Nor is there one where drawing fails, which is logged and costs nothing else.
    """
    name = f"{published.folder}/{PICTURE}"
    path = storage.path(name)
    try:
        if not path.is_file():
            if not at_hand(spec.dataset, storage):
                return None
            prediction = predict(published, *data_batch(spec.dataset, storage))
            elites = published.weights["elites_SK"][0].tolist()
            title = f"Uncertainty penalties: ensemble of {spec.dataset.slug}, seed {spec.seed}"
            image = BytesIO()
            penalty_figure(prediction, elites, title).savefig(image, dpi=110)
            storage.put(name, image.getvalue())
    except Exception as error:  # noqa: BLE001 - a sweep does not end for want of a picture
        log.warning("no picture of the ensemble %s: %s", spec.key, error)
        return None
    return path


@lru_cache(maxsize=64)
def data_batch(dataset: DatasetSpec, storage: Storage) -> tuple[Tensor, Tensor]:
    """Up to 1000 random states `[B, O]` with their stored actions `[B, A]`, always the same.

    Kept in memory, because the ensembles of a sweep share data sets; the data are not.
    """
    data = load(dataset, storage)
    rows = np.random.default_rng(BATCH_SEED).permutation(len(data.reward))[:BATCH_ROWS]
    return torch.from_numpy(data.obs[rows]), torch.from_numpy(data.action[rows])


@torch.no_grad()
def predict(published: PublishedEnsemble, obs_BO: Tensor, action_BA: Tensor) -> Prediction:
    """One ensemble's prediction of a batch: mean and std `[E, B, D]`, member `[B]`.

    The rows take the elites in turn, as where the penalties' means are measured.
    """
    ensemble = stack_ensembles([published])
    elites_K = ensemble.elites_SK[0]
    member_B = elites_K[torch.arange(len(obs_BO)) % len(elites_K)]
    prediction = ensemble.predict(obs_BO[None], action_BA[None], member_B[None])
    return Prediction(*(x[0] for x in prediction))


class Plane(NamedTuple):
    """The two directions in which the members' means of one row differ most."""

    origin_O: np.ndarray  # the mean over members
    axes_2O: np.ndarray  # orthonormal rows
    explained: float  # share of the means' variance that lies in the plane

    def project(self, points: np.ndarray) -> np.ndarray:
        """`[..., O]` -> `[..., 2]`."""
        return (points - self.origin_O) @ self.axes_2O.T

    def covariance(self, std: np.ndarray) -> np.ndarray:
        """`P diag(std^2) P^T`: `[..., O]` -> `[..., 2, 2]`."""
        return (self.axes_2O * np.square(std)[..., None, :]) @ self.axes_2O.T


def principal_plane(mean_EO: np.ndarray) -> Plane:
    """The first two principal components of the members' means (O >= 2)."""
    origin_O = mean_EO.mean(axis=0)
    _, singular, axes = np.linalg.svd(mean_EO - origin_O, full_matrices=True)
    variance = np.square(singular)
    explained = variance[:2].sum() / variance.sum() if variance.any() else 1.0
    return Plane(origin_O, axes[:2], float(explained))


def std_ellipse(centre: np.ndarray, covariance: np.ndarray) -> Ellipse:
    """The points at Mahalanobis distance 1 from the centre: one std in every direction."""
    variances, directions = np.linalg.eigh(covariance)  # ascending
    minor, major = 2.0 * np.sqrt(variances.clip(min=0.0))  # rounding can dip below 0
    angle = np.degrees(np.arctan2(directions[1, 1], directions[0, 1]))
    return Ellipse((centre[0], centre[1]), major, minor, angle=angle, fill=False)


class View(NamedTuple):
    """One row in its plane, and the members that its penalties are about."""

    points_E2: np.ndarray  # the means; the centre is the origin
    covariances_E22: np.ndarray
    explained: float
    elites: frozenset[int]
    pair: tuple[int, int]  # the two whose means are farthest apart
    farthest: int  # whose mean is farthest from the centre
    widest: int  # of the largest ||std||
    own: int  # that produced the row


def view(prediction: Prediction, elites: Sequence[int]) -> View:
    """Project a prediction of a single row (B = 1). Distances are compared before projection."""
    mean_EO = prediction.mean[:, 0, :-1].double().numpy()
    std_ED = prediction.std[:, 0].double().numpy()
    plane = principal_plane(mean_EO)
    distances_EE = np.linalg.norm(mean_EO[:, None] - mean_EO, axis=-1)
    i, j = np.unravel_index(distances_EE.argmax(), distances_EE.shape)
    return View(
        points_E2=plane.project(mean_EO),
        covariances_E22=plane.covariance(std_ED[:, :-1]),
        explained=plane.explained,
        elites=frozenset(elites),
        pair=(int(i), int(j)),
        farthest=int(np.linalg.norm(mean_EO - plane.origin_O, axis=-1).argmax()),
        widest=int(np.linalg.norm(std_ED, axis=-1).argmax()),
        own=int(prediction.member[0]),
    )


def penalty_figure(prediction: Prediction, elites: Sequence[int], title: str) -> Figure:
    """Four rows of a batch, from low to highest disagreement, with every penalty.

    Args:
        prediction: of one ensemble: mean and std `[E, B, D]`, member `[B]`, on the CPU.
        elites: the members that produce rows.
        title: which ensemble it is.
    """
    members, batch = prediction.mean.shape[:2]
    order = PENALTIES["max_pairwise_distance"](prediction).argsort(stable=True).tolist()
    figure = Figure(figsize=(16, 10.4), facecolor="white")
    heading_style: dict[str, Any] = {"weight": "bold", "color": INK}
    figure.text(0.035, 0.966, title, fontsize=16, parse_math=False, **heading_style)
    subtitle = (
        f"What {members} members, {len(elites)} of them elites, predict for four of {batch:,} rows "
        "(s, a) of the data: their mean changes of the observation, with one std"
    )
    figure.text(0.035, 0.938, subtitle, fontsize=11.5, color=PALE)
    for k, (heading, quantile) in enumerate(ROWS.items()):
        row = order[round(quantile * (batch - 1))]
        one = slice(row, row + 1)
        of_row = Prediction(prediction.mean[:, one], prediction.std[:, one], prediction.member[one])
        left, bottom = 0.035 + 0.49 * (k % 2), 0.545 - 0.42 * (k // 2)
        seen = view(of_row, elites)
        main = figure.add_axes((left, bottom, 0.29, 0.35))
        main.set_title(heading, loc="left", fontsize=12, **heading_style)
        note = f"{seen.explained:.0%} of the means' variance lies in this plane"
        main.set_xlabel(note, fontsize=9, color=PALE)
        zoom = figure.add_axes((left + 0.325, bottom, 0.125, 0.135))
        _draw_stds(main, seen)
        _draw_means(main, seen)
        _draw_means(zoom, seen)
        half_E2 = np.sqrt(np.diagonal(seen.covariances_E22, axis1=1, axis2=2))
        _frame(main, seen.points_E2 - half_E2, seen.points_E2 + half_E2, margin=1.12)
        _frame(zoom, seen.points_E2, seen.points_E2, margin=1.45)
        zoom.set_title("the means, enlarged", loc="left", fontsize=9, color=PALE)
        _write_penalties(figure, of_row, left + 0.308, bottom + 0.336)
    _write_legend(figure)
    figure.text(0.035, 0.014, CAPTION, fontsize=9.5, color=PALE, linespacing=1.5)
    return figure


def _draw_stds(axes: Axes, seen: View) -> None:
    for member, (point, covariance) in enumerate(
        zip(seen.points_E2, seen.covariances_E22, strict=True)
    ):
        elite, widest = member in seen.elites, member == seen.widest
        ellipse = std_ellipse(point, covariance)
        ellipse.set_gid("max_std" if widest else "std")
        ellipse.set_edgecolor(PENALTIES["max_std"].colour if widest else ELITE if elite else OTHER)
        ellipse.set_linestyle("-" if elite else "--")
        ellipse.set_linewidth(3.0 if widest else 1.2)
        axes.add_patch(ellipse)


def _draw_means(axes: Axes, seen: View) -> None:
    pair, farthest = seen.points_E2[list(seen.pair)], seen.points_E2[seen.farthest]
    # The wider line below: they may lie on each other.
    for gid, ends, width in (
        ("max_pairwise_distance", pair, 4.5),
        ("max_center_distance", np.stack([np.zeros(2), farthest]), 2.0),
    ):
        axes.plot(
            *ends.T, color=PENALTIES[gid].colour, linewidth=width, solid_capstyle="round", gid=gid
        )
    axes.plot(
        0.0, 0.0, "P", color=PENALTIES["max_center_distance"].colour, markersize=9, gid="center"
    )
    for member, point in enumerate(seen.points_E2):
        colour = ELITE if member in seen.elites else OTHER
        axes.plot(*point, "o", color=colour, markeredgecolor="white", markersize=7, gid="mean")
    axes.plot(*seen.points_E2[seen.own], **OWN_RING, gid="member_std")


def _frame(axes: Axes, low: np.ndarray, high: np.ndarray, margin: float) -> None:
    """Show all from `low` to `high` `[E, 2]` with one unit as long in x as in y."""
    low, high = low.min(axis=0), high.max(axis=0)
    width, height = axes.get_window_extent().size
    scale = margin * max((high - low) / (width, height)) or 1.0  # data units per pixel
    middle, half = (low + high) / 2, scale * np.array([width, height]) / 2
    axes.set_xlim(middle[0] - half[0], middle[0] + half[0])
    axes.set_ylim(middle[1] - half[1], middle[1] + half[1])
    axes.set_aspect("equal")
    axes.tick_params(labelsize=8, color=PALE, labelcolor=PALE)
    axes.locator_params(nbins=5)
    axes.spines[:].set_color("#d5d9df")


def _write_penalties(figure: Figure, prediction: Prediction, left: float, top: float) -> None:
    # An ensemble's picture is made once, whatever plugins there are.
    for k, (name, penalty) in enumerate((name, PENALTIES[name]) for name in PENALTIES.built_in):
        value = penalty(prediction).item()
        style: dict[str, Any] = {"fontsize": 10, "color": penalty.colour or INK, "va": "center"}
        figure.text(left, top - 0.0212 * k, name, **style)
        number = figure.text(left + 0.142, top - 0.0212 * k, f"{value:.3f}", ha="right", **style)
        number.set_gid(name)


def _write_legend(figure: Figure) -> None:
    def line(colour: str | None, label: str, **style: Any) -> Line2D:
        return Line2D([], [], color=colour, label=label, **style)

    dot: dict[str, Any] = {"marker": "o", "markeredgecolor": "white", "markersize": 8}
    figure.legend(
        handles=[
            line(ELITE, "an elite: mean and one std", **dot),
            line(OTHER, "another member", linestyle="--", **dot),
            line(PENALTIES["max_std"].colour, "max_std: of the largest ||std||", linewidth=3),
            line(PENALTIES["max_pairwise_distance"].colour, "max_pairwise_distance", linewidth=4.5),
            line(
                PENALTIES["max_center_distance"].colour,
                "max_center_distance, + the centre",
                marker="P",
                linewidth=2.0,
            ),
            line("none", "member_std: of the row's own member", **OWN_RING),
        ],
        loc="lower left",
        bbox_to_anchor=(0.028, 0.055),
        ncols=6,
        frameon=False,
        fontsize=9.5,
        labelcolor=INK,
        columnspacing=1.6,
        handletextpad=0.6,
    )
