"""Linear layers that round their inputs in blocks, as the operator of ONNX Runtime that multiplies by codes.

MatMulNBits (domain com.microsoft; ONNX Runtime, docs/ContribOperators.md) takes weights of 2 or 4 bits as they are
stored and, at accuracy level 4, makes 8-bit integers of its inputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper
from onnx.defs import OpSchema
from onnxscript import values
from torch import Tensor, nn

from worker.engine.graph.blocks import BlockLinear
from worker.engine.graph.coded import Coded, bits_of

MATMUL_NBITS = "MatMulNBits"
_INT8_COMPUTE = 4

_LIBRARY: Any = torch.library.Library("modelpress_blocks", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("product(Tensor x, int place, int bits, int block, int outputs) -> Tensor")
_LIBRARY.impl(
    "product", lambda x, place, bits, block, outputs: x.new_zeros(*x.shape[:-1], outputs), "CompositeExplicitAutograd"
)
PRODUCT = torch.ops.modelpress_blocks.product.default


class BlockProduct(nn.Module):
    """Stands for a layer whose weight is the one at `place`; its bias is added to the product."""

    def __init__(self, place: int, layer: BlockLinear, bits: int) -> None:
        super().__init__()
        self._said = (place, bits, layer.block, layer.out_features)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = PRODUCT(x, *self._said)
        return product if self.bias is None else product + self.bias


def write_product(x: Any, weight: Any, bits: int, block: int, outputs: int) -> Any:
    """What the exporter writes for one, with the placeholder `weight` where codes and scales will be."""
    sizes = {"K": int(x.shape[-1]), "N": outputs, "bits": bits, "block_size": block}
    return _OPERATOR(x, weight, weight, **sizes, accuracy_level=_INT8_COMPUTE)


def stored_codes(coded: Coded, block: int) -> NDArray[np.uint8]:
    """[outputs, blocks, bytes of a block], the lowest bits first. What fills the last block multiplies nothing."""
    rows, columns = coded.shape
    filled = np.pad(coded.codes.numpy().reshape(rows, columns), ((0, 0), (0, -columns % block)))
    return _packed(filled.reshape(rows, -1, block), bits_of(coded.levels))


def stored_zeros(coded: Coded) -> NDArray[np.uint8] | None:
    """[outputs, bytes], packed as the codes are; none where the middle code stands for zero."""
    if "zero" not in coded.tables:
        return None
    bits, rows = bits_of(coded.levels), coded.shape[0]
    zeros = coded.tables["zero"].numpy().reshape(rows, -1)
    return _packed(np.pad(zeros, ((0, 0), (0, -zeros.shape[1] % (8 // bits)))), bits)


def _packed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    each = 8 // bits
    apart = codes.reshape(*codes.shape[:-1], -1, each).astype(np.uint16)
    together: NDArray[np.uint16] = (apart << (bits * np.arange(each, dtype=np.uint16))).sum(-1)
    return together.astype(np.uint8)


def block_of(node: onnx.NodeProto) -> int | None:
    """How many inputs share a scale in `node`; none where it is no such operator."""
    if node.op_type != MATMUL_NBITS:
        return None
    return next(int(attribute.i) for attribute in node.attribute if attribute.name == "block_size")


def with_weight(node: onnx.NodeProto, codes: str, scales: str, zeros: str | None) -> onnx.NodeProto:
    """`node` with the names of its weight in place of the placeholder."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    inputs = [node.input[0], codes, scales, *([] if zeros is None else [zeros])]
    return helper.make_node(node.op_type, inputs, list(node.output), node.name, domain=node.domain, **attributes)


def _schema() -> OpSchema:
    """The part of the operator's signature that is used."""
    inputs = [
        OpSchema.FormalParameter("A", "tensor(float)"),
        OpSchema.FormalParameter("B", "tensor(uint8)"),
        OpSchema.FormalParameter("scales", "tensor(float)"),
    ]
    attributes = [
        OpSchema.Attribute(name, OpSchema.AttrType.INT, required=True)
        for name in ("K", "N", "bits", "block_size", "accuracy_level")
    ]
    outputs = [OpSchema.FormalParameter("Y", "tensor(float)")]
    return OpSchema(MATMUL_NBITS, "com.microsoft", 1, inputs=inputs, outputs=outputs, attributes=attributes)


_OPERATOR: Any = values.Op(values.Opset("com.microsoft", 1), MATMUL_NBITS, _schema())
