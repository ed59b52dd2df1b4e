"""Reading a network without running anything in its file. `torch.export.load` would be remote code execution."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Literal

from models.formats import HEAD_BYTES, identify_network_archive, sniff_network
from models.inspection import Notice, TensorInfo
from models.reading import NOTHING_SAID, ReadOptions
from worker.engine.graph.lift import compose
from worker.engine.ingest import schema
from worker.engine.ingest.archive import FORMAT, GRAPH, MAXIMUM_JSON_BYTES, OLD_GRAPH, Archive
from worker.engine.ingest.named.read import export_named
from worker.engine.ingest.names import safe_name, safe_names
from worker.engine.ingest.onnx.archive import read_onnx_archive
from worker.engine.ingest.onnx.read import read_onnx
from worker.engine.ingest.parameters import check_parameters
from worker.engine.ingest.precision import in_single_precision, precision_notice
from worker.engine.ingest.program import GraphBuilder, Program, dtype_name, symbol
from worker.engine.ingest.rejected import bad_archive, rejected, shown
from worker.engine.ingest.sizes import check_input
from worker.engine.ingest.treespec import Tree, parse_treespec
from worker.engine.ingest.trial import check_batch
from worker.engine.ingest.weights import Tensors, read_tensors

SCHEMA_MAJORS = (7, 8)
"""7.3 is of torch 2.5, 8.2 of 2.6, 8.8 of 2.8, 8.14 of 2.9, 8.20 of 2.12 to 2.15; what 8 changed is not read."""


def read_network(path: Path, options: ReadOptions = NOTHING_SAID) -> Program:
    """The network in a `.pt2` or ONNX file, or, where `options` name an architecture, that of the weights in the file.

    Raises `Failure`: what `models.formats` raises for other files; bad_archive, network_rejected, unsupported_op or
    not_trainable for these; what `named` raises for weights. Nothing else leaves, whatever the
    file holds. The network is tried on shapes alone first, and once for real when these fit the budget.
    """
    with path.open("rb") as file:
        kind = sniff_network(file.read(HEAD_BYTES), path.stat().st_size, arch=options.arch)
    if kind == "onnx":
        return read_onnx(path, options)
    if kind == "tar":
        return read_onnx_archive(path, options)
    if kind == "zip":
        identify_network_archive(path, options.arch)
    if options.arch is None and options.input_shape:
        raise rejected("a `.pt2` says the sizes of its inputs itself: leave `input_shape` out")
    return _read_pt2(path) if options.arch is None else _read_named(path, kind, options)


def _read_named(path: Path, kind: Literal["zip", "safetensors"], options: ReadOptions) -> Program:
    with tempfile.TemporaryDirectory(prefix="named-") as folder:
        exported = export_named(path, kind, options, Path(folder) / "network.pt2")
        program = _read_pt2(Path(folder) / "network.pt2")
    return replace(program, format=exported.format, warnings=(*exported.notices, *program.warnings))


def _read_pt2(path: Path) -> Program:
    archive = Archive(path)
    try:
        if FORMAT in archive and archive.read(FORMAT, 16) != b"pt2":
            raise bad_archive("the archive does not say that it is a pt2 archive")
        name = OLD_GRAPH if OLD_GRAPH in archive else GRAPH
        document = archive.read(name, MAXIMUM_JSON_BYTES)
        version = schema.parse(schema.Version, document, name).schema_version
        if version.major not in SCHEMA_MAJORS:
            raise rejected(
                f"the file follows export schema {version.major}.{version.minor}; 7.x and 8.x are read: "
                "export it again with torch 2.5 to 2.15"
            )
        module = schema.parse(schema.ExportedProgram, document, name).graph_module
        tensors = read_tensors(archive)
    finally:
        archive.close()
    return check_batch(_assemble(module, tensors))


def _assemble(module: schema.GraphModule, tensors: Tensors) -> Program:
    names = safe_names(list(tensors.values))
    tensors, widened = in_single_precision(tensors)
    builder = GraphBuilder(widened)
    inputs, buffers, warnings = _inputs(module, builder, tensors, names)
    builder.body(module.graph)
    warnings += [*precision_notice(widened), *builder.notices]
    call = module.module_call_graph[0].signature
    if call is None:
        raise rejected("the file does not say how the network is called")
    if parse_treespec(call.in_spec, "inputs").leaves != len([s for s in module.signature.input_specs if _is_user(s)]):
        raise rejected("the structure of the inputs does not match their number")
    outputs = _outputs(module, builder, parse_treespec(call.out_spec, "outputs"), {info.name for info in inputs})
    compose(builder.graph)
    values = {names[name]: tensor for name, tensor in tensors.values.items()}
    check_parameters(values, frozenset(names[name] for name in tensors.parameters), warnings)
    return Program(
        graph=builder.graph,
        tensors=values,
        parameters=frozenset(names[name] for name in tensors.parameters),
        buffers=frozenset(names[name] for name in buffers),
        constants=frozenset(names[name] for name in tensors.constants) - {names[name] for name in buffers},
        inputs=inputs,
        outputs=outputs,
        renames={name: safe for name, safe in names.items() if name != safe},
        warnings=tuple(warnings),
    )


def _is_user(spec: schema.InputSpec) -> bool:
    return spec.kind in ("user_input", "constant_input")


def _inputs(
    module: schema.GraphModule, builder: GraphBuilder, tensors: Tensors, names: dict[str, str]
) -> tuple[tuple[TensorInfo, ...], set[str], list[Notice]]:
    specs, arguments = module.signature.input_specs, module.graph.inputs
    if len(specs) != len(arguments):
        raise rejected(f"the signature has {len(specs)} inputs, the graph {len(arguments)}")
    infos: list[TensorInfo] = []
    buffers: set[str] = set()
    warnings: list[Notice] = []
    for spec, argument in zip(specs, arguments, strict=True):
        if spec.user_input is not None and argument.as_tensor is not None:
            infos.append(_input(module.graph, argument.as_tensor.name, builder, warnings))
        elif spec.user_input is not None and argument.kind != "as_none":
            raise rejected(f"an input is {argument.kind[3:]}, not a tensor; export with tensors only")
        elif not _is_user(spec):
            name = _tensor_name(spec)
            if name not in tensors.values:
                raise rejected(f"the network uses the tensor {shown(name)}, which the file does not hold")
            if spec.buffer is not None:
                buffers.add(name)
            builder.tensor(spec.value.arg.name, names[name], tensors.values[name])
    if not infos:
        raise rejected("the network has no tensor input")
    return tuple(infos), buffers, warnings


def _tensor_name(spec: schema.InputSpec) -> str:
    if spec.parameter is not None:
        return spec.parameter.parameter_name
    if spec.buffer is not None:
        return spec.buffer.buffer_name
    assert spec.tensor_constant is not None
    return spec.tensor_constant.tensor_constant_name


def _input(graph: schema.Graph, name: str, builder: GraphBuilder, warnings: list[Notice]) -> TensorInfo:
    """Dimension 0 may vary; other sizes that vary are taken as they were in the export's example."""
    meta = graph.tensor_values.get(name)
    if meta is None:
        raise rejected(f"the file does not say what shape the input {shown(name)} has")
    node = builder.placeholder(name, meta)
    if node.meta["dtype"].is_complex:
        raise rejected(f"the input {node.name} is complex; take its real and imaginary parts as two numbers")
    shape: list[int | None] = []
    for position, size in enumerate(meta.sizes):
        if size.as_expr is None:
            shape.append(size.as_int)
            continue
        hint = size.as_expr.hint.as_int if size.as_expr.hint else None
        if position == 0 and symbol(size):
            shape.append(None)
            continue
        if hint is None:
            raise rejected(f"dimension {position} of the input {node.name} varies and the file has no example size")
        shape.append(hint)
        warnings.append(
            Notice(
                code="size_fixed",
                message=f"Dimension {position} of the input {node.name} may vary in the file; it is taken as {hint}.",
            )
        )
    check_input(node.name, shape)
    node.meta["shape"] = shape
    return TensorInfo(name=node.name, dtype=dtype_name(node.meta["dtype"]), shape=shape)


