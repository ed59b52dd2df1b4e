"""The report's table of layers, before and after."""

from __future__ import annotations

from torch import Tensor, nn

from models.report import LayerReport
from worker.engine.graph.blocks import BlockLinear
from worker.engine.graph.coded import Coded
from worker.engine.graph.stored import Stored
from worker.engine.subject import Subject

_OUTPUTS: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.Conv1d, "out_channels"),
    (nn.Conv2d, "out_channels"),
    (nn.Conv3d, "out_channels"),
    (nn.ConvTranspose1d, "out_channels"),
    (nn.ConvTranspose2d, "out_channels"),
    (nn.ConvTranspose3d, "out_channels"),
    (nn.Linear, "out_features"),
    (nn.LSTM, "hidden_size"),
    (nn.GRU, "hidden_size"),
    (nn.RNN, "hidden_size"),
    (nn.Embedding, "embedding_dim"),
)


def layer_reports(subject: Subject) -> list[LayerReport]:
    """One row for each layer with a weight matrix or kernel, in the order the original runs them.

    `sparsity` is the share of exact zeros among the weights that are delivered.
    """
    before = _layers(subject.original)
    quantization = subject.quantization
    by_name: dict[str, Coded | Stored] = {**subject.coded, **subject.stored}
    held = {id(subject.graph.get_parameter(name)): each for name, each in by_name.items()}
    noise = subject.coded_sqnr_db | subject.stored_sqnr_db
    rows: list[LayerReport] = []
    for name, layer in _layers(subject.graph).items():
        integer = quantization is not None and name in quantization.layers
        weights = [tensor for key, tensor in layer.named_parameters(recurse=False) if key.startswith("weight")]
        total = sum(tensor.numel() for tensor in weights)
        zeros = total - sum(int(tensor.count_nonzero()) for tensor in weights)
        rows.append(
            LayerReport(
                name=name,
                kind=_name(layer),
                channels_before=_channels(before.get(name)),
                channels_after=_channels(layer),
                bits=8 if integer else _bits(held.get(id(weights[0])), weights[0]),
                input_bits=8 if integer or isinstance(layer, BlockLinear) else 32,
                sqnr_db=(quantization.sqnr_db if quantization is not None and integer else noise).get(name),
                sparsity=zeros / total if total else 0.0,
            )
        )
    return rows


def _bits(held: Coded | Stored | None, weight: Tensor) -> float:
    """Of a weight, with its part of what its tables take."""
    if held is None:
        return 8 * weight.element_size()
    return held.bits if isinstance(held, Stored) else round(8 * held.stored_bytes() / weight.numel(), 3)


def _layers(graph: nn.Module) -> dict[str, nn.Module]:
    return {name: layer for name, layer in graph.named_modules() if _kind(layer) is not None}


def _kind(layer: nn.Module | None) -> tuple[type[nn.Module], str] | None:
    """A row of the table."""
    return next((row for row in _OUTPUTS if isinstance(layer, row[0])), None)


def _channels(layer: nn.Module | None) -> int | None:
    row = _kind(layer)
    return None if row is None else int(getattr(layer, row[1]))


def _name(layer: nn.Module) -> str:
    row = _kind(layer)
    assert row is not None
    return row[0].__name__
