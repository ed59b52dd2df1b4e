"""The state after a step, as one safetensors file: what the steps did, and every weight. No pickle."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from pydantic import TypeAdapter
from safetensors import safe_open
from safetensors.torch import save_file

from models.errors import Code, Failure
from models.report import StepReport
from worker.engine.prune.step import replay as replay_prune
from worker.engine.quantize.step import replay as replay_quantize
from worker.engine.subject import Record, Subject
from worker.engine.train.step import replay as replay_finetune

_FORMAT = "modelpress-checkpoint-1"
REPLAY = {"prune": replay_prune, "finetune": replay_finetune, "quantize": replay_quantize}
_REPORTS = TypeAdapter(list[StepReport])


def save_checkpoint(subject: Subject, reports: list[StepReport], path: Path) -> None:
    """Write `subject` after its last step to `path`. Tied parameters are written once."""
    tensors = {f"state.{name}": tensor.detach().contiguous() for name, tensor in _state(subject).items()}
    for index, record in enumerate(subject.records):
        for name, tensor in record.tensors.items():
            tensors[f"record.{index}.{name}"] = tensor.detach().contiguous()
    metadata = {
        "format": _FORMAT,
        "records": json.dumps([{"step": record.step, "data": record.data} for record in subject.records]),
        "reports": _REPORTS.dump_json(reports).decode(),
    }
    save_file(tensors, path, metadata)


def restore_checkpoint(subject: Subject, path: Path) -> list[StepReport]:
    """Bring a freshly lifted `subject` to the state in `path`; the reports of the steps it stands for come back.

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
    return [report.model_copy(update={"resumed": True}) for report in _REPORTS.validate_json(metadata["reports"])]


def _state(subject: Subject) -> dict[str, torch.Tensor]:
    """Every parameter and buffer of the graph, each once under its first name."""
    return dict(subject.graph.named_parameters()) | dict(subject.graph.named_buffers())
