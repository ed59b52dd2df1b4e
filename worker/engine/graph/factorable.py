"""Which layers thinner ones can take the place of, what `models.factors` has to know of each, and why the rest stay."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import fx, nn

from models.inspection import FactorInfo
from worker.engine.graph.cost import batch_of
from worker.engine.graph.shapes import is_tensor, sizes_of

_PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)


def factorable(graph: fx.GraphModule) -> dict[str, FactorInfo | str]:
    """Every layer that multiplies, in the order they run: what it is, or why it stays whole. Sizes were recorded."""
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    found: dict[str, FactorInfo | str] = {}
    for name, nodes in calls.items():
        layer = graph.get_submodule(name)
        if isinstance(layer, (nn.Linear, *_PLAIN, *_TRANSPOSED, *_RECURRENT)):
            found[name] = _why_whole(graph, name, layer) or _info(layer, nodes, batch_of(graph))
    return found


def _why_whole(graph: fx.GraphModule, name: str, layer: nn.Module) -> str | None:
    if isinstance(layer, _RECURRENT):
        return "recurrent layers have no parts to run one after the other"
    if getattr(layer, "groups", 1) > 1:
        return "its channels are in groups, which have little rank to spare"
    own = {id(tensor) for tensor in layer.parameters(recurse=False)}
    for path, other in graph.named_modules():
        if path != name and any(id(tensor) in own for tensor in other.parameters(recurse=False)):
            return f"its parameters are those of {path or 'the network'} too"
    if any(node.op == "get_attr" and str(node.target).rpartition(".")[0] == name for node in graph.graph.nodes):
        return "its parameters are used on their own too"
    return None


def _info(layer: nn.Module, calls: list[fx.Node], batch: int) -> FactorInfo | str:
    sources = [call.all_input_nodes[0] for call in calls]
    if not all(map(is_tensor, (*calls, *sources))):
        return "it is called in a way that is not known"
    if isinstance(layer, nn.Linear):
        positions = sum(math.prod(sizes_of(call)[:-1]) for call in calls) // batch
        inputs, outputs = layer.in_features, layer.out_features
        return FactorInfo(
            inputs=inputs, outputs=outputs, kernel=[], input_positions=positions, output_positions=positions
        )
    assert isinstance(layer, (*_PLAIN, *_TRANSPOSED))
    dimensions = len(layer.kernel_size)
    before = [sizes_of(source)[-dimensions:] for source in sources]
    after = [sizes_of(call)[-dimensions:] for call in calls]
    many = [math.prod(sizes_of(call)[: -dimensions - 1]) for call in calls]

    def positions_of(spaces: Sequence[tuple[int, ...]]) -> int:
        return sum(count * math.prod(space) for count, space in zip(many, spaces, strict=True)) // batch

    between = [(rows[0], columns[1]) for rows, columns in zip(after, before, strict=True)] if dimensions == 2 else None
    return FactorInfo(
        inputs=layer.in_channels,
        outputs=layer.out_channels,
        kernel=list(layer.kernel_size),
        transposed=isinstance(layer, _TRANSPOSED),
        input_positions=positions_of(before),
        output_positions=positions_of(after),
        middle_positions=None if between is None or isinstance(layer, _TRANSPOSED) else positions_of(between),
    )
