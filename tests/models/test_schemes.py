"""What quantize steps that need no ranges from data may ask, known at submit."""

from __future__ import annotations

from typing import Any

import pytest

from models.errors import FieldProblem
from models.inspection import LayerInfo, NetworkInspection, TensorInfo
from models.rules import check, resolve
from models.spec import Spec


def network(*kinds: str) -> NetworkInspection:
    """One layer of each kind, named after it."""
    layers = [
        LayerInfo(
            name=kind.lower(),
            kind=kind,
            shape=[8, 8],
            parameters=72,
            macs=64,
            group=None,
            prunable=False,
            reason="small",
        )
        for kind in kinds
    ]
    value = TensorInfo(name="x", dtype="float32", shape=[None, 8])
    return NetworkInspection(
        format="pt2", inputs=[value], outputs=[value], parameters=72, macs=64, layers=layers, groups=[]
    )


def spec(**fields: Any) -> Spec:
    return Spec.model_validate({"model": "net_1", "steps": [{"step": "quantize", **fields}]})


def problems(network: NetworkInspection, **fields: Any) -> list[FieldProblem]:
    return check(spec(**fields), network, None)


def test_dynamic_needs_no_data_and_no_scheme() -> None:
    asked = spec(method="dynamic")
    assert check(asked, network("LSTM", "Linear"), None) == []
    (step,) = resolve(asked, network("Linear"), None).steps or []
    assert step.model_dump() == {"step": "quantize", "scheme": "int8", "method": "dynamic", "layers": []}


@pytest.mark.parametrize(
    ("kinds", "layers"), [(("Conv2d", "GRU"), []), (("Conv2d", "Linear"), [{"match": "linear", "skip": True}])]
)
def test_dynamic_with_nothing_to_range_is_refused(kinds: tuple[str, ...], layers: list[Any]) -> None:
    (problem,) = problems(network(*kinds), method="dynamic", layers=layers)
    assert problem.pointer == "/steps/0/method"
    assert "linear layers and LSTMs only" in problem.message


def test_every_layer_skipped_is_refused() -> None:
    (problem,) = problems(network("Linear"), method="dynamic", layers=[{"match": "*", "skip": True}])
    assert problem.pointer == "/steps/0/layers"


def test_a_field_of_another_method_is_refused() -> None:
    with pytest.raises(ValueError, match="calibration_samples"):
        spec(method="dynamic", calibration_samples=3)


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "weights"},
        {"method": "auto"},
        {"scheme": "fp16"},
        {"scheme": "bf16"},
        {"scheme": "fp8"},
        {"scheme": "fp8", "format": "e5m2"},
    ],
)
def test_storage_and_auto_need_no_data(fields: dict[str, Any]) -> None:
    asked = spec(**fields)
    assert check(asked, network("GRU", "Conv2d"), None) == []
    assert Spec.model_validate_json(asked.model_dump_json()) == asked


@pytest.mark.parametrize("fields", [{"scheme": "fp16", "method": "ptq"}, {"scheme": "bf16", "format": "e4m3"}])
def test_a_field_of_another_scheme_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Extra inputs"):
        spec(**fields)
