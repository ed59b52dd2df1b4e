"""`python -P reader.py KIND FILE…`: inspect and read data with little memory, in a process of its own; prints JSON."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from models.inspection import TensorInfo
from models.spec import Data
from worker.engine.data import hdf5, parquet
from worker.engine.data.dataset import open_dataset
from worker.engine.data.inspect import inspect_dataset

LOADED = (hdf5, parquet)
"""Before memory is limited: the libraries start threads of their own."""
MORE_BYTES = 120 << 20
"""What the process may allocate beside what it has after its imports."""


def _data_bytes() -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData")]
    return int(line.split()[1]) << 10


def read_with_little_memory(path: Path) -> dict[str, object]:
    """Every sample of every part, and the sum of what there is; the kernel limits anonymous memory."""
    limit = _data_bytes() + MORE_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    inspection = inspect_dataset(path)
    [info] = inspection.inputs
    wanted = TensorInfo(name=info.name, dtype="float32", shape=[None, *info.shape])
    if inspection.holds_images:
        wanted = TensorInfo(name="x", dtype="float32", shape=[None, 3, 8, 8])
    dataset = open_dataset(path, Data(dataset="d"), (wanted,), seed=0)
    total, count = 0.0, 0
    for part in (dataset.train, dataset.val, dataset.test):
        for batch in part.batches(8):
            total += float(batch.inputs[0].double().sum())
            count += len(batch)
    return {"format": inspection.format, "total": total, "count": count}


if __name__ == "__main__":
    files = [Path(name) for name in sys.argv[2:]]
    if sys.argv[1] == "little":
        print(json.dumps(read_with_little_memory(files[0])))
    else:
        print(json.dumps([inspect_dataset(file).model_dump(mode="json") for file in files]))
