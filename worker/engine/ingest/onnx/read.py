"""Reading an ONNX file. Protobuf carries no code; what could lead out of the file is refused."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from onnx import ModelProto, TypeProto, ValueInfoProto

from models.inspection import Notice, TensorInfo
from models.reading import ReadOptions, parse_input_shape
from worker.engine.ingest.names import safe_names
from worker.engine.ingest.onnx.builder import Builder
from worker.engine.ingest.onnx.graph import OLDEST_OPSET, Interpreter, check_nodes
from worker.engine.ingest.onnx.tensors import DTYPES, External, dtype_of_type
from worker.engine.ingest.parameters import check_parameters
from worker.engine.ingest.precision import precision_notice
from worker.engine.ingest.program import Program, dtype_name
from worker.engine.ingest.rejected import rejected, shown
from worker.engine.ingest.sizes import check_input
from worker.engine.ingest.trial import check_batch

MAXIMUM_BYTES = (2 << 30) - 1
"""What protobuf can hold."""

Shape = list[int | None]


def read_onnx(path: Path, options: ReadOptions) -> Program:
    """The network in an ONNX file; `options.input_shape` has the sizes that it leaves open.

    Raises `Failure`: network_rejected, unsupported_op or not_trainable. Nothing else leaves, whatever the file holds.
    """
    if path.stat().st_size > MAXIMUM_BYTES:
        raise rejected(
            "an ONNX file larger than 2 GB cannot be read; save its weights beside it (external data) and send both as "
            "one tar: `tar cf network.tar NAME.onnx NAME.data`"
        )
    return read_model(path.read_bytes(), options, None)


def read_model(content: bytes, options: ReadOptions, external: External | None) -> Program:
    """The same from the bytes of the file; `external` reads its data file."""
    model = ModelProto()
    try:
        model.ParseFromString(content)
    except (DecodeError, RecursionError) as error:
        raise rejected(f"the file is no ONNX network: {str(error)[:200]}") from error
    del content
    opset = _check_model(model)
    check_nodes(model.graph)
    widened = _widened(model)
    given = _inputs(model, options, widened)
    builder = Builder(given[0].shape[0], widened)
    inputs = [(info, builder.placeholder(info.name, getattr(torch, info.dtype), _rest(info))) for info in given]
    interpreter = Interpreter(builder, opset)
    for info, node in inputs:
        interpreter.bind_input(info.name, node)
    interpreter.run(model.graph, external)
    infos = tuple(info.model_copy(update={"name": node.name}) for info, node in inputs)
    outputs = interpreter.outputs(model.graph, {info.name for info in infos})
    return check_batch(_program(builder, infos, outputs, [*precision_notice(widened), *_notices(model)]))


def _check_model(model: ModelProto) -> int:
    """Refuse what stands beside the graph. Returns the opset."""
    _check_texts(model)
    if not model.ir_version or not model.graph.node:
        raise rejected("the file is no ONNX network: it holds no graph")
    if model.functions:
        raise rejected(
            f"the file defines operators of its own ({shown(model.functions[0].name)}), which are not read; "
            "export with them inlined"
        )
    if model.training_info:
        raise rejected("the file holds training information, which is not read; save the network for inference")
    versions = [opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")]
    newest = onnx.defs.onnx_opset_version()
    if len(versions) != 1 or not OLDEST_OPSET <= versions[0] <= newest:
        named = ", ".join(str(version) for version in versions[:5]) or "none"
        raise rejected(
            f"the file follows opset {named}; {OLDEST_OPSET} to {newest} are read: convert it with "
            "`onnx.version_converter.convert_version`"
        )
    return int(versions[0])


def _check_texts(message: Message) -> None:
    """Names must be text: protobuf hands bytes that are not UTF-8 through as they are."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for inner in [value] if isinstance(value, Message) else value:
                _check_texts(inner)
        elif field.type == field.TYPE_STRING:
            for text in [value] if isinstance(value, str | bytes) else value:
                if not isinstance(text, str):
                    raise rejected(f"the file is no ONNX network: its `{field.name}` is no text")


def _rest(info: TensorInfo) -> tuple[int, ...]:
    return tuple(size or 1 for size in info.shape[1:])


def _widened(model: ModelProto) -> frozenset[torch.dtype]:
    """The element types of its weights other than float32: it is compressed in that."""
    constants = [attribute.t for node in model.graph.node if node.op_type == "Constant" for attribute in node.attribute]
    weights = [tensor for tensor in (*model.graph.initializer, *constants) if len(tensor.dims) > 1]
    found = {DTYPES[tensor.data_type] for tensor in weights if tensor.data_type in DTYPES}
    return frozenset(dtype for dtype in found if dtype.is_floating_point) - {torch.float32}


