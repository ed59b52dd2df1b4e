"""What convolutions and pools share: a window that moves over an image, and the padding around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from worker.engine.ingest.onnx.known import Operand
from worker.engine.ingest.onnx.site import Site

_A = torch.ops.aten


@dataclass(frozen=True)
class Window:
    """One number an axis; `before` and `after` are the padding."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: list[int]
    after: list[int]

    @classmethod
    def of(cls, site: Site, kernel: Sequence[int], sizes: Sequence[int], transposed: bool = False) -> Window:
        """The window of a node over an image of these sizes, with `auto_pad` worked out.

        The automatic padding of a transposed convolution depends on more and is left to it.
        """
        axes = len(sizes)
        given = site.maybe_integers("kernel_shape")
        if given is not None and given != list(kernel):
            raise site.refuse(f"`kernel_shape` {given[:10]} is not that of its weight")
        strides = site.maybe_integers("strides") or [1] * axes
        dilations = (site.maybe_integers("dilations") if site.has("dilations") else None) or [1] * axes
        pads = site.maybe_integers("pads") or [0] * (2 * axes)
        if len(kernel) != axes or len(strides) != axes or len(dilations) != axes or len(pads) != 2 * axes:
            raise site.refuse("its attributes are not for an image of so many dimensions")
        if min([*kernel, *strides, *dilations, 1]) < 1 or max([*kernel, *strides, *dilations, 1]) > 2**20:
            raise site.refuse("its window has no sensible size")
        before, after = pads[:axes], pads[axes:]
        automatic = site.maybe_text("auto_pad") or "NOTSET"
        if automatic not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
            raise site.refuse("`auto_pad` is unknown")
        if automatic != "NOTSET":
            before = after = [0] * axes
        if automatic.startswith("SAME") and not transposed:
            totals = [
                max((-(-size // stride) - 1) * stride + (length - 1) * dilation + 1 - size, 0)
                for size, stride, length, dilation in zip(sizes, strides, kernel, dilations, strict=True)
            ]
            before = [total - total // 2 if automatic == "SAME_LOWER" else total // 2 for total in totals]
            after = [total - first for total, first in zip(totals, before, strict=True)]
        if min([*before, *after, 0]) < 0:
            raise site.refuse("its padding is negative")
        return cls(list(kernel), strides, dilations, before, after)


def pad_window(site: Site, value: Operand, window: Window, fill: float) -> tuple[Operand, list[int]]:
    """The padding that the operator itself can do, equal on both sides; any other is done before it with `fill`."""
    if window.before == window.after:
        return value, window.before
    amounts = [amount for pair in zip(reversed(window.before), reversed(window.after), strict=True) for amount in pair]
    padded: Operand = site.emit(_A.pad.default, value, amounts, "constant", fill)
    return padded, [0] * len(window.before)
