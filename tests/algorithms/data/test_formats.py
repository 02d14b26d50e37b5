"""Each format holds the same transitions, and several files are one data set."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_files import write, write_as

from algorithms.data.source import load, resolve
from algorithms.errors import UserError
from algorithms.storage import Storage


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
