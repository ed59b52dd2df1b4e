"""Operators without a channel rule: what they are given stays whole, and the rest of the network is cut around them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.engine.graph.test_ops import IMAGE, Sketch, halve_and_check, target_of
from worker.engine.graph.ops.table import OPS

aten = torch.ops.aten
Make = Callable[[Sketch, fx.Node, fx.Node], tuple[Any, ...]]


def matrix(sketch: Sketch, value: fx.Node) -> fx.Node:
    """[samples, 8, 8]: symmetric and positive definite, made of all channels."""
    rows = sketch.call(aten.flatten.using_ints, value, 2)
    product = sketch.call(aten.matmul.default, rows, sketch.call(aten.transpose.int, rows, 1, 2))
    return sketch.call(aten.add.Tensor, product, sketch.call(aten.eye.default, 8))


def of_values(*more: Any) -> Make:
    return lambda sketch, value, _: (value, *more)


def of_two(*more: Any) -> Make:
    return lambda sketch, value, other: (value, other, *more)


def of_matrix(*more: Any) -> Make:
    return lambda sketch, value, _: (matrix(sketch, value), *more)


def of_flat(*more: Any) -> Make:
    """Of two dimensions, with the channels last."""
    return lambda sketch, value, _: (sketch.call(aten.mean.dim, value, [2, 3]), *more)


CALLS: dict[str, Make] = {
    "block_diag.default": lambda s, a, b: ([s.call(aten.mean.dim, a, [2, 3]), s.call(aten.mean.dim, b, [2, 3])],),
    "copy.default": of_two(),
    "cross.default": lambda s, a, b: (*(s.call(aten.narrow.default, x, 3, 0, 3) for x in (a, b)), 3),
    "cumulative_trapezoid.dx": of_values(),
    "cumulative_trapezoid.x": of_two(),
    "det.default": of_matrix(),
    "diag.default": lambda s, a, b: (s.call(aten.select.int, s.call(aten.mean.dim, a, [2, 3]), 0, 0),),
    "diag_embed.default": of_flat(),
    "diagonal_scatter.default": lambda s, a, b: (a, s.call(aten.mean.dim, b, [2]), 0, 2, 3),
    "diff.default": of_values(1, 1),
    "fft_fftshift.default": of_values([1]),
    "fft_hfft.default": of_values(),
    "fft_ifftshift.default": of_values([1]),
    "fft_ihfft.default": of_values(),
    "inverse.default": of_matrix(),
    "isin.Scalar_Tensor": lambda s, a, b: (1, s.call(aten.round.default, a)),
    "isin.Tensor_Scalar": of_values(1),
    "isin.Tensor_Tensor": of_two(),
    "kron.default": lambda s, a, b: (s.call(aten.mean.dim, a, [2, 3]), s.call(aten.mean.dim, b, [2, 3])),
    "linalg_cholesky.default": of_matrix(),
    "linalg_cross.default": lambda s, a, b: tuple(s.call(aten.narrow.default, x, 3, 0, 3) for x in (a, b)),
    "linalg_det.default": of_matrix(),
    "linalg_eigh.default": of_matrix(),
    "linalg_eigvalsh.default": of_matrix(),
    "linalg_inv.default": of_matrix(),
    "linalg_matrix_exp.default": lambda s, a, b: (s.call(aten.mul.Scalar, a, 0.1),),
    "linalg_matrix_norm.default": of_values(2),
    "linalg_matrix_norm.str_ord": of_values("nuc"),
    "linalg_matrix_power.default": of_values(2),
    "linalg_pinv.atol_rtol_float": of_matrix(),
    "linalg_pinv.atol_rtol_tensor": of_matrix(),
    "linalg_pinv.default": of_matrix(1e-6),
    "linalg_qr.default": of_values(),
    "linalg_slogdet.default": of_matrix(),
    "linalg_solve.default": lambda s, a, b: (matrix(s, a), s.call(aten.mean.dim, b, [3])),
    "linalg_svd.default": of_values(),
    "linalg_svdvals.default": of_values(),
    "linalg_vander.default": of_flat(),
    "linalg_vecdot.default": of_two(),
    "logdet.default": of_matrix(),
    "masked_scatter.default": lambda s, a, b: (a, s.call(aten.gt.Scalar, a, 1.0), b),
    "matrix_exp.default": lambda s, a, b: (s.call(aten.mul.Scalar, a, 0.1),),
    "median.default": of_values(),
    "nanmedian.default": of_values(),
    "nanquantile.default": lambda s, a, b: (a, s.call(aten.full.default, [2], 0.4), 1),
    "nanquantile.scalar": of_values(0.4, 1),
    "numel.default": of_values(),
    "pairwise_distance.default": lambda s, a, b: (
        s.call(aten.flatten.using_ints, a, 1),
        s.call(aten.flatten.using_ints, b, 1),
    ),
    "pdist.default": of_flat(),
    "quantile.default": lambda s, a, b: (a, s.call(aten.full.default, [2], 0.4), 1),
    "quantile.scalar": of_values(0.4, 1),
    "renorm.default": of_values(2, 1, 0.5),
    "slogdet.default": of_matrix(),
    "sym_numel.default": of_values(),
    "sym_size.int": of_values(1),
    "take.default": lambda s, a, b: (a, s.call(aten.arange.default, 5)),
    "trace.default": of_flat(),
    "trapezoid.dx": of_values(),
    "trapezoid.x": of_two(),
}


def test_every_operator_without_rules_is_here() -> None:
    bare = {name for name, row in OPS.items() if row.channels is row.layer is row.compose is None}
    assert sorted(bare) == sorted(CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_what_is_given_to_it_stays_and_the_rest_is_cut(name: str) -> None:
    sketch = Sketch()
    given = CALLS[name](sketch, sketch.layer("a"), sketch.layer("b"))
    found = sketch.call(target_of(name), *given)
    if len(target_of(name)._schema.returns) > 1:
        found = sketch.graph.call_function(operator.getitem, (found, 0))
    number = found
    if str(target_of(name)._schema.returns[0].type) == "Tensor":
        real = sketch.call(aten.to.dtype, found, torch.float32)
        number = sketch.call(aten.tanh.default, sketch.call(aten.mean.default, real))
    value = sketch.call(aten.mul.Tensor, sketch.layer("c"), number)
    channels = halve_and_check(sketch.finish(value))
    units = {layer: len(group.units) for group in channels.groups for layer in group.layers}
    assert units["c"] == 8
    assert "a" not in units
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        channels.graph(fake.from_tensor(IMAGE))  # as networks too large to run are inspected, and as torch exports them
