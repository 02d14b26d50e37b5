"""Parquet files and NumPy's `.npz`: columns under D4RL's names.

In Parquet a column of vectors is a column of lists (`observations`), or one column per dimension
(`observations_0`, `observations_1`, ...).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile, ZipFile

import numpy as np

from algorithms.data.columns import NAMES, Columns, one_line, refuse_beyond_memory
from algorithms.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa


def read_npz(path: Path) -> Columns:
    """The columns of a `.npz` file; `env` in it, a string, names the environment.

    Raises:
        UserError: not such a file, arrays of Python objects, or more than fits into memory.
    """
    try:
        with ZipFile(path) as archive:
            sizes = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        refuse_beyond_memory(str(path), sum(info.file_size for info in sizes.values()))
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in NAMES if name in file.files}
            env_id = str(file["env"]) if "env" in file.files else None
    except (OSError, ValueError, BadZipFile, EOFError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read as .npz: {one_line(error)}") from error
    return Columns(str(path), arrays, env_id)


def read_parquet(path: Path) -> Columns:
    """The columns of a Parquet file; `env` in its schema's metadata names the environment.

    Raises:
        UserError: not such a file, empty values, lists of different lengths, or more than fits
            into memory.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            metadata = file.metadata
            groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
            refuse_beyond_memory(str(path), sum(group.total_byte_size for group in groups))
            schema = file.schema_arrow
            wanted = [name for name in schema.names if re.sub(r"_\d+$", "", name) in NAMES]
            table = file.read(columns=wanted)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as Parquet: {one_line(error)}") from error
    arrays = {}
    for name in dict.fromkeys(re.sub(r"_\d+$", "", name) for name in table.column_names):
        if name in table.column_names:
            arrays[name] = _column(path, name, table[name])
        else:
            arrays[name] = _numbered(path, name, table)
    env_id = (schema.metadata or {}).get(b"env")
    return Columns(str(path), arrays, env_id.decode() if env_id else None)


def _numbered(path: Path, name: str, table: pa.Table) -> np.ndarray:
    """`name_0`, `name_1`, ... side by side, `[rows, columns]`."""
    count = sum(re.fullmatch(rf"{name}_\d+", column) is not None for column in table.column_names)
    names = [f"{name}_{i}" for i in range(count)]
    if absent := [column for column in names if column not in table.column_names]:
        raise UserError(f"{path}: {name} has {count} columns, but there is no {absent[0]}")
    return np.stack([_column(path, column, table[column]) for column in names], axis=1)


def _column(path: Path, name: str, column: pa.ChunkedArray) -> np.ndarray:
    """`[rows]`, or `[rows, length]` of a column of lists of one length."""
    import pyarrow as pa

    if column.null_count:
        raise UserError(f"{path}: {name} is empty in {column.null_count} of {len(column)} rows")
    array = column.combine_chunks()
    if not pa.types.is_nested(array.type):
        return np.asarray(array.to_numpy(zero_copy_only=False))
    flat = array.flatten()
    lengths = np.asarray(array.value_lengths()) if len(array) else np.zeros(1)
    if flat.null_count or (lengths != lengths[0]).any() or pa.types.is_nested(flat.type):
        raise UserError(f"{path}: {name} must hold one list of numbers per row, all of one length")
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(len(array), -1)
