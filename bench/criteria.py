"""What is right after pruning the demo's network by each criterion and a short training: ours and Torch-Pruning.

Both prune the same trained network by the same amount and are then trained by the same loop from the same seeds.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bench import torch_pruning
from deploy.demo_network import BATCH, MEAN, STD, Arrays, SmallResNet, accuracy, digits, part, train
from modelpress import prepare, prepare_data
from models.criteria import CRITERIA
from models.spec import Data, PruneStep, Spec, Transform
from worker.engine.data.dataset import open_dataset
from worker.engine.graph.lift import lift
from worker.engine.ingest.read import read_network
from worker.engine.prune.step import run as prune
from worker.engine.run import Run

TRAINED_EPOCHS = 8
RATE = 2e-3
SAMPLES = 512
SEEDS = range(3)
INPUT = torch.zeros(2, 1, 28, 28)
Prune = Callable[[int], nn.Module]
"""A pruned copy of the network, by the seed."""


@dataclass(frozen=True)
class Amount:
    """How much goes, as our spec says it; `enough` says it to Torch-Pruning where it ranks over the whole network."""

    what: str
    spec: dict[str, Any]
    enough: Callable[[nn.Module], bool] | None


def criteria(console: Console) -> None:
    """Print one table an amount: what is right before and after the training, of 1,500 digits that nothing was trained
    on, on average over seeds."""
    data = digits()
    console.print("training the demo's network …")
    network = train(data, TRAINED_EPOCHS, lambda epoch, value: None)
    half = _macs(network) / 2
    amounts = (
        Amount(
            "half of the channels of every group",
            {"amount": {"channels": 0.5}, "scope": "layer", "round_to": 1},
            None,
        ),
        Amount(
            "one ranking over the network, until half of the multiply-accumulates are gone",
            {"amount": {"macs": 0.5}, "scope": "global", "round_to": 1},
            lambda pruned: _macs(pruned) <= half,
        ),
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(network, INPUT, folder / "network.pt2")
        prepare_data(data, folder / "data.npz")
        for amount in amounts:
            table = Table(title=f"{amount.what}; one epoch; right before and after, of {_right(network, data):.1%}")
            table.add_column("")
            for heading in ("ours", "", "Torch-Pruning", ""):
                table.add_column(heading, justify="right")
            for name, choice in _choices().items():
                console.print(f"{name} …", style="dim")
                own = _scores(partial(_ours, folder, amount, choice), data)
                peer = ("", "")
                if name in torch_pruning.IMPORTANCE:
                    peer = _scores(partial(_theirs, network, data, amount, name), data)
                table.add_row(name, *own, *peer)
            console.print(table)


def _choices() -> dict[str, dict[str, Any]]:
    """What our spec says for each row: every criterion, and those that need gradients again without labels."""
    rows: dict[str, dict[str, Any]] = {name: {"criterion": name} for name in CRITERIA}
    for name, info in CRITERIA.items():
        if info.needs == "gradients":
            rows[f"{name}, no labels"] = {"criterion": name, "loss": "distill"}
    return rows


def _scores(pruned: Prune, data: Arrays) -> tuple[str, str]:
    """What is right before and after training, on average over seeds."""
    before, after = [], []
    for seed in SEEDS:
        network = pruned(seed)
        before.append(_right(network, data))
        after.append(_right(_trained(network, data, seed), data))
    return f"{mean(before):.1%}", f"{mean(after):.1%}"


def _ours(folder: Path, amount: Amount, choice: dict[str, Any], seed: int) -> nn.Module:
    subject = lift(read_network(folder / "network.pt2"))
    step = PruneStep.model_validate({"step": "prune", "samples": SAMPLES, **amount.spec, **choice})
    data = Data(dataset="dat_bench", task="classification", transform=Transform(mean=[MEAN], std=[STD]))
    prune(
        subject,
        step,
        Run(
            spec=Spec(model="net_bench", steps=[step], data=data, seed=seed),
            folder=folder,
            emit=lambda event: None,
            device=torch.device("cpu"),
            data=open_dataset(folder / "data.npz", data, subject.inputs, seed=0),
        ),
    )
    return subject.graph


def _theirs(network: SmallResNet, data: Arrays, amount: Amount, criterion: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    pruned = copy.deepcopy(network).eval()
    x, y = part(data, "train")
    chosen = torch.randperm(len(x))[:SAMPLES]
    torch_pruning.prune(pruned, (INPUT,), ["head"], criterion, (x[chosen], y[chosen]), amount.enough)
    return pruned


def _trained(network: nn.Module, data: Arrays, seed: int) -> nn.Module:
    """One epoch of AdamW on the labels, one cycle."""
    torch.manual_seed(seed)
    x, y = part(data, "train")
    network.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=len(x) // BATCH)
    for batch in torch.randperm(len(x))[: len(x) // BATCH * BATCH].view(-1, BATCH):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(network(x[batch]), y[batch]))
        optimizer.step()
        schedule.step()
    return network.eval()


def _right(network: nn.Module, data: Arrays) -> float:
    """Neither split takes part in any choice here."""
    network.eval()
    return mean(accuracy(network, data, split) for split in ("val", "test"))


def _macs(network: nn.Module) -> int:
    """Multiply-accumulates of convolutions and linear layers for one sample, counted as the network runs."""
    counted: list[int] = []

    def count(layer: nn.Module, _: Any, output: Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        counted.append(output[0].numel() * int(np.prod(weight.shape[1:])))

    layers: Sequence[nn.Module] = [each for each in network.modules() if isinstance(each, (nn.Conv2d, nn.Linear))]
    handles = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        network(INPUT)
    for handle in handles:
        handle.remove()
    return sum(counted)
