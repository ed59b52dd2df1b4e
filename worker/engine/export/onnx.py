"""A graph as an ONNX file, float or 8-bit in the dialect that ONNX Runtime's integer kernels fuse."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnxscript import ir, opset18
from onnxscript.function_libs.torch_lib.ops.core import aten_mean_dim
from onnxscript.optimizer import optimize_ir
from onnxscript.rewriter.onnx_fusions import fuse
from torch import Tensor, fx, nn

from models.errors import Code, Failure
from worker.engine.export.dynamic import dynamic_shapes
from worker.engine.export.external import save
from worker.engine.export.onnx_blocks import PRODUCT
from worker.engine.export.onnx_codes import (
    WEIGHT,
    store_codes,
    with_placeholders,
    write_block_product,
    write_placeholder,
)
from worker.engine.export.onnx_dynamic import dynamic_linear, dynamic_lstm
from worker.engine.graph.dynamic import DYNAMIC_LINEAR, DYNAMIC_LSTM
from worker.engine.graph.integer import DEQUANTIZE, ROUND_TRIP
from worker.engine.graph.shapes import record_shapes
from worker.engine.graph.stored import stored_network
from worker.engine.subject import Subject

_NO_TRACES = "do_not_emit_stack_traces"
_BOUNDS = ("min_val", "max_val")
"""Of `hardtanh`."""


def export_onnx(graph: fx.GraphModule, subject: Subject, path: Path) -> None:
    """Write `graph` (`subject.network()` or `subject.original`) with the input and output names of `subject`.

    One file, or from 2 GiB on a tar archive of two (`external.written` says which). Sizes that may vary stay open,
    nothing of this machine is inside. An integer network comes out as QuantizeLinear and DequantizeLinear (uint8
    values, int8 weights an output channel, int32 biases); weights of few bits as `onnx_codes` has them.
    Raises `Failure(UNSUPPORTED_HERE)` when an operator cannot be written.
    """
    projected = [name for name, module in graph.named_modules() if isinstance(module, nn.LSTM) and module.proj_size]
    if projected:
        raise Failure(
            Code.UNSUPPORTED_HERE,
            f"ONNX has no LSTM that projects its state, as {projected[0]} does; ask for `pt2` only",
            where=projected[0],
        )
    inputs = subject.example_inputs()
    stored = subject.stored if graph is not subject.original else {}
    graph, coded = with_placeholders(stored_network(graph.to("cpu").eval(), stored), subject.coded)
    with _quiet():
        try:
            program = torch.onnx.export(
                _with_clamps(_with_attention_in_order(graph, inputs)),
                inputs,
                dynamo=True,
                optimize=not stored,
                verbose=False,
                input_names=[info.name for info in subject.inputs],
                output_names=[info.name for info in subject.outputs],
                dynamic_shapes=dynamic_shapes(subject),
                custom_translation_table={
                    ROUND_TRIP: _round_trip,
                    DEQUANTIZE: _dequantize,
                    WEIGHT: write_placeholder,
                    PRODUCT: write_block_product,
                    torch.ops.aten.mean.dim: _mean,
                    DYNAMIC_LINEAR: dynamic_linear,
                    DYNAMIC_LSTM: dynamic_lstm,
                },
            )
        except torch.onnx.errors.OnnxExporterError as error:
            cause = error.__cause__ or error
            raise Failure(
                Code.UNSUPPORTED_HERE,
                f"the network cannot be written as ONNX ({str(cause).splitlines()[0][:300]}); ask for `pt2` only",
                where=path.name,
            ) from error
    if program is None:
        raise Failure(Code.INTERNAL, "the ONNX exporter returned nothing", where=path.name)
    if stored:
        _optimize_around_stored(program.model)
    model = ir.serde.serialize_model(program.model)
    _strip(model)
    _name_batch(model.graph)
    _keep_zeros_before_maximum(model.graph)
    store_codes(model, coded)
    save(model, path)


def _optimize_around_stored(model: ir.Model) -> None:
    """As the exporter does it, but for what makes weights from stored numbers: folded, those would be large again."""
    sizes = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.INT8, ir.DataType.UINT8}

    def should_fold(node: ir.Node) -> bool | None:
        value = node.inputs[0] if node.op_type == "Cast" else None
        return False if value is not None and value.is_initializer() and value.dtype in sizes else None

    with _quiet():
        optimize_ir(model, should_fold=should_fold)
        fuse(model)


def _with_attention_in_order(graph: fx.GraphModule, inputs: tuple[Tensor, ...]) -> fx.GraphModule:
    """The exporter takes the layout of attention's result from one kernel and then views it as another one gave it,
    which fails. A copy in plain order, which is no operator of the file, leaves nothing to guess. It knows attention of
    four dimensions only, so those before the heads are made one."""
    plain = copy.deepcopy(graph.graph)
    found = plain.find_nodes(op="call_function", target=torch.ops.aten.scaled_dot_product_attention.default)
    if found:
        record_shapes(fx.GraphModule(graph, plain), inputs)
    for node in found:
        _in_four_dimensions(plain, node)
        with plain.inserting_after(node):
            ordered = plain.call_function(torch.ops.aten.clone.default, (node,))
        node.replace_all_uses_with(ordered, delete_user_cb=lambda user, ordered=ordered: user is not ordered)
        ordered.kwargs = {"memory_format": torch.contiguous_format}
    return fx.GraphModule(graph, plain)


def _with_clamps(graph: fx.GraphModule) -> fx.GraphModule:
    """In a copy that is the exporter's alone: it takes `hardtanh` apart slowly, and a clamp, which is the same,
    not at all. One in place stays where somebody else may have the value too."""
    aten = torch.ops.aten
    for target in (aten.hardtanh.default, aten.hardtanh_.default):
        for node in graph.graph.find_nodes(op="call_function", target=target):
            value = node.args[0]
            if target is aten.hardtanh.default or _is_nobody_elses(graph, value):
                bounds = (
                    {"min_val": -1.0, "max_val": 1.0} | dict(zip(_BOUNDS, node.args[1:], strict=False)) | node.kwargs
                )
                node.target, node.kwargs = aten.clamp.default, {}
                node.args = (value, *(bounds[name] for name in _BOUNDS))
    graph.recompile()
    return graph


def _is_nobody_elses(graph: fx.GraphModule, value: Any) -> bool:
    """Whether the value comes fresh from a layer with parameters, and goes nowhere else."""
    if not isinstance(value, fx.Node) or len(value.users) > 1 or value.op != "call_module":
        return False
    return any(True for _ in graph.get_submodule(str(value.target)).parameters())


def _in_four_dimensions(graph: fx.Graph, node: fx.Node) -> None:
    query, key, value = node.args[:3]
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    ranks = {len(part.meta["sizes"]) for part in (query, key, value) if isinstance(part, fx.Node)}
    rank = max(ranks)
    stacks = {part.meta["sizes"][:-2] for part in (query, key, value) if isinstance(part, fx.Node)}
    if rank < 5 or len(stacks) > 1 or (isinstance(mask, fx.Node) and len(mask.meta["sizes"]) > 3):
        return
    aten = torch.ops.aten
    with graph.inserting_before(node):
        sizes = [graph.call_function(aten.sym_size.int, (query, place)) for place in range(rank - 1)]
        width = graph.call_function(aten.sym_size.int, (value, rank - 1))
        merged = [graph.call_function(aten.flatten.using_ints, (part, 0, rank - 4)) for part in (query, key, value)]
    node.args = (*merged, *node.args[3:])
    with graph.inserting_after(node):
        whole = graph.call_function(aten.reshape.default, (node, [*sizes, width]))
    node.replace_all_uses_with(whole, delete_user_cb=lambda user: user is not whole)


_op: Any = opset18


def _round_trip(x: Any, scale: float, zero_point: int) -> Any:
    step = _op.Constant(value_float=scale)
    zero = _op.Constant(value=ir.tensor(np.array(zero_point, np.uint8)))
    return _op.DequantizeLinear(_op.QuantizeLinear(x, step, zero), step, zero)


def _dequantize(integers: Any, scale: Any, axis: int) -> Any:
    # Optional in ONNX, but ONNX Runtime only fuses QGemm when the zero points are written out.
    zeros = ir.tensor(np.zeros(integers.shape[axis], integers.dtype.numpy()))
    return _op.DequantizeLinear(integers, scale, _op.Constant(value=zeros), axis=axis)


def _mean(x: Any, dim: Sequence[int], keepdim: bool = False, dtype: int = -1) -> Any:
    """The exporter's own rule, but for the mean over a whole image: ReduceMean has no integer kernel."""
    rank = len(x.shape)
    if keepdim and dtype == -1 and rank == 4 and {size % rank for size in dim} == {2, 3}:
        return _op.GlobalAveragePool(x)
    return aten_mean_dim(x, _op.Constant(value_ints=list(dim or range(rank))), keepdim, dtype)


