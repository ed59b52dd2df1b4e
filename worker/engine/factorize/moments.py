"""Second moments of what layers read, over training samples: by them outputs are fitted instead of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from models.errors import Code, Failure
from worker.engine.data.dataset import Split
from worker.engine.run import Run
from worker.engine.subject import Subject

_BATCH = 8
_BYTES_AT_ONCE = 1 << 29
"""Of matrices that are filled in one pass over the samples; for more there are more passes."""


def second_moments(
    subject: Subject, run: Run, layers: Mapping[str, int], samples: int, on_progress: Callable[[float], None]
) -> dict[str, Tensor]:
    """For each of `layers`, linear or convolutional and given with its inputs times the positions of its kernel, the
    mean of x xᵀ over all that its kernel meets in `samples` samples drawn by the seed: [inputs, inputs], float64.

    Raises `Failure(DATASET_BAD)` where a value is not finite.
    """
    assert run.data is not None
    split = run.data.train.drawn(samples, run.spec.seed)
    found: dict[str, Tensor] = {}
    passes = list(_passes(layers))
    for number, names in enumerate(passes):
        sums = {name: torch.zeros(layers[name], layers[name], dtype=torch.float64) for name in names}
        counts = dict.fromkeys(names, 0)
        observer = _Observer(subject.graph, sums, counts)
        done = 0
        with torch.no_grad():
            for inputs in _batches(split, run):
                observer.run(*inputs)
                done += len(inputs[0])
                on_progress((number + done / len(split)) / len(passes))
        for name in names:
            if not bool(torch.isfinite(sums[name]).all()):
                raise Failure(Code.DATASET_BAD, "values are not finite on a training sample", where=name)
            found[name] = sums[name] / max(counts[name], 1)
    return found


def _passes(layers: Mapping[str, int]) -> Iterator[list[str]]:
    together: list[str] = []
    size = 0
    for name, inputs in layers.items():
        if together and size + 8 * inputs**2 > _BYTES_AT_ONCE:
            yield together
            together, size = [], 0
        together.append(name)
        size += 8 * inputs**2
    if together:
        yield together


def _batches(split: Split, run: Run) -> Iterator[tuple[Tensor, ...]]:
    for batch in split.batches(_BATCH):
        yield batch.to(run.device).inputs


class _Observer(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule, sums: dict[str, Tensor], counts: dict[str, int]) -> None:
        super().__init__(graph)
        self._graph, self._sums, self._counts = graph, sums, counts

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in self._sums:
            read = args[0] if args else kwargs["input"]
            rows = patches(self._graph.get_submodule(target), read).double()
            self._sums[target] += (rows.T @ rows).cpu()
            self._counts[target] += len(rows)
        return super().call_module(target, args, kwargs)


def patches(layer: nn.Module, read: Tensor) -> Tensor:
    """What each output of the layer is a product with: [positions of all samples, inputs and positions of the kernel]
    in the order of a row of the weight."""
    if isinstance(layer, nn.Linear):
        return read.reshape(-1, read.shape[-1])
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    stride, dilation, kernel = tuple(layer.stride), tuple(layer.dilation), tuple(layer.kernel_size)
    read = functional.pad(read, _edges(layer))
    if all(extent == 1 for extent in kernel):
        places = (slice(None), slice(None), *(slice(None, None, step) for step in stride))
        return read[places].flatten(2).transpose(1, 2).flatten(0, 1)
    if len(kernel) == 1:
        read, kernel, dilation, stride = read.unsqueeze(2), (1, *kernel), (1, *dilation), (1, *stride)
    columns = functional.unfold(read, kernel, dilation=dilation, stride=stride)
    return columns.transpose(1, 2).flatten(0, 1)


def _edges(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> list[int]:
    """The zeros around, as `torch.nn.functional.pad` takes them: last dimension first, before and behind."""
    if layer.padding == "valid":
        return [0, 0] * len(layer.kernel_size)
    if layer.padding == "same":
        reach = [step * (extent - 1) for step, extent in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [edge for total in reversed(reach) for edge in (total // 2, total - total // 2)]
    widths: tuple[int, ...] = tuple(layer.padding)  # type: ignore[arg-type]
    return [edge for width in reversed(widths) for edge in (width, width)]
