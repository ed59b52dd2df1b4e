"""Everything a training run needs to go on as if it had never stopped: tensors and JSON, so safetensors can hold it.

The names in `StepState.tensors` begin with `network.`, `best.`, `optimizer.`, `random.` and `epoch.`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from models.errors import Code, Failure
from worker.engine.subject import StepState

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Position:
    """In an epoch, after `batches` batches with `samples` samples, whose losses add up to `loss_sum`.

    `order` is the state of the shuffling generator at the start of the epoch; `is_end`: nothing more is to come in it.
    """

    epoch: int
    order: Tensor
    batches: int = 0
    samples: int = 0
    loss_sum: Tensor = field(default_factory=lambda: torch.zeros(()))
    is_end: bool = True

    def mean_loss(self) -> float:
        return float(self.loss_sum) / self.samples


def device_of(network: nn.Module) -> torch.device:
    """Where its parameters are. Raises Failure(NOT_TRAINABLE) when there are none."""
    for parameter in network.parameters():
        return parameter.device
    raise Failure(Code.NOT_TRAINABLE, "The network has no parameters, so nothing can be trained.")


def weights_of(network: nn.Module) -> Weights:
    """The network's own parameters and buffers, each once (tied ones share a name)."""
    return dict(network.named_parameters()) | dict(network.named_buffers())


def copy_weights(network: nn.Module) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in weights_of(network).items()}


def load_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in weights_of(network).items():
            tensor.copy_(weights[name])


def capture(
    network: nn.Module, optimizer: torch.optim.Optimizer, at: Position, best: Weights, data: dict[str, Any]
) -> StepState:
    """Copies of everything; `data` is kept with it."""
    tensors = {f"network.{name}": tensor for name, tensor in copy_weights(network).items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for name, parameter in network.named_parameters():
        for kind, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{kind}.{name}"] = value.detach().clone()
    tensors["epoch.loss_sum"] = at.loss_sum.clone()
    tensors["random.order"] = at.order
    tensors["random.cpu"] = torch.get_rng_state()
    device = device_of(network)
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    return StepState(data | {"epoch": at.epoch, "batches": at.batches, "samples": at.samples}, tensors)


def restore(state: StepState, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Weights, Position]:
    """Put `state` back; the best weights so far and where to go on come back."""
    load_weights(network, _part(state, "network."))
    device = device_of(network)
    for name, parameter in network.named_parameters():
        kinds = {
            key.removeprefix("optimizer.").removesuffix(f".{name}"): value
            for key, value in state.tensors.items()
            if key in (f"optimizer.step.{name}", f"optimizer.exp_avg.{name}", f"optimizer.exp_avg_sq.{name}")
        }
        if kinds:
            optimizer.state[parameter] = {
                # AdamW keeps its step count on the CPU.
                kind: value.clone() if kind == "step" else value.to(device, copy=True)
                for kind, value in kinds.items()
            }
    torch.set_rng_state(state.tensors["random.cpu"])
    if device.type == "cuda" and "random.cuda" in state.tensors:
        torch.cuda.set_rng_state(state.tensors["random.cuda"], device)
    best = {name: value.to(device, copy=True) for name, value in _part(state, "best.").items()}
    data, tensors = state.data, state.tensors
    position = Position(
        data["epoch"], tensors["random.order"], data["batches"], data["samples"], tensors["epoch.loss_sum"]
    )
    return best, position


def _part(state: StepState, prefix: str) -> Weights:
    return {name.removeprefix(prefix): value for name, value in state.tensors.items() if name.startswith(prefix)}
