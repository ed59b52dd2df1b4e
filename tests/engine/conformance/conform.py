"""One network through the whole engine, and what was found."""

from __future__ import annotations

import contextlib
import copy
import math
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, fx, nn

from models.errors import Code, Failure
from tests.architectures.registry import Build
from tests.architectures.table import OVER_CHANNELS, SCALED_ALONE
from tests.engine.conformance.oracle import every_part_called, kept_in_original, masked_original
from tests.engine.graph.cuts import half_of, tensors
from tests.networks import export_pt2
from worker.engine.export.onnx import export_onnx
from worker.engine.export.pt2 import export_pt2 as write_pt2
from worker.engine.graph.channels import Channels, analyse, tensor_named
from worker.engine.graph.cost import parameters
from worker.engine.graph.cut import Cut, cut
from worker.engine.graph.lift import lift
from worker.engine.graph.maskcheck import TOLERANCE, prove
from worker.engine.ingest.read import read_network
from worker.engine.subject import Subject

BATCHES = (2, 3, 5)
STEPS = 3
VACUOUS = 1e-3
ORIGINAL_TOLERANCE = 1e-4
ONNX_TOLERANCE = 1e-4
BATCH_TOLERANCE = 1e-4
FUSED_TOLERANCE = 1e-6
TARGET_LEFT = 0.4


@dataclass
class Row:
    """Differences are relative to the largest value of an output; `None` is what was not reached."""

    name: str
    lift_difference: float | None = None
    mask_difference: float | None = None
    original_difference: float | None = None
    """From the network as its author wrote it, masked; see `oracle.py`."""
    judged: bool = True
    effect: float | None = None
    silent: bool = False
    rounding: float = 0.0
    """From the same network in double precision: some magnify rounding, and other kernels round otherwise."""
    parameters: int | None = None
    parameters_left: float | None = None
    prunable_share: float | None = None
    batch_difference: float | None = None
    losses: list[float] = field(default_factory=list)
    pt2_difference: float | None = None
    onnx_difference: float | None = None
    onnx_refused: str | None = None
    """Why there is no ONNX file, where the exporter has none for the original either."""
    seconds: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)
    """Why parameters stay whole: the reason and how many values it holds, the most first."""
    broken: str | None = None

    def problems(self, fused: bool = False) -> list[str]:
        """What does not hold. `fused`: the original ran a fused kernel, so the lifted one rounds in another order."""
        if self.broken is not None:
            return [self.broken]
        found = []
        if not within(self.lift_difference, FUSED_TOLERANCE if fused else 0.0):
            found.append(f"lifted, it is {self.lift_difference} off at another batch size")
        if not within(self.mask_difference, TOLERANCE):
            found.append(f"cut, it is {self.mask_difference} off the masked one")
        if self.judged and not within(self.original_difference, max(ORIGINAL_TOLERANCE, 10 * self.rounding)):
            found.append(f"cut, it is {self.original_difference} off the original without what was removed")
        if self.silent:
            found.append("cut, it gives nothing but zeros, and those say nothing")
        if self.effect is None or not VACUOUS < self.effect < math.inf:
            found.append(f"what was removed changes the output by {self.effect} only")
        if not within(self.batch_difference, max(BATCH_TOLERANCE, 10 * self.rounding)):
            found.append(f"cut, it gives samples that are {self.batch_difference} off in a larger batch")
        if not all(math.isfinite(loss) for loss in self.losses) or len(set(self.losses)) < STEPS + 1:
            found.append(f"it does not train: {self.losses}")
        if not within(self.pt2_difference, TOLERANCE):
            found.append(f"its .pt2, read again, is {self.pt2_difference} off")
        if self.onnx_refused is None and not within(self.onnx_difference, max(ONNX_TOLERANCE, 10 * self.rounding)):
            found.append(f"its ONNX file is {self.onnx_difference} off")
        return found


def within(difference: float | None, tolerance: float) -> bool:
    return difference is not None and difference <= tolerance


def conform(name: str, build: Build) -> Row:
    """Take the network through everything, as far as it goes."""
    began, row = time.perf_counter(), Row(name)
    torch.manual_seed(0)
    try:
        with tempfile.TemporaryDirectory() as folder:
            _conform(row, build, Path(folder))
    except Exception as error:
        row.broken = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"
    row.seconds = time.perf_counter() - began
    return row


def _conform(row: Row, build: Build, folder: Path) -> None:
    module, args = build()
    subject = lift(read_network(export_pt2(module, args, folder / "network.pt2")))
    row.lift_difference = max(_lift_difference(module, subject, batch) for batch in BATCHES)
    before, channels = copy.deepcopy(subject.graph), analyse(subject.graph, args)
    row.parameters = parameters(subject.graph)
    row.prunable_share, row.reasons = _prunable(channels)
    removed = half_of(channels)
    row.judged = row.name not in OVER_CHANNELS
    kept = kept_in_original(module, channels, Cut(channels, removed), subject.renames) if row.judged else {}
    cut(channels, removed)
    row.parameters_left = parameters(subject.graph) / row.parameters
    row.mask_difference = prove(before, channels, removed, subject.graph, args)
    with torch.no_grad(), every_part_called():
        found = subject.graph(*args)
        if row.judged:
            masked = masked_original(module, kept, SCALED_ALONE.get(row.name, ()))
            row.original_difference = difference(masked(*args), found)
        row.effect = difference(before(*args), found)
        row.silent = not any(bool(output.any()) for output in _floating(found))
    row.rounding = _rounding(subject.graph, args)
    row.batch_difference = _batch_difference(subject)
    row.losses = _train(subject.graph, args)
    _write_and_read(row, subject, folder)


