"""Parquet files and NumPy's `.npz`: columns under D4RL's names.

In Parquet a column of vectors is a column of lists (`observations`), or one column per dimension
(`observations_0`, `observations_1`, ...).
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile, ZipFile

import numpy as np
from rich.filesize import decimal

from algorithms.data.columns import NAMES, Columns, one_line
from algorithms.errors import UserError

VALUE_BYTES = 8  # of a value in memory at most

if TYPE_CHECKING:
    import pyarrow as pa


def read_npz(path: Path) -> Columns:
    """The columns of a `.npz` file; `env` in it, a string, names the environment.

    Raises:
        UserError: not such a file, arrays of Python objects, or more than fits into memory.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in NAMES if name in file.files}
            env_id = str(file["env"]) if "env" in file.files else None
    except (OSError, ValueError, BadZipFile, EOFError) as error:
        raise UserError(f"{path} cannot be read as .npz: {one_line(error)}") from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise UserError(f"{path}: {name} is no array of NumPy's")
    return Columns(str(path), arrays, env_id)


def npz_bytes(path: Path) -> int:
    """The size of all arrays of a `.npz` file, as their headers declare it; nothing is read.

    Raises:
        UserError: not such a file, or an array that declares more than it holds.
    """
    total = 0
    try:
        with ZipFile(path) as archive:
            for info in archive.infolist():
                with archive.open(info) as file:
                    version = np.lib.format.read_magic(file)
                    read = {
                        (1, 0): np.lib.format.read_array_header_1_0,
                        (2, 0): np.lib.format.read_array_header_2_0,
                    }[version]
                    shape, _, dtype = read(file)
                if dtype.hasobject:
                    raise UserError(f"{path}: {info.filename} holds objects of Python's")
                size = math.prod(shape) * dtype.itemsize
                if size > info.file_size:
                    raise UserError(
                        f"{path}: {info.filename} declares {decimal(size)}, but holds "
                        f"{decimal(info.file_size)}: it is damaged"
                    )
                total += size
    except (OSError, ValueError, BadZipFile, EOFError, KeyError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read as .npz: {one_line(error)}") from error
    return total


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
    return Columns(str(path), arrays, env_id.decode(errors="replace") if env_id else None)


def parquet_bytes(path: Path) -> int:
    """The size of all columns of a Parquet file, once decoded; nothing is read.

    A row's share of a list is known by the number of values, of which the file has a count.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
            chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
            return sum(chunk.num_values * VALUE_BYTES for chunk in chunks)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as Parquet: {one_line(error)}") from error


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
    if not hasattr(array, "value_lengths") or not len(array):
        raise UserError(f"{path}: {name} must hold one list of numbers per row, and holds none")
    flat = array.flatten()
    lengths = np.asarray(array.value_lengths()) if len(array) else np.zeros(1)
    if flat.null_count or (lengths != lengths[0]).any() or pa.types.is_nested(flat.type):
        raise UserError(f"{path}: {name} must hold one list of numbers per row, all of one length")
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(len(array), -1)
