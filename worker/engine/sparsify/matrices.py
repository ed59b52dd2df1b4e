"""Weights as the matrices that multiply: outputs by inputs, one for each position of a kernel.

Patterns are about these. N:M and the columns of a block run along the inputs: those of one output lie side by side in
a linear layer's row, and in a convolution's at the same position of the kernel, as sparse tensor cores want them for
convolutions whose channels are the innermost dimension (Mishra et al., 2021, section 3; Pool and Yu, 2021).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)
SPARSE_LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED, *_RECURRENT)
"""The layers whose weights can be set to zero."""


@dataclass(frozen=True)
class Weight:
    """A weight of `layer` under its own name. `neighbours` is how many inputs lie side by side before those of another
    group of a convolution begin."""

    layer: str
    parameter: str
    tensor: Tensor
    transposed: bool
    neighbours: int

    def matrices(self, values: Tensor) -> Tensor:
        """`values`, in the shape of the weight, as [positions of the kernel, outputs, inputs]."""
        if self.transposed:
            values = values.transpose(0, 1)
        return values.reshape(*values.shape[:2], -1).permute(2, 0, 1)

    def restored(self, matrices: Tensor) -> Tensor:
        """Undoes `matrices`."""
        shape = self.tensor.shape
        first, second = (shape[1], shape[0]) if self.transposed else shape[:2]
        values = matrices.permute(1, 2, 0).reshape(first, second, *shape[2:])
        return (values.transpose(0, 1) if self.transposed else values).contiguous()


def sparse_weights(graph: fx.GraphModule) -> list[Weight]:
    """Every weight that can be sparse, in the order the layers run; one that layers share is the first one's."""
    found: dict[int, Weight] = {}
    for node in graph.graph.nodes:
        if node.op != "call_module":
            continue
        layer = graph.get_submodule(str(node.target))
        if isinstance(layer, SPARSE_LAYERS):
            for leaf, tensor in layer.named_parameters(recurse=False):
                if leaf.startswith("weight"):
                    found.setdefault(id(tensor), _weight(str(node.target), leaf, layer, tensor))
    return list(found.values())


def _weight(name: str, leaf: str, layer: nn.Module, tensor: Tensor) -> Weight:
    transposed = isinstance(layer, _TRANSPOSED)
    neighbours = tensor.shape[0] // layer.groups if isinstance(layer, _TRANSPOSED) else tensor.shape[1]
    return Weight(name, f"{name}.{leaf}", tensor, transposed, neighbours)
