"""The picture of the penalties: what is drawn is what is true."""

import io
import logging

import matplotlib as mpl
import numpy as np
import pytest
import torch

from algorithms.data.source import resolve
from algorithms.dynamics.ensemble import DynamicsEnsemble
from algorithms.dynamics.penalties import PENALTIES, Prediction
from algorithms.dynamics.spec import EnsembleSpec
from algorithms.dynamics.store import publish_ensemble, read_ensemble
from algorithms.settings import EnsembleSettings
from algorithms.storage import Storage
from orchestrator import tune
from orchestrator.report import figures
from orchestrator.report.figures import (
    data_batch,
    ensemble_picture,
    penalty_figure,
    predict,
    principal_plane,
    std_ellipse,
    view,
)

E, B, O = 5, 41, 6  # noqa: E741
ELITES = [3, 0, 4]


def a_prediction(seed=0, members=E):
    g = torch.Generator().manual_seed(seed)
    scale = torch.rand(B, 1, generator=g)  # rows of little and of much disagreement
    return Prediction(
        mean=torch.randn(members, B, O + 1, generator=g) * scale,
        std=torch.rand(members, B, O + 1, generator=g),
        member=torch.randint(members, (B,), generator=g),
    )


def rows_shown(prediction):
    """The rows at the 10, 50, 90 and 100 % quantile of the largest pairwise distance."""
    return [
        min(range(B), key=lambda row: abs(distance(prediction)[row] - quantile))
        for quantile in np.quantile(distance(prediction), (0.1, 0.5, 0.9, 1.0))
    ]


def distance(prediction):
    return PENALTIES["max_pairwise_distance"](prediction).numpy()


def panels(figure):
    """The large axes; after each comes the one that enlarges its means."""
    return figure.axes[::2]


def lines(axes, gid):
    return [np.array(line.get_xydata()) for line in axes.lines if line.get_gid() == gid]


def test_the_numbers_are_the_penalties_of_the_rows():
    prediction = a_prediction()
    figure = penalty_figure(prediction, ELITES, "title")
    for name, penalty in PENALTIES.items():
        told = [text.get_text() for text in figure.texts if text.get_gid() == name]
        values = penalty(prediction)
        assert told == [f"{values[row]:.3f}" for row in rows_shown(prediction)]


@pytest.mark.parametrize("seed", range(5))
def test_what_is_drawn_belongs_to_the_right_members(seed):
    prediction = a_prediction(seed)
    figure = penalty_figure(prediction, ELITES, "title")
    for axes, enlarged, row in zip(
        panels(figure), figure.axes[1::2], rows_shown(prediction), strict=True
    ):
        means, stds = prediction.mean[:, row, :-1], prediction.std[:, row]
        dots = np.concatenate(lines(axes, "mean"))
        np.testing.assert_allclose(dots.mean(axis=0), 0, atol=1e-6)
        np.testing.assert_array_equal(dots, np.concatenate(lines(enlarged, "mean")))

        (pair,) = lines(axes, "max_pairwise_distance")
        i, j = divmod(int(torch.cdist(means, means).argmax()), E)
        np.testing.assert_array_equal(pair, dots[[i, j]])

        (to_farthest,) = lines(axes, "max_center_distance")
        farthest = (means - means.mean(dim=0)).norm(dim=1).argmax()
        np.testing.assert_array_equal(to_farthest, [[0, 0], dots[farthest]])

        (own,) = lines(axes, "member_std")
        np.testing.assert_array_equal(own[0], dots[prediction.member[row]])

        (bold,) = [patch for patch in axes.patches if patch.get_gid() == "max_std"]
        np.testing.assert_array_equal(bold.center, dots[stds.norm(dim=1).argmax()])
        assert all(bold.get_linewidth() > p.get_linewidth() for p in axes.patches if p is not bold)
        solid = {m for m, patch in enumerate(axes.patches) if patch.get_linestyle() == "-"}
        assert len(axes.patches) == E
        assert solid == set(ELITES)


