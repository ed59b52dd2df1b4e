"""Rules of operators that look at an image or a signal through windows, or at places given by a grid."""

from __future__ import annotations

import numpy as np

from worker.engine.graph.labels import Axes, Value
from worker.engine.graph.ops.call import Call


def image_to_columns(call: Call) -> Axes:
    """`im2col`: [N, C, H, W] gives [N, C * kernel, positions]; each channel is repeated once for a place of the
    kernel."""
    axes = call.operand("self")
    _fix(call, axes[-2:])
    channels, kernel = axes[-3], np.prod(call.argument("kernel_size"))
    return [*axes[:-3], None if channels is None else np.repeat(channels, kernel), None]


def unpool(call: Call) -> Axes:
    """`max_unpool2d`, `max_unpool3d`: each value back to the position it was found at, in its own channel."""
    spatial = len(call.argument("output_size"))
    axes, places = (call.whole(name, range(-spatial, 0)) for name in ("self", "indices"))
    met = [call.tie(first, second) for first, second in zip(axes[:-spatial], places[:-spatial], strict=True)]
    return [*met, *[None] * spatial]


def columns_to_image(call: Call) -> Axes:
    """`col2im`: [N, C * kernel, positions] gives [N, C, H, W]; the columns of one channel go together."""
    axes = call.operand("self")
    _fix(call, axes[-1:])
    columns = axes[-2]
    if columns is not None:
        rows = columns.reshape(-1, int(np.prod(call.argument("kernel_size"))))
        call.tie(np.repeat(rows[:, 0], rows.shape[1]), columns)
        columns = rows[:, 0].copy()
    return [*axes[:-2], columns, None, None]


def unfold(call: Call) -> Axes:
    """Windows along one dimension, which stays whole; they end up last."""
    axes = call.operand("self")
    dim = call.argument("dimension") % len(axes)
    _fix(call, [axes[dim]])
    axes[dim] = None
    return [*axes, None]


def grid_sample(call: Call) -> Axes:
    """[N, C, *spatial] read at the places of a grid [N, *spatial, 2 or 3]."""
    axes, grid = call.operand("input"), call.operand("grid")
    _fix(call, axes[2:])
    for axis in grid:
        call.freeze(axis, "is a grid of places")
    return [*axes[:2], *[None] * (len(axes) - 2)]


def _fix(call: Call, axes: Axes) -> None:
    for axis in axes:
        call.freeze(axis, "is a spatial dimension")


def spectrum(call: Call) -> Axes:
    """Fourier transforms: the dimensions they run over stay whole."""
    axes = call.operand("self")
    dims = call.argument("dim")
    for dim in range(-len(axes), 0) if dims is None else [dims] if isinstance(dims, int) else dims:
        call.freeze(axes[dim], "is transformed to frequencies")
        axes[dim] = None
    return axes


def complex_from_pairs(call: Call) -> Axes:
    """`view_as_complex`: the last dimension is the real and the imaginary part."""
    axes = call.operand("self")
    call.freeze(axes.pop(), "is the real and the imaginary part")
    return axes


def pairs_from_complex(call: Call) -> Axes:
    """`view_as_real`."""
    return [*call.operand("self"), None]


def several_fixed(call: Call) -> Value:
    """`meshgrid`, `split` of places …: nothing in the results can shrink, and what they are made of must not."""
    for axes, _ in call.all_operands():
        for axis in axes:
            call.freeze(axis, "is needed whole")
    return tuple([None] * len(sizes) for sizes in call.results_sizes)
