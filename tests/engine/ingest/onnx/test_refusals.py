"""Files that are not read: each refusal says what it is, where, and what to change; nothing else than one leaves."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from models.errors import Code, Failure
from models.reading import ReadOptions
from tests.engine.ingest.onnx.graphs import compare, fp, ints, model, random, read, with_parameters
from tests.networks import NETWORKS, export_pt2
from worker.engine.ingest.read import read_network

W = {"fc.weight": random(4, 3)}
NODE = helper.make_node


def linear(**changes: Any) -> ModelProto:
    """x [N, 4] -> y [N, 3]."""
    return model([NODE("MatMul", ["x", "fc.weight"], ["y"], "/fc/MatMul")], {"x": ["N", 4]}, ["y"], W, **changes)


def changed(change: Callable[[ModelProto], object]) -> ModelProto:
    network = linear()
    change(network)
    return network


def _external(network: ModelProto, location: str = "weights.bin", **more: str) -> None:
    tensor = network.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)


def _function(network: ModelProto) -> None:
    body = [NODE("Relu", ["a"], ["b"])]
    network.functions.append(helper.make_function("mine", "Own", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))


def _branch(network: ModelProto, condition: str) -> None:
    def side(kind: str) -> onnx.GraphProto:
        return helper.make_graph(
            [NODE(kind, ["y"], [f"{kind}.out"])], kind, [], [helper.make_empty_tensor_value_info(f"{kind}.out")]
        )

    network.graph.node.append(
        NODE("If", [condition], ["z"], "choose", then_branch=side("Relu"), else_branch=side("Neg"))
    )
    network.graph.output[0].name = "z"


def _data_branch(network: ModelProto) -> None:
    network.graph.node.append(NODE("ReduceMax", ["y"], ["top"], keepdims=0))
    network.graph.node.append(NODE("Cast", ["top"], ["condition"], to=TensorProto.BOOL))
    _branch(network, "condition")


def _loop(network: ModelProto) -> None:
    body = helper.make_graph(
        [NODE("Identity", ["c"], ["d"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("d", TensorProto.BOOL, [])],
    )
    network.graph.node.append(NODE("Loop", ["", ""], [], "again", body=body))


def _huge(network: ModelProto) -> None:
    network.graph.node.append(NODE("ConstantOfShape", ["many"], ["zeros"]))
    network.graph.initializer.append(numpy_helper.from_array(ints(1 << 40), "many"))


def deep() -> bytes:
    """Fields nested a million deep: graph -> node -> attribute -> graph …"""
    inner: bytes = b""
    for _ in range(30_000):
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            inner = tag + _varint(len(inner)) + inner
    return bytes(linear().SerializeToString()) + b"\x3a" + _varint(len(inner)) + inner


def _varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found += bytes([value & 127 | 128])
        value >>= 7
    return found + bytes([value])


def _weight(**fields: Any) -> Callable[[ModelProto], object]:
    def change(network: ModelProto) -> None:
        tensor = network.graph.initializer[0]
        for name, value in fields.items():
            if name == "dims":
                del tensor.dims[:]
                tensor.dims.extend(value)
            else:
                setattr(tensor, name, value)

    return change


def _opset(version: int) -> Callable[[ModelProto], object]:
    return lambda network: setattr(network.opset_import[0], "version", version)


def _node(*nodes: onnx.NodeProto) -> Callable[[ModelProto], object]:
    return lambda network: network.graph.node.extend(nodes)


REFUSED: dict[str, tuple[Callable[[ModelProto], object], Code, str]] = {
    "weights_elsewhere": (_external, Code.NETWORK_REJECTED, "external data"),
    "weights_in_etc": (lambda n: _external(n, "/etc/passwd"), Code.NETWORK_REJECTED, "external data"),
    "weights_above": (lambda n: _external(n, "../../x"), Code.NETWORK_REJECTED, "external data"),
    "own_function": (_function, Code.NETWORK_REJECTED, "'Own'"),
    "other_domain": (
        _node(NODE("FusedConv", ["y"], ["z"], domain="com.microsoft")),
        Code.UNSUPPORTED_OP,
        "com.microsoft",
    ),
    "unknown_operator": (_node(NODE("Invented", ["y"], ["z"])), Code.UNSUPPORTED_OP, "'Invented'"),
    "sequence": (_node(NODE("SequenceConstruct", ["y"], ["z"])), Code.UNSUPPORTED_OP, "SequenceConstruct"),
    "newer_operator": (_node(NODE("Gelu", ["y"], ["z"])), Code.UNSUPPORTED_OP, "opset 17"),
    "loop": (_loop, Code.NETWORK_REJECTED, "a loop"),
    "branch_on_data": (_data_branch, Code.NETWORK_REJECTED, "a branch"),
    "random": (_node(NODE("RandomNormalLike", ["y"], ["z"])), Code.NETWORK_REJECTED, "random numbers"),
    "quantized": (
        _node(NODE("QuantizeLinear", ["y", "y"], ["z"])),
        Code.NETWORK_REJECTED,
        "quantized already",
    ),
    "training": (lambda n: n.training_info.add(), Code.NETWORK_REJECTED, "training information"),
    "sparse": (lambda n: n.graph.sparse_initializer.add(), Code.NETWORK_REJECTED, "sparse"),
    "opset_of_the_future": (_opset(9999), Code.NETWORK_REJECTED, "9999"),
    "opset_of_the_past": (_opset(6), Code.NETWORK_REJECTED, "version_converter"),
    "no_opset": (lambda n: n.ClearField("opset_import"), Code.NETWORK_REJECTED, "opset none"),
    "texts": (_weight(data_type=TensorProto.STRING), Code.NETWORK_REJECTED, "STRING"),
    "unknown_type": (_weight(data_type=77), Code.NETWORK_REJECTED, "77"),
    "too_few_bytes": (_weight(raw_data=b"1234"), Code.NETWORK_REJECTED, "4 bytes"),
    "too_large": (_weight(dims=[1 << 30, 1 << 30]), Code.NETWORK_REJECTED, "bytes"),
    "negative": (_weight(dims=[-4, -3]), Code.NETWORK_REJECTED, "sizes"),
    "constant_of_terabytes": (_huge, Code.NETWORK_REJECTED, "no sensible size"),
    "undefined_value": (_node(NODE("Relu", ["nowhere"], ["z"])), Code.NETWORK_REJECTED, "before it is defined"),
    "defined_twice": (_node(NODE("Relu", ["x"], ["y"])), Code.NETWORK_REJECTED, "twice"),
    "unknown_attribute": (_node(NODE("Relu", ["y"], ["z"], slope=0.1)), Code.NETWORK_REJECTED, "'slope'"),
    "attribute_of_another_kind": (_node(NODE("Softmax", ["y"], ["z"], axis=1.5)), Code.NETWORK_REJECTED, "'axis'"),
    "too_many_inputs": (_node(NODE("Relu", ["y", "y", "y"], ["z"])), Code.NETWORK_REJECTED, "3 inputs"),
    "axis_that_is_not_there": (_node(NODE("Softmax", ["y"], ["z"], axis=7)), Code.NETWORK_REJECTED, "axis 7"),
    "no_input": (lambda n: n.graph.ClearField("input"), Code.NETWORK_REJECTED, "no input"),
    "no_output": (lambda n: n.graph.ClearField("output"), Code.NETWORK_REJECTED, "no output"),
    "output_without_the_input": (
        lambda n: setattr(n.graph.output[0], "name", "fc.weight"),
        Code.NETWORK_REJECTED,
        "does not depend",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_is_refused_with_what_it_is(name: str, tmp_path: Path) -> None:
    change, code, says = REFUSED[name]
    with pytest.raises(Failure) as caught:
        read(changed(change), tmp_path)
    assert caught.value.code == code
    assert says in caught.value.message


def test_the_file_that_all_these_changes_are_made_to_is_read(tmp_path: Path) -> None:
    program, subject = read(linear(), tmp_path)
    compare(linear(), subject)
    assert program.renames == {}
    assert list(dict(subject.graph.named_parameters())) == ["fc.weight"]


def test_fields_nested_without_end_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    path.write_bytes(deep())
    with pytest.raises(Failure, match="no ONNX network"):
        read_network(path)


def test_a_branch_whose_condition_is_known_is_the_side_that_is_taken(tmp_path: Path) -> None:
    for truth in (True, False):
        network = linear()
        network.graph.initializer.append(numpy_helper.from_array(np.array(truth), "truth"))
        _branch(network, "truth")
        _, subject = read(network, tmp_path)
        compare(network, subject)


def test_variants_that_torch_does_not_have_are_refused_by_name(tmp_path: Path) -> None:
    weights = {"w": random(1, 12, 4), "r": random(1, 12, 3)}
    gru = NODE("GRU", ["x", "w", "r"], ["y"], "gru", hidden_size=4)
    with pytest.raises(Failure, match="linear_before_reset"):
        read(with_parameters(gru, {"x": ["N", 6, 4]}, weights), tmp_path)
    lengths = NODE("TopK", ["x", "k"], ["y", "z"], "top")
    with pytest.raises(Failure, match="`K` is computed"):
        read(with_parameters(lengths, {"x": ["N", 4], "k": (TensorProto.INT64, [1])}), tmp_path)


def test_sizes_that_the_file_leaves_open_are_asked_for(tmp_path: Path) -> None:
    conv = NODE("Conv", ["x", "c.weight"], ["y"])
    network = model([conv], {"x": ["N", 3, "height", "width"]}, ["y"], {"c.weight": random(4, 3, 3, 3)})
    with pytest.raises(Failure, match=r"\[N, 3, height, width\].*`\?input_shape=1,3,SIZE,SIZE`") as caught:
        read(network, tmp_path)
    assert caught.value.code == Code.NETWORK_REJECTED
    program, subject = read(network, tmp_path, ReadOptions(input_shape=("1,3,9,8",)))
    assert program.inputs[0].shape == [None, 3, 9, 8]
    compare(network, subject)
    with pytest.raises(Failure, match=r"says \[1, 4, 9, 8\].*\[N, 3, height, width\]"):
        read(network, tmp_path, ReadOptions(input_shape=("1,4,9,8",)))
    with pytest.raises(Failure, match=r"names the input 'z'; the network's are 'x'"):
        read(network, tmp_path, ReadOptions(input_shape=("z:1,3,9,8",)))


def test_several_inputs_get_their_sizes_by_name(tmp_path: Path) -> None:
    node = NODE("Add", ["a", "b"], ["y"])
    network = with_parameters(node, {"a": ["N", "L"], "b": ["N", "L"]})
    with pytest.raises(Failure, match="input_shape=a:1,SIZE&input_shape=b:1,SIZE"):
        read(network, tmp_path)
    with pytest.raises(Failure, match="name each"):
        read(network, tmp_path, ReadOptions(input_shape=("1,5",)))
    _, subject = read(network, tmp_path, ReadOptions(input_shape=("a:1,5", "b:1,5")))
    compare(network, subject)


def test_sizes_are_no_matter_of_a_pt2(tmp_path: Path) -> None:
    path = export_pt2(*NETWORKS["gru"](), tmp_path / "network.pt2")
    with pytest.raises(Failure, match="leave `input_shape` out"):
        read_network(path, ReadOptions(input_shape=("1,3",)))


def test_hostile_names_reach_neither_modules_nor_source(tmp_path: Path) -> None:
    bad = ['x"); import os; (', "__class__", "weight.weight", "a\nb", "forward", "../../etc/x", "ü" * 300]
    for name in bad:
        nodes = [NODE("MatMul", ["x", name], ["y"], name), NODE("Add", ["y", f"{name}.bias"], ["z"])]
        weights = {name: random(4, 3), f"{name}.bias": random(1, 3)}
        network = model(nodes, {"x": ["N", 4]}, ["z"], weights)
        _, subject = read(network, tmp_path)
        compare(network, subject)
        assert all(re.fullmatch(r"[A-Za-z0-9_.]+", key) for key in dict(subject.graph.named_parameters()))
        assert name not in subject.graph.code or name.isidentifier()


def test_a_weight_used_twice_is_one_parameter(tmp_path: Path) -> None:
    nodes = [NODE("MatMul", ["x", "shared"], ["h"], "first"), NODE("MatMul", ["h", "shared"], ["y"], "second")]
    network = model(nodes, {"x": ["N", 4]}, ["y"], {"shared": random(4, 4)})
    _, subject = read(network, tmp_path)
    compare(network, subject)
    assert sum(value.numel() for value in subject.graph.parameters()) == 16


def test_weights_that_are_not_finite_are_told(tmp_path: Path) -> None:
    network = model(
        [NODE("MatMul", ["x", "w"], ["y"])], {"x": ["N", 2]}, ["y"], {"w": np.array([[1, np.nan], [0, 1]], np.float32)}
    )
    program, _ = read(network, tmp_path)
    assert [notice.code for notice in program.warnings] == ["nonfinite_weights"]


def test_a_network_without_parameters_is_refused(tmp_path: Path) -> None:
    network = model([NODE("Mul", ["x", "two"], ["y"])], {"x": ["N", 2]}, ["y"], {"two": fp(2)})
    with pytest.raises(Failure) as caught:
        read(network, tmp_path)
    assert caught.value.code == Code.NOT_TRAINABLE
