"""Which family an operator belongs to, by its channel rule, and which operators are not drawn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tests.engine.graph.drawing import Family
from tests.engine.graph.families import layers, shapes, values
from worker.engine.graph.ops import (
    cells,
    convolve,
    dimensions,
    elementwise,
    expand,
    matmul,
    normalise,
    plain,
    reduce,
    reshape,
    select,
    windows,
)
from worker.engine.graph.ops import gathering as gathering_rules
from worker.engine.graph.ops.table import OPS

OF_RULE: dict[Callable[..., Any], Family] = {
    cells.cell: layers.cell,
    convolve.convolution: layers.convolution,
    dimensions.diagonal: shapes.diagonal,
    dimensions.move_dims: shapes.move_dims,
    dimensions.squeeze: shapes.squeeze,
    dimensions.unsqueeze: shapes.unsqueeze,
    elementwise.arithmetic: values.by_schema,
    elementwise.elementwise: values.by_schema,
    elementwise.same_as_input: values.by_schema,
    expand.expand: shapes.expand_dimension,
    expand.expand_as: shapes.expand_dimension,
    expand.factory: shapes.factory,
    expand.fixed: shapes.fixed,
    expand.repeat: shapes.repeat,
    expand.repeat_interleave: shapes.repeat,
    gathering_rules.gather: shapes.gathering,
    gathering_rules.index_add: shapes.index_add,
    gathering_rules.index_fill: shapes.index_fill,
    gathering_rules.index_put: shapes.index_put,
    gathering_rules.scatter: shapes.gathering,
    gathering_rules.select_scatter: shapes.scatter_part,
    gathering_rules.slice_scatter: shapes.scatter_part,
    gathering_rules.take_along: shapes.gathering,
    matmul.addmm: layers.product,
    matmul.attention: layers.attention,
    matmul.bilinear: layers.bilinear,
    matmul.cosine_similarity: values.similarity,
    matmul.distances: values.distances,
    matmul.einsum: layers.einsum,
    matmul.linear: layers.linear,
    matmul.matmul: layers.product,
    matmul.outer: layers.outer,
    matmul.tensordot: layers.tensordot,
    matmul.vector_product: layers.vector_product,
    normalise.group_norm: layers.group_norm,
    normalise.last_dims: layers.last_dims,
    normalise.per_channel: layers.per_channel,
    normalise.weight_norm: layers.weight_norm,
    plain.broadcast_tensors: values.several,
    reduce.pool1d: partial(values.pooling, 1),
    reduce.pool2d: partial(values.pooling, 2),
    reduce.pool3d: partial(values.pooling, 3),
    reduce.position: values.over_dimension,
    reduce.reduction: values.reduction,
    reshape.channel_shuffle: shapes.of_image,
    reshape.flatten: shapes.flatten,
    reshape.pixel_shuffle: shapes.of_image,
    reshape.pixel_unshuffle: shapes.of_image,
    reshape.unflatten: shapes.unflatten,
    reshape.view: shapes.view,
    reshape.view_as: shapes.view_as,
    select.along: values.over_dimension,
    select.cat: shapes.cat,
    select.embedding: layers.embedding,
    select.flip: values.over_dimension,
    select.glu: values.glu,
    select.index: shapes.index,
    select.index_select: shapes.index,
    select.narrow: shapes.narrow,
    select.pad: shapes.pad,
    select.roll: values.over_dimension,
    select.select: shapes.select_one,
    select.slice_: shapes.slice_,
    select.split: shapes.split,
    select.stack: shapes.stack,
    select.triangle: values.triangle,
    select.unbind: shapes.select_one,
    select.whole: values.over_dimension,
    windows.columns_to_image: shapes.columns,
    windows.complex_from_pairs: values.complex_pairs,
    windows.grid_sample: shapes.grid_sample,
    windows.image_to_columns: shapes.columns,
    windows.pairs_from_complex: values.complex_pairs,
    windows.several_fixed: shapes.grid,
    windows.spectrum: values.spectrum,
    windows.unfold: shapes.unfold,
    windows.unpool: shapes.unpool,
}

_BATCH = "runs over the batch too, so that a sample's result depends on the others"
_TABLES = "makes a table of positions from numbers alone; what it is made of stays whole"
NOT_DRAWN: dict[str, str] = {
    "affine_grid_generator.default": "is given the sizes of a batch; what it is made of stays whole",
    "all.default": _BATCH,
    "alpha_dropout.default": "is told whether it trains and does nothing when it does not",
    "alpha_dropout_.default": "is told whether it trains and does nothing when it does not",
    "any.default": _BATCH,
    "bucketize.Tensor": _TABLES,
    "mean.default": _BATCH,
    "norm.Scalar": _BATCH,
    "norm.ScalarOpt_dtype": _BATCH,
    "one_hot.default": _TABLES,
    "prod.default": _BATCH,
    "searchsorted.Tensor": _TABLES,
    "std.default": _BATCH,
    "std_mean.default": _BATCH,
    "stft.center": "wants a signal far longer than the networks here have",
    "stft.default": "wants a signal far longer than the networks here have",
    "sum.default": _BATCH,
    "tril_indices.default": _TABLES,
    "triu_indices.default": _TABLES,
    "var.default": _BATCH,
    "var_mean.default": _BATCH,
}
"""Operators with a channel rule that no network here has, and why not."""

FAMILIES: dict[str, Family] = {
    name: OF_RULE[row.channels]
    for name, row in OPS.items()
    if row.channels is not None and row.channels in OF_RULE and name not in NOT_DRAWN
}
