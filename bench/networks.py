"""Half of the channels of every group, on every architecture of the conformance suite: ours and Torch-Pruning.

Both get the network and its example inputs; Torch-Pruning is also told which layers to leave whole: those that ours
does, such as the last ones. Nothing else is said about any network. Each attempt has a process of its own, so that one
which hangs or crashes stops nothing.
"""

from __future__ import annotations

import copy
import multiprocessing
import multiprocessing.connection
import random
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from bench.torch_pruning import halve
from tests.architectures.registry import Build
from tests.architectures.table import ARCHITECTURES
from tests.engine.graph.cuts import half_of, tensors
from tests.networks import export_pt2
from worker.engine.graph.channels import Channels, analyse
from worker.engine.graph.cost import parameters
from worker.engine.graph.cut import cut
from worker.engine.graph.lift import lift
from worker.engine.graph.maskcheck import TOLERANCE, prove
from worker.engine.ingest.read import read_network

CAP_SECONDS = 60
"""Of processor time, whatever else the machine does."""
_START = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Outcome:
    """`left` is the share of parameters that are left, `seconds` the processor time of the analysis. `broken`: why it
    does not work. `whole`: layers that keep all their channels."""

    left: float | None = None
    seconds: float | None = None
    broken: str | None = None
    whole: tuple[str, ...] = ()


def networks(console: Console, jobs: int = 1, drawn: int | None = None) -> None:
    """Print one line a network, and what they come to: all of them, or so many, drawn at random and always the same."""
    names = list(ARCHITECTURES)
    if drawn is not None:
        names = random.Random(0).sample(names, min(drawn, len(names)))
    pairs = {}
    with ThreadPoolExecutor(jobs) as pool:
        for name, pair in zip(names, pool.map(_both, names), strict=True):
            pairs[name] = pair
            console.print(f"{name}: {_told(pair[0])} / {_told(pair[1])}", style="dim")
    console.print(_table(pairs))


def _both(name: str) -> tuple[Outcome, Outcome]:
    own = _alone(lambda: _ours(ARCHITECTURES[name]))
    return own, _alone(lambda: _theirs(ARCHITECTURES[name], own.whole))


def _ours(build: Build) -> Outcome:
    """Read, lift, analyse, cut, hold the cut network against the masked one, and train it a step."""
    torch.manual_seed(0)
    module, inputs = build()
    with tempfile.TemporaryDirectory() as folder:
        graph = lift(read_network(export_pt2(module, inputs, Path(folder) / "network.pt2"))).graph
    whole = parameters(graph)
    before = copy.deepcopy(graph)
    began = time.process_time()
    channels = analyse(graph, inputs)
    seconds = time.process_time() - began
    removed = half_of(channels)
    cut(channels, removed)
    difference = prove(before, channels, removed, graph, inputs)
    problem = None if difference <= TOLERANCE else f"{difference} off the masked network"
    problem = problem or _problem(before, graph, inputs)
    return Outcome(parameters(graph) / whole, seconds, problem, _whole_layers(channels))


def _theirs(build: Build, kept: Sequence[str]) -> Outcome:
    torch.manual_seed(0)
    module, inputs = build()
    before, _ = build()
    whole = parameters(module)
    seconds = halve(module, inputs, kept)
    return Outcome(parameters(module) / whole, seconds, _problem(before, module, inputs))


def _whole_layers(channels: Channels) -> tuple[str, ...]:
    return tuple(layer.name for layer in channels.layers if layer.frozen is not None)


def _problem(before: nn.Module, after: nn.Module, inputs: tuple[Tensor, ...]) -> str | None:
    """What keeps the smaller network from being used in the place of the other."""
    if parameters(after) == parameters(before):
        return "nothing went"
    with torch.no_grad():
        shapes = [[tuple(value.shape) for value in tensors(network(*inputs))] for network in (before, after)]
    if shapes[0] != shapes[1]:
        return f"gives {shapes[1]}, not {shapes[0]}"
    floating = [value for value in tensors(after(*inputs)) if value.is_floating_point()]
    torch.autograd.backward(torch.stack([value.square().mean() for value in floating]).sum())
    return None


def _alone(attempt: Callable[[], Outcome]) -> Outcome:
    """In a process that ends with it, or after a while."""
    receive, send = _START.Pipe(duplex=False)
    process = _START.Process(target=_child, args=(attempt, send))
    process.start()
    send.close()
    try:
        outcome: Outcome = receive.recv() if receive.poll(20 * CAP_SECONDS) else Outcome(broken="waits for ever")
    except EOFError:
        process.join()
        late = process.exitcode == -signal.SIGXCPU
        ended = f"takes more than {CAP_SECONDS} s" if late else f"its process ended with {process.exitcode}"
        outcome = Outcome(broken=ended)
    process.kill()
    process.join()
    return outcome


def _child(attempt: Callable[[], Outcome], send: multiprocessing.connection.Connection) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CAP_SECONDS, CAP_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        send.send(attempt())
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0]
        send.send(Outcome(broken=f"{type(error).__name__}: {text[:120]}"))


def _told(outcome: Outcome) -> str:
    if outcome.broken is not None:
        return escape(outcome.broken)
    return f"{outcome.left:.1%} left, {outcome.seconds:.2f} s"


def _table(pairs: dict[str, tuple[Outcome, Outcome]]) -> Table:
    table = Table(title=f"half of the channels of every group, {len(pairs)} architectures")
    for heading in ("", "ours", "Torch-Pruning"):
        table.add_column(heading, justify="left" if not heading else "right")
    working = [[pair[side] for pair in pairs.values() if pair[side].broken is None] for side in (0, 1)]
    both = [pair for pair in pairs.values() if pair[0].broken is None and pair[1].broken is None]
    table.add_row("work", *(str(len(side)) for side in working))
    table.add_row("where both do", str(len(both)), str(len(both)))
    table.add_row(
        "  parameters left, median", *(_median([pair[side].left for pair in both], "{:.1%}") for side in (0, 1))
    )
    smaller = [sum(_less(pair[side], pair[1 - side]) for pair in both) for side in (0, 1)]
    table.add_row("  fewer parameters left", *(str(count) for count in smaller))
    for heading, of in (("median", median), ("longest", max)):
        seconds = [[pair[side].seconds or 0.0 for pair in both] for side in (0, 1)]
        table.add_row(f"  analysis, {heading}", *(f"{of(side):.3f} s" if side else "" for side in seconds))
    return table


def _median(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    return form.format(median(known)) if known else ""


def _less(one: Outcome, other: Outcome) -> bool:
    """By more than a thousandth of the parameters."""
    return one.left is not None and other.left is not None and one.left < other.left - 1e-3
