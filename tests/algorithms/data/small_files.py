"""Writing small files of data in the formats that can be read."""

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def write(path, columns, **attributes):
    with h5py.File(path, "w") as file:
        file.attrs.update({"env": "Hopper-v4"} | attributes)
        for name, array in columns.items():
            file[name] = array
    return path


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