def _outputs(module: schema.GraphModule, builder: GraphBuilder, tree: Tree, taken: set[str]) -> tuple[TensorInfo, ...]:
    specs, arguments = module.signature.output_specs, module.graph.outputs
    if len(specs) != len(arguments):
        raise rejected(f"the signature has {len(specs)} outputs, the graph {len(arguments)}")
    for spec in specs:
        if spec.user_output is None:
            raise rejected(
                f"the network changes a tensor it is given or holds ({spec.kind}); "
                "call `module.eval()` before exporting and keep no state"
            )
    values = [builder.output_value(argument) for argument in arguments]
    if tree.leaves != len(values):
        raise rejected("the structure of the outputs does not match their number")
    builder.graph.output(tree.fill(iter(values)))
    infos = []
    for path, value in zip(tree.paths(), values, strict=True):
        if value is not None:
            name = _output_name(path, taken)
            taken.add(name)
            infos.append(TensorInfo(name=name, dtype="", shape=[]))  # the trial fills in what the file may lie about
    if not infos:
        raise rejected("the network has no tensor output")
    return tuple(infos)


def _output_name(path: tuple[str | int, ...], taken: set[str]) -> str:
    """`output` for the only one, `output_1` by position, or the dict's key."""
    base = safe_name("_".join(str(part) for part in path), "output")
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    return name