def _strip(model: onnx.ModelProto) -> None:
    """Take out stack traces, host paths and the shapes of inner values, which runtimes infer."""
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    graph.doc_string = ""
    del graph.metadata_props[:]
    del graph.value_info[:]
    for part in [*graph.node, *graph.input, *graph.output, *graph.initializer]:
        part.doc_string = ""
        del part.metadata_props[:]


def _name_batch(graph: onnx.GraphProto) -> None:
    """Call the open size of dimension 0 `batch`; the exporter's own name says nothing."""
    sizes = [part.type.tensor_type.shape.dim for part in [*graph.input, *graph.output]]
    names = {dims[0].dim_param for dims in sizes if len(dims) and dims[0].dim_param}
    if len(names) == 1:
        for dims in sizes:
            for dim in dims:
                if dim.dim_param in names:
                    dim.dim_param = "batch"


def _keep_zeros_before_maximum(graph: onnx.GraphProto) -> None:
    """ONNX Runtime folds a Pad of zeros into the MaxPool behind it, which pads with the lowest number, so that negative
    values win at the border (1.31, PadFusion). A number that is zero only to arithmetic keeps the two apart."""
    pooled = {node.input[0] for node in graph.node if node.op_type == "MaxPool"}
    name = "smallest_padding"
    padded = [node for node in graph.node if node.op_type == "Pad" and node.output[0] in pooled]
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in padded:
        value = constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if value is None or numpy_helper.to_array(value) == 0:
            node.input[:] = [node.input[0], node.input[1], name, *node.input[3:]]
    if any(name in node.input for node in padded):
        graph.initializer.append(numpy_helper.from_array(np.array(np.finfo(np.float32).tiny), name))
        used = {value for node in graph.node for value in node.input}
        for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
            graph.initializer.remove(tensor)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter talks on stdout and in warnings, logs whole graphs, and keeps a stack trace of every node, which no
    file has and which takes a tenth to a third of the time."""
    logger = logging.getLogger("torch.onnx")
    level, without_traces = logger.level, getattr(fx.config, _NO_TRACES, False)
    logger.setLevel(logging.CRITICAL)
    setattr(fx.config, _NO_TRACES, True)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        setattr(fx.config, _NO_TRACES, without_traces)