def _inputs(model: ModelProto, options: ReadOptions, widened: frozenset[torch.dtype]) -> list[TensorInfo]:
    known = {initializer.name for initializer in model.graph.initializer}
    given = [value for value in model.graph.input if value.name not in known]
    if not given:
        raise rejected("the network has no input")
    for value in given:
        if value.type.tensor_type.HasField("shape") and not value.type.tensor_type.shape.dim:
            what = f"the input {shown(value.name)} is a single number"
            raise rejected(f"{what}; dimension 0 of every input must be the batch")
    shapes = dict(parse_input_shape(text) for text in options.input_shape)
    names = [value.name for value in given]
    if None in shapes and len(given) > 1:
        raise rejected(f"the network has {len(given)} inputs: name each with its sizes, {_asked(given)}")
    if strange := [name for name in shapes if name is not None and name not in names]:
        listed = ", ".join(shown(name) for name in names[:10])
        raise rejected(f"`input_shape` names the input {shown(strange[0])}; the network's are {listed}")
    made = []
    for value in given:
        if value.type.WhichOneof("value") != "tensor_type":
            raise rejected(f"the input {shown(value.name)} is no tensor")
        dtype = dtype_of_type(value.type.tensor_type.elem_type, f"the input {shown(value.name)}")
        dtype = torch.float32 if dtype in widened else dtype
        shape = _shape(value, shapes.get(value.name, shapes.get(None)), given)
        check_input(value.name, shape)
        made.append(TensorInfo(name=value.name, dtype=dtype_name(dtype), shape=shape))
    return made


def _shape(value: ValueInfoProto, said: tuple[int, ...] | None, given: list[ValueInfoProto]) -> Shape:
    """The sizes of an input, the batch `None` where it may vary. What the file leaves open must have been said."""
    name, tensor = shown(value.name), value.type.tensor_type
    own = _sizes(tensor) if tensor.HasField("shape") else None
    if said is not None:
        if own is not None and (
            len(said) != len(own) or any(size not in (None, wish) for size, wish in zip(own[1:], said[1:], strict=True))
        ):
            raise rejected(
                f"`input_shape` says {list(said)} for the input {name}, and the file {_written(own, tensor)}"
            )
        return [own[0] if own else None, *said[1:]]
    if own is None or None in own[1:]:
        what = "says nothing of its sizes" if own is None else f"leaves sizes open: {_written(own, tensor)}"
        raise rejected(
            f"the input {name} {what}. Say them at the upload, the batch first: {_asked(given)}", value.name[:200]
        )
    return own


def _sizes(tensor: TypeProto.Tensor) -> Shape:
    return [
        dimension.dim_value if dimension.WhichOneof("value") == "dim_value" and dimension.dim_value > 0 else None
        for dimension in tensor.shape.dim
    ]


def _written(own: Shape, tensor: TypeProto.Tensor) -> str:
    parts = [
        str(size) if size is not None else shown(dimension.dim_param)[1:-1][:20] or "?"
        for size, dimension in zip(own, tensor.shape.dim, strict=True)
    ]
    return f"[{', '.join(parts)}]"


def _asked(given: list[ValueInfoProto]) -> str:
    """How to say the sizes, with the names where there are several inputs."""
    texts = []
    for value in given[:8]:
        own = _sizes(value.type.tensor_type)
        sizes = ",".join(["1", *(str(size) if size else "SIZE" for size in own[1:])]) if own else "1,SIZE,SIZE"
        name = shown(value.name)[1:-1]
        texts.append(f"input_shape={sizes}" if len(given) == 1 else f"input_shape={name}:{sizes}")
    return f"`?{'&'.join(texts)}`"


def _program(
    builder: Builder, inputs: tuple[TensorInfo, ...], outputs: tuple[TensorInfo, ...], notices: list[Notice]
) -> Program:
    graph = builder.graph
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)
    used = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    names = safe_names(sorted(used))
    for node in graph.nodes:
        if node.op == "get_attr":
            node.target = names[str(node.target)]
        node.meta.pop("values", None)
    values = {names[name]: builder.tensors[name] for name in builder.tensors if name in used}
    parameters = frozenset(names[name] for name in builder.parameters & used)
    buffers = frozenset(names[name] for name in builder.buffers & used)
    check_parameters(values, parameters, notices)
    return Program(
        graph=graph,
        tensors=values,
        parameters=parameters,
        buffers=buffers,
        constants=frozenset(values) - parameters - buffers,
        inputs=inputs,
        outputs=outputs,
        renames={
            builder.sources[name]: safe
            for name, safe in names.items()
            if name in builder.parameters and builder.sources[name] != safe
        },
        warnings=tuple(notices),
        format="onnx",
    )


def _notices(model: ModelProto) -> list[Notice]:
    kinds = [node.op_type for node in model.graph.node]
    with_bias = sum(node.op_type == "Conv" and len(node.input) > 2 for node in model.graph.node)
    normalised = any("Normalization" in kind for kind in kinds)
    if with_bias < 3 or normalised:
        return []
    message = (
        "The convolutions have biases and no normalization. Where an exporter merged batch normalization into them, "
        "training after a cut recovers a little less; a file from `modelpress prepare` keeps it."
    )
    return [Notice(code="batch_norm_merged", message=message)]
