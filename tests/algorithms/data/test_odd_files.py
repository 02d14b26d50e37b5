"""Files as people have them: each is taken with a stated conversion, or refused with a remedy.

Every row of the two tables is a way in which one good file is changed.
"""

import io
import os
import zipfile

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from algorithms.data import hdf5
from algorithms.data.source import load, resolve
from algorithms.errors import UserError
from algorithms.storage import Storage


def write(path, columns, **attributes):
    with h5py.File(path, "w") as file:
        file.attrs.update({"env": "Hopper-v4"} | attributes)
        for name, array in columns.items():
            file[name] = array
    return path


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


# --- files that are not what they say


def test_declared_rows_that_were_never_written_are_not_read(tmp_path):
    path = tmp_path / "huge.hdf5"
    with h5py.File(path, "w") as file:
        file.attrs["env"] = "Hopper-v4"
        for name, shape in (("observations", (10**8, 11)), ("actions", (10**8, 3))):
            file.create_dataset(name, shape, "f4", chunks=True, compression="gzip")
        file["rewards"] = np.zeros(10, np.float32)
    assert path.stat().st_size < 20_000
    with pytest.raises(UserError, match=r"observations declares 100,000,000 rows \(4.4 GB\), but"):
        resolve(f"file:{path}")


def test_a_file_that_would_exhaust_memory_is_not_read(tmp_path, monkeypatch, columns):
    monkeypatch.setattr("algorithms.data.columns.MOST_OF_MEMORY", 1e-9)
    with pytest.raises(UserError, match="of memory, of which data may take"):
        resolve(f"file:{write(tmp_path / 'x.hdf5', columns)}")


@pytest.mark.parametrize("how", ["a link", "a linked group", "a virtual column", "a raw file"])
def test_values_that_lie_in_another_file_are_refused(tmp_path, columns, how):
    """A hash of this file would not cover them."""
    write(tmp_path / "other.hdf5", columns)
    path = tmp_path / "x.hdf5"
    rewards = columns["rewards"]
    with h5py.File(path, "w") as file:
        file.attrs["env"] = "Hopper-v4"
        for name, array in columns.items():
            if name != "rewards":
                file[name] = array
        if how == "a link":
            file["rewards"] = h5py.ExternalLink("other.hdf5", "/rewards")
        elif how == "a linked group":
            file["elsewhere"] = h5py.ExternalLink("other.hdf5", "/")
            file["rewards"] = h5py.SoftLink("/elsewhere/rewards")
        elif how == "a virtual column":
            layout = h5py.VirtualLayout(shape=rewards.shape, dtype=rewards.dtype)
            layout[:] = h5py.VirtualSource("other.hdf5", "rewards", shape=rewards.shape)
            file.create_virtual_dataset("rewards", layout)
        else:
            raw = tmp_path / "rewards.raw"
            raw.write_bytes(rewards.tobytes())
            external = [(str(raw), 0, rewards.nbytes)]
            file.create_dataset("rewards", rewards.shape, rewards.dtype, external=external)
    with pytest.raises(UserError, match="another file") as error:
        resolve(f"file:{path}")
    assert str(path) in str(error.value)


@pytest.mark.parametrize("ending", [".hdf5", ".npz", ".parquet"])
@pytest.mark.parametrize("content", [b"", b"observations", None])
def test_damaged_bytes(tmp_path, columns, ending, content):
    path = tmp_path / f"x{ending}"
    if content is None:  # cut off
        write_as(path, columns)
        content = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as") as error:
        resolve(f"file:{path}", env="Hopper-v4")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["x.csv", "x", "x.pkl"])
def test_other_kinds_of_files(tmp_path, name):
    (tmp_path / name).write_text("observations")
    with pytest.raises(UserError, match=r"names end in .hdf5, .h5, .npz, .parquet can be read"):
        resolve(f"file:{tmp_path / name}", env="Hopper-v4")


def test_objects_in_npz_are_not_unpickled(tmp_path, columns):
    path = tmp_path / "x.npz"
    np.savez(path, **columns | {"rewards": np.array([object()] * 1000)})
    with pytest.raises(UserError, match="holds objects of Python's"):
        resolve(f"file:{path}", env="Hopper-v4")