def test_everything_lies_in_its_panel_and_a_unit_is_as_long_in_x_as_in_y():
    figure = penalty_figure(a_prediction(), ELITES, "title")
    figure.savefig(io.BytesIO())  # lays it out
    for axes in panels(figure):
        for ellipse in axes.patches:
            for corner in (*ellipse.get_vertices(), *ellipse.get_co_vertices()):
                assert axes.viewLim.contains(*corner)
    for axes in figure.axes:
        x, y = axes.transData.transform([(1, 1)])[0] - axes.transData.transform([(0, 0)])[0]
        assert x == pytest.approx(y)


def test_no_distance_in_the_plane_exceeds_the_true_one():
    means = a_prediction().mean[:, 0, :-1].double().numpy()
    plane = principal_plane(means)
    np.testing.assert_allclose(plane.axes_2O @ plane.axes_2O.T, np.eye(2), atol=1e-12)
    seen, true = plane.project(means), means - means.mean(axis=0)
    lengths = np.linalg.norm(seen, axis=1) / np.linalg.norm(true, axis=1)
    assert (lengths <= 1 + 1e-12).all()
    variance = np.square(seen).sum() / np.square(true).sum()
    assert plane.explained == pytest.approx(variance)
    # No other plane shows more: that of the first two coordinates, for one.
    assert variance > np.square(true[:, :2]).sum() / np.square(true).sum()


def test_an_ellipse_in_the_plane_of_two_coordinates_has_their_stds():
    """Means that differ along coordinates 3 and 1 alone: the plane is theirs."""
    means, stds = torch.zeros(E, 1, O + 1), torch.rand(E, 1, O + 1) + 0.1
    means[:, 0, 3] = torch.tensor([-4.0, -2.0, 0.0, 2.0, 4.0])
    means[:, 0, 1] = torch.tensor([1.0, -1.0, 0.0, -1.0, 1.0])
    seen = view(Prediction(means, stds, torch.tensor([0])), ELITES)
    expected = stds[:, 0, [3, 1]].double().square().diag_embed()
    np.testing.assert_allclose(seen.covariances_E22, expected, atol=1e-9)
    assert seen.explained == pytest.approx(1)


@pytest.mark.parametrize(("std", "horizontal"), [((3.0, 1.0), True), ((1.0, 3.0), False)])
def test_an_ellipse_reaches_one_std_along_each_axis(std, horizontal):
    ellipse = std_ellipse(np.array([5.0, -2.0]), np.diag(np.square(std)))
    assert (ellipse.width, ellipse.height) == pytest.approx((6.0, 2.0))
    assert ellipse.angle % 180 == pytest.approx(0.0 if horizontal else 90.0)
    assert ellipse.center == (5.0, -2.0)


def test_an_oblique_ellipse_lies_at_mahalanobis_distance_one():
    covariance = np.array([[2.0, 1.2], [1.2, 1.0]])
    ellipse = std_ellipse(np.zeros(2), covariance)
    for corner in np.array([*ellipse.get_vertices(), *ellipse.get_co_vertices()]):
        assert corner @ np.linalg.inv(covariance) @ corner == pytest.approx(1)


@pytest.mark.parametrize("case", ["one member", "equal members", "no std"])
def test_degenerate_predictions_are_drawn(case):
    prediction = a_prediction(members=1 if case == "one member" else E)
    if case == "equal members":
        prediction = prediction._replace(mean=prediction.mean[:1].expand(E, -1, -1))
    if case == "no std":
        prediction = prediction._replace(std=torch.zeros_like(prediction.std))
    png = io.BytesIO()
    penalty_figure(prediction, [0], "title").savefig(png)
    assert png.getvalue().startswith(b"\x89PNG")


def test_drawing_leaves_matplotlibs_settings_alone():
    before = dict(mpl.rcParams)
    penalty_figure(a_prediction(), ELITES, "a title with $ and $ in it").savefig(io.BytesIO())
    assert dict(mpl.rcParams) == before


# Of published ensembles


