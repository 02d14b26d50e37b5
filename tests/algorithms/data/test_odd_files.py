"""Files as people have them: each is taken with a stated conversion, or refused with a remedy.

Every row of the two tables is a way in which one good file is changed.
"""

import numpy as np
import pytest
from small_files import write

from algorithms.data import hdf5
from algorithms.data.source import load, resolve
from algorithms.errors import UserError
from algorithms.storage import Storage


@pytest.fixture
def odd_file(tmp_path, columns):
    """Writes the good file after `change(columns)`; what that returns replaces the columns."""

    def make(change, **attributes):
        changed = change(columns)
        return write(tmp_path / "odd.hdf5", columns if changed is None else changed, **attributes)

    return make


def without(*names):
    return lambda columns: {k: v for k, v in columns.items() if k not in names}


def renamed(**names):
    return lambda columns: {names.get(k, k): v for k, v in columns.items()}


def ends(columns):
    return np.flatnonzero(columns["terminals"] | columns["timeouts"])


def set_rows(name, rows, value):
    def change(columns):
        columns[name][rows] = value

    return change


def set_column(name, make):
    def change(columns):
        columns[name] = make(columns)

    return change


def reset_states(columns):
    for end in ends(columns)[:-1]:
        columns["next_observations"][end] = columns["observations"][end + 1]


def one_episode(rows):
    """Rows that follow each other; where they end, nothing tells."""
    states = np.random.default_rng(0).normal(size=(rows + 1, 11)).astype(np.float32)
    columns = {"observations": states[:-1], "next_observations": states[1:].copy()}
    columns |= {"actions": np.zeros((rows, 3), np.float32), "rewards": np.ones(rows, np.float32)}
    return columns | {"terminals": np.zeros(rows, bool), "timeouts": np.zeros(rows, bool)}


def terminal_at_every_timeout(columns):
    columns["timeouts"][ends(columns)] = True
    columns["terminals"][columns["timeouts"]] = True


def shifted(rows):
    return set_column(
        "next_observations", lambda columns: np.roll(columns["next_observations"], rows, axis=0)
    )


def shuffled(columns):
    order = np.random.default_rng(0).permutation(len(columns["rewards"]))
    return {name: array[order] for name, array in columns.items()}


def as_type(name, dtype):
    return set_column(name, lambda columns: columns[name].astype(dtype))


