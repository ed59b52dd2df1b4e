"""How much of weights, and of what layers give, few bits leave."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from worker.engine.measure.compare import decibels, outputs_of
from worker.engine.run import Run

_SQNR_SAMPLES = 8


def weight_sqnr_db(exact: Tensor, found: Tensor) -> float:
    signal = exact.detach().double()
    return round(decibels(float(signal.square().sum()), float((signal - found.double()).square().sum())), 2)


def output_sqnr_db(exact: fx.GraphModule, graph: fx.GraphModule, names: list[str], run: Run) -> dict[str, float]:
    """Signal to noise ratio in dB of the output of each of the layers `names` against the network from before, noise
    from the layers before included; none without data."""
    if run.data is None:
        return {}
    split = run.data.val if len(run.data.val) else run.data.train
    inputs = split.sample(_SQNR_SAMPLES, run.spec.seed).inputs
    clean, noisy = _outputs(exact, names, inputs), _outputs(graph, names, inputs)
    found = {}
    for name in names:
        pairs = list(zip(clean[name], noisy[name], strict=True))
        signal = sum(float(a.double().square().sum()) for a, _ in pairs)
        noise = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
        if pairs:
            found[name] = round(decibels(signal, noise), 2)
    return found


def _outputs(graph: fx.GraphModule, names: list[str], inputs: tuple[Tensor, ...]) -> dict[str, list[Tensor]]:
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = [
        graph.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: found[name].append(output.detach())
        )
        for name in names
    ]
    with torch.no_grad():
        outputs_of(graph(*inputs))
    for handle in handles:
        handle.remove()
    return found
