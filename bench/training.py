"""Training: images a second of our loop beside a plain torch loop, and what sparse training saves a cut.

The plain loop trains the module itself, over a DataLoader of tensors that are normalised already; ours the network that
was read from a file, over the file's bytes. Both take AdamW, one cycle and clipped gradients, in turns.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bench.criteria import INPUT
from deploy.demo_network import BATCH, MEAN, STD, Arrays, SmallResNet, accuracy, digits, part, train
from modelpress import prepare, prepare_data
from models.spec import Data, FinetuneStep, PruneStep, Spec, Transform
from models.spec_speed import Speed
from worker.engine.data.dataset import Batch, Dataset, open_dataset
from worker.engine.graph.lift import lift
from worker.engine.ingest.read import read_network
from worker.engine.prune.step import run as prune
from worker.engine.run import Run
from worker.engine.subject import Subject
from worker.engine.train import loop
from worker.engine.train.measure_numerics import choose_numerics
from worker.engine.train.numerics import Numerics
from worker.engine.train.step import run as finetune

ROUNDS = 5
RATE = 2e-3
TRAINED_EPOCHS = 8
SPARSE_EPOCHS = 16
PENALTIES: dict[str, tuple[dict[str, Any] | None, str]] = {
    "none, cut by l2": (None, "l2"),
    "group_lasso": ({"penalty": "group_lasso"}, "l2"),
    "growing": ({"penalty": "growing", "fraction": 0.5}, "l2"),
    "none, cut by bn_gamma": (None, "bn_gamma"),
    "bn_gamma": ({"penalty": "bn_gamma"}, "bn_gamma"),
    "bn_gamma with shifts": ({"penalty": "bn_gamma", "shifts": True}, "bn_gamma"),
}


def training(console: Console) -> None:
    """Print two tables, each measured in one run."""
    data = digits()
    console.print("training the demo's network …")
    network = train(data, TRAINED_EPOCHS, lambda epoch, value: None)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(network, INPUT, folder / "network.pt2")
        prepare_data(data, folder / "data.npz")
        console.print(_speeds(network, data, folder))
        console.print(_cuts(data, folder))


def _speeds(network: SmallResNet, data: Arrays, folder: Path) -> Table:
    subject, opened = _opened(folder)
    chosen = choose_numerics(
        Speed(precision="auto", channels_last="auto"),
        subject.graph,
        opened.train,
        _cross_entropy(subject.graph),
        _plan(Numerics()),
        {},
    )
    x, y = part(data, "train")
    loops: dict[str, Callable[[], None]] = {
        "plain torch loop": lambda: _plain(copy.deepcopy(network), x, y),
        "our loop": lambda: _ours(folder, Numerics()),
        f"our loop, auto ({chosen.numerics})": lambda: _ours(folder, chosen.numerics),
    }
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(ROUNDS + 1):  # The first warms up.
        for name, run in loops.items():
            began = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - began)
    table = Table(title=f"one epoch of {len(x):,} digits, batches of {BATCH}, one thread; median of {ROUNDS} rounds")
    for heading in ("", "images/s", "against the plain loop"):
        table.add_column(heading, justify="right" if heading else "left")
    plain = seconds["plain torch loop"]
    for name, taken in seconds.items():
        ratio = median(base / own for base, own in zip(plain, taken, strict=True))
        table.add_row(name, f"{len(x) / median(taken):,.0f}", f"{ratio:.2f}x")
    return table


def _cuts(data: Arrays, folder: Path) -> Table:
    title = f"{SPARSE_EPOCHS} epochs with a penalty, then half of the channels of every group cut, no training after"
    table = Table(title=title)
    for heading in ("penalty", "before the cut", "right after it", "near zero"):
        table.add_column(heading, justify="right" if heading != "penalty" else "left")
    for name, (penalty, criterion) in PENALTIES.items():
        subject, opened = _opened(folder)
        step = FinetuneStep.model_validate(
            {
                "step": "finetune",
                "epochs": SPARSE_EPOCHS,
                "learning_rate": RATE,
                "loss": "task",
                "keep": "last",
                "regularize": penalty,
            }
        )
        cut = PruneStep.model_validate(
            {"step": "prune", "criterion": criterion, "amount": {"channels": 0.5}, "scope": "layer", "round_to": 1}
        )
        run = Run(
            spec=Spec(model="net_bench", steps=[step, cut], data=_data(), seed=0),
            folder=folder,
            emit=lambda event: None,
            device=torch.device("cpu"),
            data=opened,
        )
        found = finetune(subject, step, run).get("regularize")
        before = _right(subject.graph, data)
        prune(subject, cut, run)
        near = "" if found is None else f"{found['near_zero_after']} of {found['total']} {found['of']}"
        table.add_row(name, f"{before:.1%}", f"{_right(subject.graph, data):.1%}", near)
    return table


def _ours(folder: Path, numerics: Numerics) -> None:
    subject, opened = _opened(folder)
    loop.train(
        subject.graph,
        opened.train,
        _cross_entropy(subject.graph),
        lambda: loop.Verdict(0.0, 0.0),
        _plan(numerics),
    )


def _plan(numerics: Numerics) -> loop.Plan:
    return loop.Plan(
        epochs=1, learning_rate=RATE, weight_decay=1e-4, batch_size=BATCH, seed=0, keep="last", numerics=numerics
    )


def _plain(network: nn.Module, x: Tensor, y: Tensor) -> None:
    torch.manual_seed(0)
    network.requires_grad_(True).train()
    loader = DataLoader(TensorDataset(x, y), BATCH, shuffle=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=len(loader))
    for inputs, labels in loader:
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(network(inputs), labels))
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _cross_entropy(network: nn.Module) -> Callable[[Batch], Tensor]:
    def loss_of(batch: Batch) -> Tensor:
        assert batch.labels is not None
        loss: Tensor = F.cross_entropy(network(*batch.inputs), batch.labels)
        return loss

    return loss_of


def _opened(folder: Path) -> tuple[Subject, Dataset]:
    subject = lift(read_network(folder / "network.pt2"))
    return subject, open_dataset(folder / "data.npz", _data(), subject.inputs, seed=0)


def _data() -> Data:
    return Data(dataset="dat_bench", task="classification", transform=Transform(mean=[MEAN], std=[STD]))


def _right(network: nn.Module, data: Arrays) -> float:
    network.eval()
    return mean(accuracy(network, data, split) for split in ("val", "test"))