REFUSED = {
    "a wrong key": (
        renamed(observations="obs"),
        ["has no observations", "needed are observations, actions, rewards"],
    ),
    "two wrong keys": (
        renamed(actions="acts", rewards="r"),
        ["has no actions and no rewards"],
    ),
    "NaN": (
        set_rows("observations", 7, np.nan),
        ["observations holds NaN or infinite values in 1 of 1000 rows, first in row 7"],
    ),
    "infinite rewards": (
        set_rows("rewards", slice(3, 5), np.inf),
        ["rewards holds NaN or infinite values in 2 of 1000 rows, first in row 3"],
    ),
    "more than float32 holds": (
        set_column("rewards", lambda c: c["rewards"].astype(np.float64) + 1e300),
        ["rewards holds NaN or infinite values"],
    ),
    "unequal lengths": (
        set_column("rewards", lambda c: c["rewards"][:-1]),
        ["rewards has shape (999,), but 1000 observations of Hopper-v4 need (1000,)"],
    ),
    "rewards as a column": (
        set_column("rewards", lambda c: c["rewards"][:, None]),
        ["rewards has shape (1000, 1)"],
    ),
    "another robot's observations": (
        set_column("observations", lambda c: np.zeros((1000, 17), np.float32)),
        ["observations has shape (1000, 17), but", "of Hopper-v4 need (1000, 11)"],
    ),
    "text": (
        set_column("actions", lambda c: np.array([b"left"] * 1000)),
        ["actions does not hold numbers"],
    ),
    "complex numbers": (as_type("rewards", np.complex64), ["rewards does not hold numbers"]),
    "a single number": (set_column("rewards", lambda c: 1.0), ["rewards does not hold numbers"]),
    "empty": (
        lambda c: {name: array[:0] for name, array in c.items()},
        ["holds no transitions"],
    ),
    "four rows": (
        lambda c: {name: array[-4:] for name, array in c.items()},
        ["4 transitions are fewer than a batch of 256", "holdout", "allow: [too_few_rows]"],
    ),
    "no end of any episode, and less than one": (
        lambda c: one_episode(300),
        ["no episode ends", "300 rows are fewer than the 1000 steps"],
    ),
    "actions x 17": (
        set_column("actions", lambda c: c["actions"] * 17),
        [
            "actions lie outside [-1, 1], the bounds of Hopper-v4, in",
            "the largest 17",
            "actions: clip or actions: rescale",
            "allow: [action_range]",
        ],
    ),
    "one action out of bounds": (
        set_rows("actions", 42, 1.5),
        ["in 1 of 1,000 rows (0.1%), first in row 42, the largest 1.5"],
    ),
    "terminals of -1 and 1": (
        set_column("terminals", lambda c: np.where(c["terminals"], 1, -1)),
        ["terminals holds values other than 0 and 1 in", "first -1 in row 0", "write 0 and 1"],
    ),
    "timeouts that count": (
        set_column("timeouts", lambda c: np.arange(1000)),
        ["timeouts holds values other than 0 and 1 in 998 of 1,000 rows", "in row 2"],
    ),
    "every row terminal": (
        set_rows("terminals", slice(None), True),
        ["terminals is true in 1,000 of 1,000 rows (100.0%)", "episodes last 1.0 steps"],
    ),
    "almost every row terminal": (
        set_column("terminals", lambda c: np.arange(1000) % 5 != 0),
        ["terminals is true in 800 of 1,000 rows (80.0%)"],
    ),
    "terminals at every timeout": (
        terminal_at_every_timeout,
        ["terminals is true at every one of", "a time limit is no end of the task"],
    ),
    "next observations shifted by seven rows": (
        shifted(7),
        ["next_observations is not the next row's observation in", "first in row 0", "shifted"],
    ),
    "next observations shifted by one row": (
        shifted(-1),
        ["next_observations is not the next row's observation in"],
    ),
    "rows in random order": (shuffled, ["next_observations is not the next row's", "sorted"]),
    "next observations of the reset state": (
        reset_states,
        ["next_observations is the state that the next episode was reset to at"],
    ),
    "terminals and terminations that differ": (
        lambda c: c | {"terminations": np.zeros(1000, bool)},
        ["has terminals and terminations, which differ: leave one of them out"],
    ),
    "one complete episode, of a single row": (
        lambda c: (
            without("next_observations")(c)
            | {"terminals": np.arange(1000) == 0}
            | {"timeouts": np.zeros(1000, bool)}
        ),
        ["no episode of two rows or more is complete"],
    ),
    "rewards x 2": (
        set_column("rewards", lambda c: c["rewards"] * 2),
        ["contradicts", "the reward is off by", "allow: [physics]"],
    ),
    "actions of the row before": (
        set_column("actions", lambda c: np.roll(c["actions"], 1, axis=0)),
        ["contradicts", "the next observation is off by"],
    ),
    "rewards x 1000": (
        set_column("rewards", lambda c: c["rewards"] * 1000),
        ["normalised scores beyond 200", "rewards may be scaled"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_what_where_and_remedy(odd_file, name):
    change, said = REFUSED[name]
    path = odd_file(change)
    with pytest.raises(UserError) as error:
        resolve(f"file:{path}")
    sentence = str(error.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    for words in said:
        assert words in sentence


TAKEN = {
    "as it is": (lambda c: None, []),
    "float64": (
        lambda c: {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in c.items()},
        ["observations is rounded from float64 to float32"],
    ),
    "integer rewards": (
        set_column("rewards", lambda c: c["rewards"].round().astype(np.int64)),
        ["rewards is of type int64, read as float32"],
    ),
    "Gymnasium's names": (renamed(terminals="terminations", timeouts="truncations"), []),
    "flags as numbers": (as_type("terminals", np.float64), []),
    "no timeouts": (
        without("timeouts"),
        ["has no timeouts: episodes end after 1000 steps", "and where next_observations does not"],
    ),
    "no terminals": (
        lambda c: without("terminals")(c) | {"timeouts": c["terminals"] | c["timeouts"]},
        ["has no terminals: no transition ends the task"],
    ),
    "no end of an episode": (
        lambda c: c | {"terminals": np.zeros(1000), "timeouts": np.zeros(1000)},
        ["marks no end of an episode: episodes end after 1000 steps, Hopper-v4's limit"],
    ),
    "one long episode, cut by the limit": (
        lambda c: {k: v for k, v in one_episode(2500).items() if k != "timeouts"},
        ["episodes end after 1000 steps, Hopper-v4's limit"],
    ),
    "no next observations": (
        without("next_observations"),
        ["has no next_observations: derived", "the last row of each episode is dropped"],
    ),
    "more columns than are needed": (lambda c: c | {"infos/log_pi": np.zeros(1000)}, []),
}


# Their values are not those of the simulator, which `physics` would say.
UNPHYSICAL = (
    "integer rewards",
    "no terminals",
    "no end of an episode",
    "one long episode, cut by the limit",
)


@pytest.mark.parametrize("name", TAKEN)
def test_it_is_taken_with_a_stated_conversion(odd_file, rolled_out, name, tmp_path):
    change, said = TAKEN[name]
    spec = resolve(f"file:{odd_file(change)}", allow=["physics"] if name in UNPHYSICAL else [])
    notes = " ".join(spec.notes)
    assert bool(notes) == bool(said)
    for words in said:
        assert words in notes
    data = load(spec, Storage(tmp_path / "storage"))
    assert len(data.reward) == spec.size
    if len(data.reward) == len(rolled_out.reward):
        np.testing.assert_array_equal(data.next_obs, rolled_out.next_obs)


def test_derived_next_observations_are_those_that_were_recorded(odd_file, rolled_out, tmp_path):
    """Every row that stays leads to what the full file says it led to, and ends where it did."""
    spec = resolve(f"file:{odd_file(without('next_observations'))}")
    data = load(spec, Storage(tmp_path / "storage"))
    ends = (rolled_out.terminal > 0) | rolled_out.timeout
    kept = np.flatnonzero(~ends)
    np.testing.assert_array_equal(data.obs, rolled_out.obs[kept])
    np.testing.assert_array_equal(data.next_obs, rolled_out.next_obs[kept])
    assert data.terminal.sum() == 0
    assert len(data.episode_ends) == ends.sum()
    np.testing.assert_array_equal(data.episode_ends, np.cumsum(~ends)[ends])


def test_the_content_of_what_is_derived_is_not_that_of_the_file(odd_file):
    whole = resolve(f"file:{odd_file(lambda c: None)}")
    derived = resolve(f"file:{odd_file(without('next_observations'))}")
    assert whole.content_hash == whole.files[0].sha256
    assert derived.content_hash != derived.files[0].sha256


def test_actions_are_clipped_or_rescaled_by_choice(odd_file, rolled_out, tmp_path):
    path = odd_file(set_column("actions", lambda c: c["actions"] * 17))
    storage = Storage(tmp_path / "storage")
    # Clipped, they are not those that made the transitions, which the physics tells.
    with pytest.raises(UserError, match=r"contradicts.*allow: \[physics\]"):
        resolve(f"file:{path}", actions="clip")
    specs = {"clip": resolve(f"file:{path}", actions="clip", allow=["physics"])}
    specs["rescale"] = resolve(f"file:{path}", actions="rescale")
    assert specs["clip"].content_hash != specs["rescale"].content_hash
    assert "clipped to the bounds in" in specs["clip"].notes[-1]
    assert "divided by 1" in specs["rescale"].notes[-1]
    clipped, rescaled = (load(spec, storage).action for spec in specs.values())
    np.testing.assert_array_equal(clipped, (rolled_out.action * 17).clip(-1, 1))
    largest = np.abs(rolled_out.action).max()
    np.testing.assert_allclose(rescaled, rolled_out.action / largest, rtol=1e-6, atol=1e-7)


def test_a_choice_that_changes_nothing_is_no_other_data_set(odd_file):
    path = odd_file(lambda c: None)
    assert resolve(f"file:{path}", actions="clip") == resolve(f"file:{path}")


def test_a_check_is_silenced_on_purpose_and_that_is_remembered(odd_file):
    path = odd_file(set_column("actions", lambda c: c["actions"] * 17))
    spec = resolve(f"file:{path}", allow=["action_range", "physics"])
    assert "action_range is allowed: actions lie outside" in spec.silenced[0]
    with pytest.raises(UserError, match="unknown check in allow 'everything': one of action_range"):
        resolve(f"file:{path}", allow=["everything"])


def test_what_is_only_odd_is_a_warning(odd_file):
    def change(columns):
        columns["observations"][:, 3] = columns["next_observations"][:, 3] = 0.5
        columns["observations"][:, 4] = columns["observations"][:, 5]
        columns["next_observations"][:, 4] = columns["next_observations"][:, 5]

    spec = resolve(f"file:{odd_file(change)}", allow=["physics"])
    assert "observations never change in dimension 3" in spec.warnings[0]
    assert "observations are the same in dimensions 4 and 5" in spec.warnings[1]


def test_bundled_data_are_plausible(tmp_path, rolled_out):
    path = tmp_path / "good.hdf5"
    path.write_bytes(hdf5.encode(rolled_out, {"env": "Hopper-v4"}))
    spec = resolve(f"file:{path}")
    assert (spec.notes, spec.warnings, spec.silenced) == ((), (), ())


def test_ends_that_nobody_marked_are_where_they_were(odd_file, rolled_out, tmp_path):
    """From the next observations alone; of 2,500 steps without a break, at the limit."""
    storage = Storage(tmp_path / "storage")
    data = load(resolve(f"file:{odd_file(without('timeouts'))}"), storage)
    ends = (rolled_out.terminal > 0) | rolled_out.timeout
    ends[-1] = rolled_out.terminal[-1] > 0  # what follows the last row, nobody knows
    assert data.episode_ends.tolist() == (np.flatnonzero(ends) + 1).tolist()
    long_file = odd_file(lambda c: one_episode(2500))
    long = load(resolve(f"file:{long_file}", allow=["physics"]), storage)
    assert long.episode_ends.tolist() == [1000, 2000]
