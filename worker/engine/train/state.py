"""Everything a training run needs to go on as if it had never stopped: tensors and JSON, so safetensors can hold it.

The names in `StepState.tensors` begin with `network.`, `best.`, `average.`, `optimizer.`, `random.` and `epoch.`.
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
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    at: Position,
    best: Weights,
    average: Weights | None,
    data: dict[str, Any],
) -> StepState:
    """Copies of everything; `data` is kept with it."""
    tensors = {f"network.{name}": tensor for name, tensor in copy_weights(network).items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    tensors |= {f"average.{name}": tensor.clone() for name, tensor in (average or {}).items()}
    numbers: dict[str, dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        for kind, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{kind}.{name}"] = value.detach().clone()
            else:
                numbers.setdefault(name, {})[kind] = value
    tensors["epoch.loss_sum"] = at.loss_sum.clone()
    tensors["random.order"] = at.order
    tensors["random.cpu"] = torch.get_rng_state()
    device = device_of(network)
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    position = {"epoch": at.epoch, "batches": at.batches, "samples": at.samples}
    return StepState(data | position | {"optimizer": numbers}, tensors)


def restore(
    state: StepState, network: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Weights, Weights | None, Position]:
    """Put `state` back; the best weights so far, the average where there is one, and where to go on come back."""
    load_weights(network, weights_in(state))
    device = device_of(network)
    _restore_optimizer(state, network, optimizer)
    torch.set_rng_state(state.tensors["random.cpu"])
    if device.type == "cuda" and "random.cuda" in state.tensors:
        torch.cuda.set_rng_state(state.tensors["random.cuda"], device)
    best, average = (
        {name: value.to(device, copy=True) for name, value in _part(state, prefix).items()}
        for prefix in ("best.", "average.")
    )
    data, tensors = state.data, state.tensors
    position = Position(
        data["epoch"], tensors["random.order"], data["batches"], data["samples"], tensors["epoch.loss_sum"]
    )
    return best, average or None, position


def _restore_optimizer(state: StepState, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Whatever the optimizer keeps for a parameter: tensors by the names of `capture` (a kind has no dot in it), the
    rest as numbers. PyTorch decides where each lives."""
    kept: dict[str, dict[str, Any]] = {name: dict(values) for name, values in state.data["optimizer"].items()}
    for key, value in _part(state, "optimizer.").items():
        kind, _, name = key.partition(".")
        kept.setdefault(name, {})[kind] = value
    places = {id(parameter): name for name, parameter in network.named_parameters()}
    names = [places[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    parameters = dict(network.named_parameters())
    own = {
        place: {kind: _laid_out_like(parameters[name], value) for kind, value in kept[name].items()}
        for place, name in enumerate(names)
        if name in kept
    }
    optimizer.load_state_dict({"state": own, "param_groups": optimizer.state_dict()["param_groups"]})


def _laid_out_like(parameter: nn.Parameter, value: Any) -> Any:
    """A copy of a value that the optimizer keeps, in the memory layout it would have given it."""
    if not isinstance(value, Tensor):
        return value
    # The count of steps is a scalar, and may live elsewhere than its parameter, which may be one too.
    alike = value.dim() > 0 and value.shape == parameter.shape
    return torch.empty_like(parameter).copy_(value) if alike else value.clone()


def weights_in(state: StepState) -> Weights:
    return _part(state, "network.")


def _part(state: StepState, prefix: str) -> Weights:
    return {name.removeprefix(prefix): value for name, value in state.tensors.items() if name.startswith(prefix)}