def parquet(table):
    return lambda path: pq.write_table(table, path)


def hdf5_with(change):
    def write_file(path):
        with h5py.File(path, "w") as file:
            change(file)

    return write_file


def big_metadata(file):
    file.create_dataset("metadata/env", (10**11,), "f8", chunks=True)
    file["observations"] = np.zeros((300, 11))


def many_digits(file):
    file.create_group("episode_" + 5_000 * "1")


def undecodable(file):
    file.attrs["env"] = np.bytes_(b"\xff")
    file["observations"] = np.zeros((300, 11))


def npy(shape):
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        content, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    return content.getvalue()


def zipped(**members):
    def write_file(path):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    return write_file


LISTS = pa.list_(pa.float32())
NASTY = {
    "Parquet without rows": (
        ".parquet",
        parquet(pa.table({"observations": pa.array([], LISTS), "actions": pa.array([], LISTS)})),
    ),
    "Parquet with a structure": (
        ".parquet",
        parquet(pa.table({"observations": [{"a": 1.0}], "actions": [[0.0]], "rewards": [0.0]})),
    ),
    "Parquet with one name twice": (
        ".parquet",
        parquet(pa.table([pa.array([0.0]), pa.array([0.0])], names=["rewards", "rewards"])),
    ),
    "npz with a single value": (".npz", lambda path: np.savez(path, observations=1.0)),
    "npz with a member that is no array": (".npz", zipped(rewards=b"text")),
    "npz that declares more than it holds": (
        ".npz",
        zipped(**{"observations.npy": npy((10**13, 11))}),
    ),
    "HDF5 with an empty data space": (
        ".hdf5",
        hdf5_with(lambda file: file.create_dataset("observations", data=h5py.Empty("f4"))),
    ),
    "HDF5 with a huge name of the environment": (".hdf5", hdf5_with(big_metadata)),
    "HDF5 with an undecodable name of the environment": (".hdf5", hdf5_with(undecodable)),
    "HDF5 with an episode of 5,000 digits": (".hdf5", hdf5_with(many_digits)),
}


@pytest.mark.parametrize("name", NASTY)
def test_no_file_is_a_traceback(tmp_path, name):
    ending, write_file = NASTY[name]
    path = tmp_path / f"x{ending}"
    write_file(path)
    with pytest.raises(UserError) as error:
        resolve(f"file:{path}")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_what_files_declare_together_is_compared_with_the_memory(tmp_path, columns, monkeypatch):
    """Of Minari's episodes, of compressed Parquet, and of a pattern's files."""
    episodes = tmp_path / "main_data.hdf5"
    with h5py.File(episodes, "w") as file:
        for episode in range(20):
            group = file.create_group(f"episode_{episode}")
            group["observations"] = np.zeros((101, 11))
            for name, shape in (("actions", (100, 3)), ("rewards", 100)):
                group[name] = np.zeros(shape)
            for name in ("terminations", "truncations"):
                group[name] = np.zeros(100, dtype=bool)
    zeros = tmp_path / "zeros.parquet"
    pq.write_table(pa.table({"rewards": np.zeros(300_000, np.float32)}), zeros)
    assert zeros.stat().st_size < 10_000
    for part in "abcd":
        np.savez(tmp_path / f"{part}.npz", **columns)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for given, limit in ((episodes, 100_000), (zeros, 1_000_000), (tmp_path / "*.npz", 300_000)):
        monkeypatch.setattr("algorithms.data.columns.MOST_OF_MEMORY", limit / memory)
        with pytest.raises(UserError, match="of memory, of which data may take"):
            resolve(f"file:{given}", env="Hopper-v4")


@pytest.mark.parametrize("how", ["another spelling", "a link", "a copy"])
def test_a_file_counts_once(tmp_path, columns, how):
    path = write(tmp_path / "x.hdf5", columns)
    other = tmp_path / "y.hdf5"
    if how == "another spelling":
        (tmp_path / "sub").mkdir()
        other = tmp_path / "sub" / ".." / "x.hdf5"
    elif how == "a link":
        other.symlink_to(path)
    else:
        other.write_bytes(path.read_bytes())
        with pytest.raises(UserError, match="hold the same: leave one out"):
            resolve(f"file:{path} + {other}")
        return
    assert resolve(f"file:{path} + {other}").size == 1000


