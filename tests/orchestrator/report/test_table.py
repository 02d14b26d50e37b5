import math

import pytest
from rich.console import Console

from algorithms.storage import Storage
from orchestrator.report import table as report
from orchestrator.results import ResultStore
from orchestrator.sweep.cell import cells_of


@pytest.fixture
def table(load, storage):
    """A mapping -> the data frame, the notes, and the table as text."""

    def table(content, width=120):
        sweep = load(content)
        frame = report.summary(cells_of(sweep), ResultStore(Storage(storage)))
        console = Console(width=width)
        with console.capture() as capture:
            console.print(report.render(sweep, frame))
        return frame, report.notes(sweep, frame), capture.get()

    return table


@pytest.fixture
def score(expand, finish):
    """Give every trial's seeds these scores."""

    def score(content, *scores_per_trial):
        for trial, scores in zip(expand(content), scores_per_trial, strict=True):
            for seed, value in zip(trial.seeds, scores, strict=False):
                finish(trial, seed, run_score=value, position=seed)

    return score


def test_mean_and_sample_std_over_seeds(quickstart, table, score):
    quickstart["seeds"] = 3
    score(quickstart, [10.0, 12.0, 14.0], [40.0, 40.0, 43.0])
    frame, _, text = table(quickstart)
    assert frame["run_score"].tolist() == [12.0, 41.0]
    assert frame["score_std"].tolist() == pytest.approx([2.0, math.sqrt(3)])
    assert frame["behaviour_score"].tolist() == [7.5, 7.5]
    assert "12.0 +- 2.0" in text
    assert "41.0 +- 1.7" in text
    assert "no conclusion" not in text


def test_one_seed_has_no_spread(quickstart, table, score):
    quickstart["seeds"] = 1
    score(quickstart, [10.0], [20.0])
    frame, _, text = table(quickstart)
    assert math.isnan(frame["score_std"][0])
    assert "10.0 +- -" in text


def test_a_sweep_of_which_nothing_is_trained_has_a_table(quickstart, table):
    frame, notes, text = table(quickstart)
    assert frame["seeds_done"].tolist() == [0, 0]
    assert "0 of 2 seeds" in text
    assert any(note.startswith("partial") for note in notes)


def test_partial_results_say_so_and_unfinished_seeds_do_not_count(
    quickstart, expand, table, finish
):
    first, _ = expand(quickstart)
    finish(first, 0, run_score=10.0)
    finish(first, 1, run_score=99.0, epochs=2)
    frame, notes, text = table(quickstart)
    assert frame["run_score"][0] == 10.0
    assert "1 of 2 seeds" in text
    assert any(note.startswith("partial") for note in notes)


def test_diverged_seeds_are_named_and_left_out(quickstart, expand, table, finish):
    first, _ = expand(quickstart)
    finish(first, 0, run_score=10.0)
    finish(first, 1, run_score=-500.0, status="diverged", epochs=1)
    frame, notes, text = table(quickstart)
    assert frame["run_score"][0] == 10.0
    assert "1 diverged" in text
    assert any(note.startswith("diverged") for note in notes)


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ([10.0, 11.0, 12.0], [10.5, 11.5, 12.5], "less than their spread"),
        ([10.0, 11.0, 12.0], [11.0, 12.0, 13.0], "less than their spread"),  # exactly the spread
        ([10.0, 11.0, 12.0], [11.1, 12.1, 13.1], None),
        ([5.0, 5.0, 5.0], [5.0, 5.0, 5.0], "less than their spread"),
        ([10.0, 11.0], [90.0, 91.0], "fewer than 3 seeds"),
        ([10.0, 11.0, 12.0], [90.0, 91.0], "fewer than 3 seeds"),
        ([10.0, 11.0, 12.0], [], "fewer than 3 seeds"),
    ],
)
def test_no_conclusion_from_differences_within_the_spread(
    quickstart, table, score, first, second, reason
):
    quickstart["seeds"] = 3
    score(quickstart, first, second)
    _, notes, text = table(quickstart, width=60)
    if reason is None:
        assert "no conclusion" not in text
    else:
        assert "demo scale: no conclusion" in text
        assert any(reason in note for note in notes)


def test_the_spread_is_pooled_over_variants(quickstart, table, score):
    quickstart |= {"seeds": 3, "grid": {"penalty": ["none", "max_std", "combined"]}}
    # Pooled: sqrt((1 + 1 + 16) / 3) = 2.45.
    score(quickstart, [9.0, 10.0, 11.0], [10.0, 11.0, 12.0], [8.4, 12.4, 16.4])
    assert "no conclusion" in table(quickstart)[2]
    score(quickstart, [9.0, 10.0, 11.0], [10.0, 11.0, 12.0], [8.5, 12.5, 16.5])
    assert "no conclusion" not in table(quickstart)[2]


def test_a_single_variant_has_nothing_to_conclude(quickstart, table, score):
    quickstart["grid"]["penalty"] = ["none"]
    score(quickstart, [10.0, 11.0])
    assert "no conclusion" not in table(quickstart)[2]


