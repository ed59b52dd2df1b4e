"""What one process tells another: nudges over the broker, and the request that starts the engine."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from models.reading import ReadOptions
from models.spec import Spec

CONTROL_QUEUE = "control"
DEVICE_CLASSES: tuple[Literal["cpu", "cuda"], ...] = ("cpu", "cuda")

TASK_RUN_JOB = "modelpress.run_job"
"""To the queue of a device class; names no job: whoever is free claims the next row."""
TASK_INSPECT = "modelpress.inspect"
"""To the control queue; claims the next upload that waits for inspection."""
TASK_DELIVER = "modelpress.deliver"
"""To the control queue; claims the next message to a webhook that is due."""
TASK_SWEEP = "modelpress.sweep"
"""To the control queue, from beat."""


def queue_of(device_class: str) -> str:
    return f"device.{device_class}"


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputFile(_Request):
    """A file the engine may open. Without `sha256` (a person running the engine by hand) it is computed."""

    path: Path
    sha256: str | None = None

    def digest(self) -> str:
        if self.sha256 is not None:
            return self.sha256
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


class NetworkFile(InputFile):
    """`read` says what the file leaves open."""

    read: ReadOptions = ReadOptions()

    def identity(self) -> str:
        """The digest of the network as it is read."""
        return self.read.identify(self.digest())


class InspectNetworkRequest(_Request):
    kind: Literal["inspect_network"]
    network: NetworkFile


class InspectDatasetRequest(_Request):
    kind: Literal["inspect_dataset"]
    dataset: InputFile


class CompressRequest(_Request):
    """`folder` is the job folder: the engine writes nowhere else. `checkpoints` are files of finished steps, or
    of states inside one, which are kept every `checkpoint_seconds`. `teachers` are the networks that `distill.from`
    names, by id. `talks`: processes of the engine may talk to one another, over TCP on loopback."""

    kind: Literal["compress"] = "compress"
    network: NetworkFile
    dataset: InputFile | None = None
    teachers: dict[str, NetworkFile] = {}
    spec: Spec
    folder: Path
    device: Literal["cpu", "cuda"] = "cpu"
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    checkpoints: list[Path] = []
    checkpoint_seconds: Annotated[float, Field(gt=0)] = 300.0
    talks: bool = True


EngineRequest = Annotated[InspectNetworkRequest | InspectDatasetRequest | CompressRequest, Field(discriminator="kind")]
ENGINE_REQUEST: TypeAdapter[EngineRequest] = TypeAdapter(EngineRequest)
