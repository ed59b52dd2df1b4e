"""Linear layers of few bits whose inputs become 8-bit integers at run time, a block at a time.

The arithmetic is that of ONNX Runtime's MatMulNBits at accuracy level 4 (MLAS, `SQNBitGemm` with int8 compute): a block
is as many inputs side by side as share a scale of the weight, `scale = max|x| / 127`, `integers = round(x * (127 /
max|x|))`, ties to even. Products of integers are exact and sums of blocks are in single precision, so rounding the
inputs and multiplying floats gives the same but for the order of sums.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LARGEST = 127
_SMALLEST = 1e-36
"""Below it 127 parts of a number are not told apart in single precision, and their inverse is infinite."""


def round_in_blocks(x: Tensor, block: int) -> Tensor:
    """`x` [..., inputs] as what is left of it in 8 bits, computed in single precision; the last block may be shorter.
    Of a block of zeros, or of next to nothing, zeros are left."""
    size = x.shape[-1]
    blocks = functional.pad(x.to(torch.float32), (0, -size % block)).reshape(*x.shape[:-1], -1, block)
    largest = blocks.abs().amax(-1, keepdim=True)
    times = torch.where(largest > _SMALLEST, LARGEST / largest, 0.0)
    rounded: Tensor = torch.round(blocks * times) * (largest / LARGEST)
    return rounded.flatten(-2)[..., :size].to(x.dtype)


class _StraightThrough(torch.autograd.Function):
    """Rounded forwards; backwards as if nothing had been (Bengio et al., 2013)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block: int) -> Tensor:
        return round_in_blocks(x, block)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class BlockLinear(nn.Linear):
    """A linear layer that rounds its inputs in blocks of `block`."""

    block: int

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            rounded: Tensor = _StraightThrough.apply(x, self.block)  # type: ignore[no-untyped-call]
        else:
            rounded = round_in_blocks(x, self.block)
        return functional.linear(rounded, self.weight, self.bias)


def use_blocks(network: nn.Module, blocks: Mapping[str, int], besides: Collection[str] = ()) -> None:
    """From now on the layers that `blocks` names round their inputs, in blocks of what it says, but not `besides`."""
    for name, block in blocks.items():
        layer = network.get_submodule(name)
        layer.__class__ = nn.Linear if name in besides else BlockLinear
        layer.block = block  # type: ignore[assignment]


def has_blocks(network: nn.Module) -> bool:
    return any(isinstance(layer, BlockLinear) for layer in network.modules())