def test_each_data_set_is_judged_by_itself_and_named(quickstart, table, score):
    quickstart |= {"seeds": 3}
    quickstart["datasets"].append("bundled/hopper-medium")
    far, near = ([1.0, 2.0, 3.0], [50.0, 51.0, 52.0]), ([1.0, 2.0, 3.0], [1.0, 2.0, 3.5])
    score(quickstart, *far, *near)
    _, notes, _ = table(quickstart)
    (note,) = [note for note in notes if note.startswith("demo scale: no conclusion")]
    assert "on bundled/hopper-medium (" in note


def test_shared_dynamics_are_stated(quickstart, table):
    assert "dynamics_seeds: shared" in table(quickstart)[2]
    assert "dynamics_seeds" not in table(quickstart | {"dynamics_seeds": "per_seed"})[2]


def test_shared_dynamics_are_not_stated_where_there_are_none(quickstart, table):
    quickstart |= {"algorithm": "sac", "grid": {}, "fixed": {}}
    assert "dynamics_seeds" not in table(quickstart)[2]
    quickstart["variants"] = {"sac": {}, "cql": {"algorithm": "cql"}, "mopo": {"algorithm": "mopo"}}
    assert "dynamics_seeds: shared" in table(quickstart)[2]


def test_two_names_of_one_training_have_the_same_row(quickstart, expand, table, finish):
    quickstart["variants"] = {"MBPO": {"algorithm": "mbpo"}}
    none, _, _ = expand(quickstart)
    finish(none, 0, run_score=10.0)
    finish(none, 1, run_score=12.0)
    frame, _, _ = table(quickstart)
    assert frame["variant"].tolist() == ["penalty=none", "penalty=max_std", "MBPO"]
    assert frame["run_score"].tolist()[::2] == [11.0, 11.0]


def test_results_of_longer_trainings_say_so(quickstart, table, score):
    score(quickstart, [1.0, 2.0], [3.0, 4.0])
    quickstart["fixed"]["epochs"] = 3
    assert any("more epochs" in note for note in table(quickstart)[1])


def test_minutes_count_seeds_that_trained_together_once(quickstart, expand, table, finish):
    quickstart["seeds"] = 3
    first, _ = expand(quickstart)
    finish(first, 0, minutes=6.0, checkpoint="together")
    finish(first, 1, minutes=6.0, checkpoint="together", position=1)
    finish(first, 2, minutes=4.0, checkpoint="later")
    assert table(quickstart)[0]["minutes"].tolist() == [10.0, 0.0]


def test_the_table_fits_a_narrow_terminal_without_losing_text(quickstart, table, score):
    score(quickstart, [1.0, 2.0], [3.0, 4.0])
    text = table(quickstart, width=80)[2]
    assert "penalty=max_std" in text
    assert "1.5 +- 0.7" in text
    assert "..." not in text
    assert "\N{HORIZONTAL ELLIPSIS}" not in text


def test_a_sweep_keeps_its_number_when_another_one_trains_on(quickstart, expand, table, finish):
    for trial in expand(quickstart):
        for seed in trial.seeds:
            finish(trial, seed, run_score=10.0, finished_scores={5: 10.0})
            finish(trial, seed, run_score=50.0, epochs=9, finished_scores={9: 50.0})
    assert table(quickstart)[0]["run_score"].tolist() == [10.0, 10.0]
    quickstart["fixed"]["epochs"] = 9
    assert table(quickstart)[0]["run_score"].tolist() == [50.0, 50.0]


def test_a_finished_score_survives_a_later_divergence(quickstart, expand, table, finish):
    quickstart["fixed"]["epochs"] = 10
    first, _ = expand(quickstart)
    finish(first, 0, run_score=30.0, finished_scores={10: 30.0})
    finish(first, 0, run_score=50.0, epochs=20, finished_scores={20: 50.0})
    finish(first, 1, run_score=32.0, finished_scores={10: 32.0})
    finish(first, 1, run_score=None, epochs=15, status="diverged")
    columns = ["run_score", "scores", "seeds_done", "seeds_diverged"]

    frame, notes, text = table(quickstart)
    assert frame.loc[0, columns].tolist() == [31.0, 2, 2, 0]
    assert "diverged" not in text
    assert not any("diverged" in note for note in notes)

    quickstart["fixed"]["epochs"] = 20
    frame, notes, text = table(quickstart)
    assert frame.loc[0, columns].tolist() == [50.0, 1, 2, 1]
    assert "1 diverged" in text
    assert any(note.startswith("diverged") for note in notes)


def test_seeds_of_different_code_are_pointed_out(quickstart, expand, table, finish):
    first, second = expand(quickstart)
    finish(first, 0, code="aaaa")
    finish(second, 0, code="aaaa")
    assert not any("versions" in note for note in table(quickstart)[1])
    finish(second, 1, code="bbbb")
    assert any("different versions" in note for note in table(quickstart)[1])
