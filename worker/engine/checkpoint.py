"""The state after a step, or inside one, as one safetensors file: what the steps did, and every weight. No pickle."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from models.checkpoints import inside_key
from models.errors import Code, Failure
from models.events import CheckpointEvent
from models.report import StepReport
from worker.engine.factorize.step import replay as replay_factorize
from worker.engine.lowbit import pupil
from worker.engine.lowbit.step import replay as replay_low_bit
from worker.engine.prune.step import replay as replay_prune
from worker.engine.quantize.dynamic.step import replay as replay_dynamic
from worker.engine.quantize.qat import step as qat
from worker.engine.quantize.step import replay as replay_quantize
from worker.engine.quantize.stored.step import replay as replay_stored
from worker.engine.run import Run
from worker.engine.sparsify.step import replay as replay_sparsify
from worker.engine.subject import BESIDE, Record, StepState, Subject
from worker.engine.train.step import replay as replay_finetune

_FORMAT = "modelpress-checkpoint-2"
REPLAY = {
    "prune": replay_prune,
    "sparsify": replay_sparsify,
    "factorize": replay_factorize,
    "finetune": replay_finetune,
    "quantize": replay_quantize,
    qat.TRAINING: qat.replay_training,
    "quantize dynamic": replay_dynamic,
    "quantize stored": replay_stored,
    "quantize int4": replay_low_bit,
    "quantize ternary": replay_low_bit,
    "quantize binary": replay_low_bit,
    "quantize codebook": replay_low_bit,
    pupil.TRAINING: pupil.replay_training,
}
_REPORTS = TypeAdapter(list[StepReport])
_NETWORK = "network."
"""How `StepState` names the weights that are the subject's own."""

_STATES_KEPT = 3
"""Files of states inside a step: the newest, and those that the worker may not have copied yet."""


class Checkpoints:
    """Of one run: writes them and says where they lie. A disk that is full costs the checkpoint, not the job."""

    def __init__(self, subject: Subject, run: Run, keys: list[str]) -> None:
        self._subject, self._run, self._keys = subject, run, keys
        self._folder = run.folder / "checkpoints"
        self._states: list[Path] = []

    def after_step(self, reports: list[StepReport]) -> None:
        """The last of `reports` is of the step that just ended."""
        key = self._keys[len(reports) - 1]
        path = self._folder / f"{key}.safetensors"
        if self._save(reports, path, None):
            self._say(len(reports) - 1, None, path)

    def inside_step(self, reports: list[StepReport], state: StepState) -> None:
        """In the step after the last of `reports`. Each gets a file of its own: the one before may be being read."""
        key = inside_key(self._keys[len(reports)])
        number = int(self._states[-1].parent.name) + 1 if self._states else 1
        path = self._folder / str(number) / f"{key}.safetensors"
        if self._save(reports, path, state):
            self._states.append(path)
            self._say(len(reports), state.data.get("epoch"), path)
        for old in self._states[:-_STATES_KEPT]:
            shutil.rmtree(old.parent)
            self._states.remove(old)

    def _save(self, reports: list[StepReport], path: Path, state: StepState | None) -> bool:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_checkpoint(self._subject, reports, path, state)
        except (OSError, SafetensorError) as error:
            if not _is_disk_full(error):
                raise
            path.unlink(missing_ok=True)
            self._run.warn("checkpoint_not_kept", "The disk is full: should this attempt be lost, work is done again.")
            return False
        return True

    def _say(self, step_index: int, epoch: int | None, path: Path) -> None:
        name = str(path.relative_to(self._run.folder))
        self._run.emit(CheckpointEvent(step_index=step_index, epoch=epoch, path=name, key=path.stem))


def save_checkpoint(subject: Subject, reports: list[StepReport], path: Path, training: StepState | None = None) -> None:
    """Write `subject` to `path`, after its last step or, with `training`, inside the next. Tied parameters are written
    once, and the network that is trained not a second time."""
    tensors = {f"state.{name}": tensor.detach().contiguous() for name, tensor in _state(subject).items()}
    for index, record in enumerate(subject.records):
        for name, tensor in record.tensors.items():
            tensors[f"record.{index}.{name}"] = tensor.detach().contiguous()
    inside = {} if training is None else training.tensors
    for name, tensor in inside.items():
        if not name.startswith(_NETWORK) or name.startswith(f"{_NETWORK}{BESIDE}."):
            tensors[f"training.{name}"] = tensor.contiguous()
    metadata = {
        "format": _FORMAT,
        "records": json.dumps([{"step": record.step, "data": record.data} for record in subject.records]),
        "reports": _REPORTS.dump_json(reports).decode(),
        "training": json.dumps(None if training is None else training.data),
    }
    save_file(tensors, path, metadata)


def restore_checkpoint(subject: Subject, path: Path) -> tuple[list[StepReport], StepState | None]:
    """Bring a freshly lifted `subject` to the state in `path`; the reports of the steps it stands for come back, and
    what the training that was under way goes on from.

    Raises `Failure(INTERNAL)` when the file is not a checkpoint of this network.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != _FORMAT:
            raise Failure(Code.INTERNAL, "not a checkpoint of this version", where=path.name)
        names = list(file.keys())
        for index, row in enumerate(json.loads(metadata["records"])):
            prefix = f"record.{index}."
            tensors = {name.removeprefix(prefix): file.get_tensor(name) for name in names if name.startswith(prefix)}
            record = Record(row["step"], row["data"], tensors)
            REPLAY[record.step](subject, record)
            subject.records.append(record)
        state = _state(subject)
        stored = {name.removeprefix("state.") for name in names if name.startswith("state.")}
        if stored != set(state):
            raise Failure(Code.INTERNAL, "the checkpoint's tensors are not this network's", where=path.name)
        with torch.no_grad():
            for name, tensor in state.items():
                tensor.copy_(file.get_tensor(f"state.{name}"))
        training = None
        if (data := json.loads(metadata["training"])) is not None:
            inside = {
                name.removeprefix("training."): file.get_tensor(name) for name in names if name.startswith("training.")
            }
            network = {f"{_NETWORK}{name}": file.get_tensor(f"state.{name}") for name in state}
            training = StepState(data, inside | network)
    reports = [report.model_copy(update={"resumed": True}) for report in _REPORTS.validate_json(metadata["reports"])]
    return reports, training


def _is_disk_full(error: OSError | SafetensorError) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "os error 28)" in str(error) or "os error 122)" in str(error)  # it wraps the system's error in words


def _state(subject: Subject) -> dict[str, torch.Tensor]:
    """Every parameter and buffer of the graph, each once under its first name."""
    named = dict(subject.graph.named_parameters()) | dict(subject.graph.named_buffers())
    return {name: tensor for name, tensor in named.items() if not name.startswith(f"{BESIDE}.")}