@pytest.fixture
def publish(storage):
    """A function that publishes an untrained ensemble of a data set."""

    def publish(dataset, seed=0):
        settings = EnsembleSettings(dynamics_hidden=(8,), dynamics_weight_decay=(0.0, 0.0))
        spec = EnsembleSpec(dataset=dataset, settings=settings, seed=seed)
        ensemble = DynamicsEnsemble(11, 3, settings, [torch.Generator().manual_seed(seed)])
        ensemble.elites_SK.copy_(torch.tensor([[6, 1, 2, 3, 5]]))
        metrics = {"elite_holdout_mse": 0.5, "penalty_mean": {"max_std": 1.5}}
        publish_ensemble(Storage(storage), spec, ensemble, metrics, history=[], seconds=1.0)
        return read_ensemble(Storage(storage), spec.key), spec

    return publish


@pytest.fixture
def dataset(hopper_file):
    return resolve(f"file:{hopper_file()}", env="Hopper-v4")


@pytest.fixture
def loads(monkeypatch):
    """The data sets that are loaded, in order."""
    loaded = []
    load = figures.load
    monkeypatch.setattr(figures, "load", lambda *args: loaded.append(args[0]) or load(*args))
    return loaded


def test_a_prediction_is_the_ensembles_with_the_elites_in_turn(publish, dataset, storage):
    published, _ = publish(dataset)
    obs, action = data_batch(dataset, Storage(storage))
    assert len(obs) == 300  # the whole file; of larger ones 1000 rows
    prediction = predict(published, obs, action)
    assert prediction.mean.shape == (7, 300, 12)
    assert prediction.member[:7].tolist() == [6, 1, 2, 3, 5, 6, 1]
    again = predict(published, obs[3:4], action[3:4])
    torch.testing.assert_close(again.mean, prediction.mean[:, 3:4])
    torch.testing.assert_close(again.std, prediction.std[:, 3:4])


def test_a_picture_is_drawn_once_and_the_data_of_two_ensembles_read_once(
    publish, dataset, storage, loads
):
    first, second = publish(dataset, seed=0), publish(dataset, seed=1)
    pictures = [ensemble_picture(*of, Storage(storage)) for of in (first, second)]
    assert pictures == [
        storage / published.folder / "penalties.png" for published, _ in (first, second)
    ]
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert loads == [dataset]
    drawn = pictures[0].stat().st_mtime_ns
    data_batch.cache_clear()  # as in another process
    assert ensemble_picture(*first, Storage(storage)) == pictures[0]
    assert pictures[0].stat().st_mtime_ns == drawn
    assert loads == [dataset]


def test_no_data_are_generated_for_a_picture(publish, storage, loads, caplog):
    published, spec = publish(resolve("bundled/hopper-medium"))
    assert ensemble_picture(published, spec, Storage(storage)) is None
    assert loads == []
    assert caplog.records == []


class Recorder:
    def __init__(self):
        self.ensembles = {}

    def log_ensemble(self, ensemble):
        self.ensembles[ensemble.key] = ensemble


def test_a_sweep_records_an_ensemble_with_its_picture(publish, dataset, storage):
    _, spec = publish(dataset)
    tracker = Recorder()
    tune._record_ensemble(tracker, spec, Storage(storage))
    (picture,) = tracker.ensembles[spec.key].files
    assert picture.is_file()


def test_a_failure_to_draw_is_told_and_costs_the_picture_alone(
    publish, dataset, storage, monkeypatch, caplog
):
    published, spec = publish(dataset)

    def fail(*_):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(figures, "penalty_figure", fail)
    tracker = Recorder()
    with caplog.at_level(logging.WARNING):
        tune._record_ensemble(tracker, spec, Storage(storage))
    assert tracker.ensembles[spec.key].files == ()
    assert tracker.ensembles[spec.key].metrics["penalty_mean/max_std"] == 1.5
    assert [record.getMessage() for record in caplog.records] == [
        f"no picture of the ensemble {spec.key}: no fonts"
    ]
    assert not list((storage / published.folder).glob("*.png"))
