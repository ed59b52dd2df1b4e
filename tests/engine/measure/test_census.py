"""What a runtime makes of a file, read from the graph it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.report import Census
from worker.engine.measure.census import take_census, what_is_left_over


def written(nodes: list[onnx.NodeProto], arrays: dict[str, NDArray[Any]], folder: Path) -> Path:
    value, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 4, 8, 8]) for name in ("x", "y"))
    stored = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "g", [value], [result], stored)
    path = folder / "network.onnx"
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_a_convolution_on_stored_integers_is_found_and_told(tmp_path: Path) -> None:
    arrays: dict[str, NDArray[Any]] = {
        "w": np.ones((4, 4, 1, 1), np.int8),
        "scale": np.full(4, 0.5, np.float32),
        "zero": np.zeros(4, np.int8),
        "v": np.ones((4, 4, 1, 1), np.float32),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["f"], axis=0),
        helper.make_node("Conv", ["x", "f"], ["c"], name="first"),
        helper.make_node("Softmax", ["c"], ["s"], axis=1),
        helper.make_node("Conv", ["s", "v"], ["y"], name="second"),
    ]
    census = take_census(written(nodes, arrays, tmp_path), tmp_path)
    assert census.integer_kernels == {}
    assert census.float_kernels == {"Conv": 1}
    assert len(census.unpacked_each_call) == 1
    told = what_is_left_over(census, "model.onnx")
    assert told is not None
    assert "1 operators of model.onnx" in told
    assert "at every call" in told


def test_nothing_is_told_where_nothing_is_left_over() -> None:
    assert what_is_left_over(Census(integer_kernels={"QGemm": 1}, float_kernels={}, unpacked_each_call=[]), "m") is None


def test_many_are_told_by_their_number() -> None:
    left = [f"n{index}" for index in range(8)]
    told = what_is_left_over(Census(integer_kernels={}, float_kernels={}, unpacked_each_call=left), "m")
    assert told is not None
    assert "n4 and 3 more" in told