def _lift_difference(module: nn.Module, subject: Subject, batch: int) -> float:
    inputs = subject.example_inputs(batch, seed=batch)
    with torch.no_grad():
        return difference(module(*inputs), subject.graph(*inputs))


def _rounding(graph: fx.GraphModule, args: tuple[Tensor, ...]) -> float:
    """Zero where the network has constants in single precision and does not run in double."""
    doubled = tuple(value.double() if value.is_floating_point() else value for value in args)
    try:
        with torch.no_grad():
            found = difference(copy.deepcopy(graph).double()(*doubled), graph(*args))
    except RuntimeError:
        return 0.0
    return found if math.isfinite(found) else 0.0


def _batch_difference(subject: Subject) -> float:
    """The check of the cut ran on two samples: whether these come out the same among five."""
    inputs = subject.example_inputs(5, seed=5)
    with torch.no_grad():
        together = tensors(subject.graph(*inputs))
        alone = tensors(subject.graph(*(value[:2] for value in inputs)))
    return max(_relative(first, _of_the_first(second, first)) for first, second in zip(alone, together, strict=True))


def _of_the_first(together: Tensor, alone: Tensor) -> Tensor:
    """The part of `together` that is about the samples of `alone`: of every dimension along which there are samples,
    which are two where each of one input is held against each of another."""
    for dim, size in enumerate(alone.shape):
        if size != together.shape[dim]:
            together = together.narrow(dim, 0, len(alone))
    return together


def _prunable(channels: Channels) -> tuple[float, dict[str, int]]:
    """The share of values in parameters that some group shrinks, and why the others stay."""
    prunable = {member.parameter for group in channels.groups for member in group.members}
    frozen, total, reasons = 0, 0, Counter[str]()
    for name, parameter in channels.graph.named_parameters():
        total += parameter.numel()
        if name not in prunable:
            frozen += parameter.numel()
            reasons[_reason(channels, name)] += parameter.numel()
    return 1 - frozen / total, dict(reasons.most_common())


def _reason(channels: Channels, name: str) -> str:
    units = [unit for axis in channels.parameters.get(name, ()) if axis is not None for unit in channels.units_of(axis)]
    reasons = [channels.components.frozen[int(unit)] for unit in units if int(unit) in channels.components.frozen]
    return (
        reasons[0] if reasons else f"{name} of shape {list(tensor_named(channels.graph, name).shape)} has no channels"
    )


def _train(graph: fx.GraphModule, args: tuple[Tensor, ...]) -> list[float]:
    """The losses of `STEPS` steps towards random targets, and of one more forward pass."""
    trained = copy.deepcopy(graph).train()
    optimizer = torch.optim.SGD(trained.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    targets = [torch.randn(output.shape, generator=generator) for output in _floating(trained(*args))]
    losses = []
    for step in range(STEPS + 1):
        pairs = zip(_floating(trained(*args)), targets, strict=True)
        loss = torch.stack([(output - target).square().mean() for output, target in pairs]).sum()
        losses.append(float(loss.detach()))
        if step == STEPS:
            break
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        still = [path for path, value in trained.named_parameters() if value.requires_grad and value.grad is None]
        if still:
            raise ValueError(f"no gradient reaches {', '.join(still[:5])}")
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
    return losses


def _write_and_read(row: Row, subject: Subject, folder: Path) -> None:
    inputs = subject.example_inputs(3, seed=7)
    with torch.no_grad():
        expected = subject.graph.eval()(*inputs)
        write_pt2(subject.graph, subject, folder / "cut.pt2")
        again = lift(read_network(folder / "cut.pt2"))
        row.pt2_difference = difference(expected, again.graph(*inputs))
    row.onnx_refused = _refused(subject, folder / "cut.onnx")
    if row.onnx_refused is not None:
        return
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(folder / "cut.onnx", options, providers=["CPUExecutionProvider"])
    given = {info.name: value.numpy() for info, value in zip(subject.inputs, inputs, strict=True)}
    results = [torch.from_numpy(array) for array in session.run(None, given)]
    row.onnx_difference = difference(expected, results)


def _refused(subject: Subject, path: Path) -> str | None:
    """Write the cut network as ONNX, or say why it cannot be if neither can the original."""
    try:
        export_onnx(subject.graph, subject, path)
    except Failure as failure:
        if failure.code is not Code.UNSUPPORTED_HERE:
            raise
        with contextlib.suppress(Failure):
            export_onnx(subject.original, subject, path)
            raise
        return failure.message
    return None


def _floating(value: Any) -> list[Tensor]:
    return [tensor for tensor in tensors(value) if tensor.is_floating_point()]


def difference(first: Any, second: Any) -> float:
    """Over all outputs, the largest difference relative to the largest value; infinite when shapes differ."""
    ours, theirs = tensors(first), tensors(second)
    if len(ours) != len(theirs) or any(a.shape != b.shape for a, b in zip(ours, theirs, strict=True)):
        return math.inf
    return max(_relative(a, b) for a, b in zip(ours, theirs, strict=True))


def _relative(first: Tensor, second: Tensor) -> float:
    if torch.equal(first, second):
        return 0.0
    one, other = first.double(), second.double()
    found = float((one - other).abs().max() / one.abs().max())
    return found if math.isfinite(found) else math.inf


def reached(rows: Iterable[Row]) -> tuple[int, int]:
    """How many networks have at most `TARGET_LEFT` of their parameters left, and how many there are."""
    counted: Sequence[Row] = list(rows)
    return sum(within(row.parameters_left, TARGET_LEFT) for row in counted), len(counted)
