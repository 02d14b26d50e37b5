"""Files that are not what they say: refused in one sentence, before they do harm."""

import io
import os
import zipfile

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_files import write, write_as

from algorithms.data.source import resolve
from algorithms.errors import UserError


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
