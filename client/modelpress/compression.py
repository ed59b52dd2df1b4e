"""`compress`: from a module and a loader to a smaller network, in one call."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelpress.client import Client
from modelpress.data_file import prepare_data
from modelpress.job import Job
from modelpress.network_file import load, prepare
from modelpress.outcomes import JobFailed
from modelpress.types import Event, Json

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Result:
    """What `compress` gives back: the files in `folder`, the numbers in `report`."""

    job: Job
    folder: Path
    report: Json

    def network(self) -> nn.Module:
        """The compressed network, to run, train on or send again."""
        return load(self.folder)


def compress(
    module: nn.Module,
    loader: Any = None,
    preset: str | None = "balanced",
    *,
    example_inputs: Any = None,
    folder: str | Path | None = None,
    limit: int | None = None,
    client: Client | None = None,
    on_event: Callable[[Event], None] | None = None,
    **spec: Any,
) -> Result:
    """Compress `module` and wait for the result.

    `loader` is anything `prepare_data` takes, `limit` samples of it at most; without it only presets that need no
    data work. `example_inputs` default to the loader's first batch. Files go to `folder`, by default a new one in the
    current directory named after the job. `spec` is the rest of a job's fields; `steps=[…]` replaces the preset.

    Raises JobFailed, UploadRejected, ApiError.
    """
    if "steps" in spec:
        preset = None
    if preset is not None:
        spec["preset"] = preset
    service = client or Client()
    try:
        with tempfile.TemporaryDirectory(prefix="modelpress-") as scratch:
            if loader is not None:
                data = prepare_data(loader, Path(scratch) / "data.npz", limit)
                example_inputs = _examples(data) if example_inputs is None else example_inputs
            file = prepare(module, example_inputs, Path(scratch) / f"{type(module).__name__}.pt2")
            if loader is not None:
                spec["data"] = {**spec.get("data", {}), "dataset": service.datasets.upload(data).id}
            network = service.models.upload(file)
        job = service.jobs.create(model=network, **spec).wait(on_event=on_event)
        if job.status != "succeeded":
            raise JobFailed(job)
        return Result(job, job.download(folder or Path(job.id)), job.report())
    finally:
        if client is None:
            service.close()


def _examples(data: Path) -> Any:
    """Two samples of each input; 8-bit images become floats, as the service makes them."""
    import numpy as np

    with np.load(data, allow_pickle=False) as arrays:
        inputs = {name: arrays[name][:2] for name in arrays.files if name not in ("y", "split")}
    inputs = {name: array.astype(np.float32) if array.dtype == np.uint8 else array for name, array in inputs.items()}
    if "x" in inputs or "x0" in inputs:
        return tuple(inputs[name] for name in sorted(inputs, key=lambda name: int(name[1:] or 0)))
    return inputs