def test_a_plus_in_a_name_is_no_separator(tmp_path, columns):
    path = write(tmp_path / "a + b.hdf5", columns)
    assert resolve(f"file:{path}").size == 1000


# --- other formats


def write_as(path, columns):
    """The good file in the format that its name says."""
    if path.suffix == ".npz":
        np.savez_compressed(path, **columns)
    elif path.suffix == ".parquet":
        table = {k: pa.array(v.tolist() if v.ndim > 1 else v) for k, v in columns.items()}
        pq.write_table(pa.table(table), path)
    else:
        write(path, columns)
    return path


@pytest.mark.parametrize("ending", [".hdf5", ".h5", ".npz", ".parquet"])
def test_each_format_holds_the_same_transitions(tmp_path, columns, rolled_out, ending):
    path = write_as(tmp_path / f"x{ending}", columns)
    data = load(resolve(f"file:{path}", env="Hopper-v4"), Storage(tmp_path / "storage"))
    for mine, original in zip(data, rolled_out, strict=True):
        np.testing.assert_array_equal(mine, original)


def test_parquet_with_one_column_per_dimension(tmp_path, columns, rolled_out):
    flat = {}
    for name, array in columns.items():
        if array.ndim == 1:
            flat[name] = array
        else:
            flat |= {f"{name}_{i}": column for i, column in enumerate(array.T)}
    schema = pa.table(flat).schema.with_metadata({"env": "Hopper-v4"})
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table(flat).cast(schema), path)
    data = load(resolve(f"file:{path}"), Storage(tmp_path / "storage"))
    for mine, original in zip(data, rolled_out, strict=True):
        np.testing.assert_array_equal(mine, original)


def test_parquet_with_empty_values_or_ragged_lists(tmp_path, columns):
    path = tmp_path / "x.parquet"
    table = {k: pa.array(v.tolist()) for k, v in columns.items()}
    pq.write_table(pa.table(table | {"rewards": pa.array([None, *columns["rewards"][1:]])}), path)
    with pytest.raises(UserError, match="rewards is empty in 1 of 1000 rows"):
        resolve(f"file:{path}", env="Hopper-v4")
    ragged = [[0.0], *columns["actions"][1:].tolist()]
    pq.write_table(pa.table(table | {"actions": pa.array(ragged)}), path)
    with pytest.raises(UserError, match="actions must hold one list of numbers per row"):
        resolve(f"file:{path}", env="Hopper-v4")


@pytest.mark.parametrize("form", ["pattern", "list"])
def test_several_files_are_one_data_set(tmp_path, columns, rolled_out, form):
    half = {name: array[:500] for name, array in columns.items()}
    rest = {name: array[500:] for name, array in columns.items()}
    one, two = write_as(tmp_path / "a.npz", half), write_as(tmp_path / "b.npz", rest)
    given = f"{tmp_path}/*.npz" if form == "pattern" else f"{one} + {two}"
    spec = resolve(f"file:{given}", env="Hopper-v4")
    assert [file.path for file in spec.files] == [str(one), str(two)]
    data = load(spec, Storage(tmp_path / "storage"))
    np.testing.assert_array_equal(data.obs, rolled_out.obs)
    assert data.terminal[499] or data.timeout[499]  # another episode begins with another file
    if not (rolled_out.terminal[499] or rolled_out.timeout[499]):
        assert "a.npz ends inside an episode" in " ".join(spec.notes)


def test_files_of_different_environments_or_none(tmp_path, columns):
    write(tmp_path / "a.hdf5", columns)
    write(tmp_path / "b.hdf5", columns, env="Walker2d-v4")
    with pytest.raises(UserError, match="the files are of different environments"):
        resolve(f"file:{tmp_path}/*.hdf5")
    with pytest.raises(UserError, match="no file matches"):
        resolve(f"file:{tmp_path}/*.npz")
    with pytest.raises(UserError, match="is a folder without Minari's"):
        resolve(f"file:{tmp_path}")


# --- what good data are


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
