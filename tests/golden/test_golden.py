"""What training reports, step by step, is what it reported when the values were written."""

import datetime as dt
import json

import pytest
import torch
from reference import Batch, learner_of
from regenerate import (
    CASES,
    EPOCHS,
    SEEDS,
    STEPS,
    VALUES,
    golden_steps,
    golden_training,
    hash_of,
    main,
)

GOLDEN = json.loads(VALUES.read_text())
# Between processors, float32 sums differ in their last digits, and training lets that grow.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.parametrize("case", CASES)
def test_30_steps_report_the_golden_values(case):
    series, _ = golden_steps(case)
    assert series.keys() == GOLDEN["values"][case].keys()
    for name, steps in GOLDEN["values"][case].items():
        ours, expected = torch.tensor(series[name]), torch.tensor(steps)
        assert expected.shape == (EPOCHS * STEPS, len(SEEDS))
        assert expected.isfinite().all()
        torch.testing.assert_close(ours, expected, **TOLERANCE, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("case", CASES)
def test_the_first_step_reports_what_the_independent_float64_reference_does(case):
    training = golden_training(case)
    learners = [learner_of(training.agent, s) for s in range(len(SEEDS))]
    _, (batch, noise) = golden_steps(case)
    for s, learner in enumerate(learners):
        seen = learner.step(Batch.of_seed(batch, s), [x[s].double().numpy() for x in noise])
        for name, value in seen.items():
            assert GOLDEN["values"][case][name][0][s] == pytest.approx(value, rel=1e-5, abs=1e-5)


def test_the_values_were_regenerated_by_the_command_and_for_a_reason():
    message = "values.json was changed by hand: run tests/golden/regenerate.py --reason ..."
    assert GOLDEN["sha256"] == hash_of(GOLDEN["values"]), message
    assert len(GOLDEN["reason"].split()) >= 3
    assert dt.date.fromisoformat(GOLDEN["date"]) >= dt.date(2024, 1, 1)
    assert GOLDEN["values"].keys() == CASES.keys()


@pytest.mark.parametrize("arguments", [[], ["--reason", "  "]])
def test_the_command_does_nothing_without_a_reason(arguments, monkeypatch, capsys):
    before = VALUES.read_bytes()
    monkeypatch.setattr("sys.argv", ["regenerate.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "--reason" in capsys.readouterr().err
    assert VALUES.read_bytes() == before


def test_every_case_reports_something_of_its_own():
    """No two cases may be one training under two names, or a variant would go unwatched."""
    losses = [str(series["critic_loss"]) for series in GOLDEN["values"].values()]
    assert len(set(losses)) == len(losses)
    for case, series in GOLDEN["values"].items():
        if "beta" in series:
            betas = {beta for step in series["beta"] for beta in step}
            assert (len(betas) > 1) == ("learned" in case)
