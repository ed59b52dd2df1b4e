"""A checkpoint's key changes with everything that the state is a result of, and with nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from models import checkpoints
from models.checkpoints import checkpoint_key, checkpoint_keys, in_order, inside_key
from models.spec import Spec

NETWORK, DATASET = "a" * 64, "b" * 64
PRUNE: dict[str, Any] = {"step": "prune", "amount": {"macs": 0.5}}
FINETUNE: dict[str, Any] = {"step": "finetune", "epochs": 2}
BASE: dict[str, Any] = {"model": "net_1", "data": {"dataset": "dat_1"}, "steps": [PRUNE, FINETUNE], "seed": 0}


def _key(**changes: Any) -> str:
    return checkpoint_key(NETWORK, DATASET, Spec.model_validate(BASE | changes), 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"steps": [PRUNE | {"round_to": 4}, FINETUNE]},
        {"steps": [FINETUNE, PRUNE]},
        {"data": {"dataset": "dat_1", "task": "none"}},
        {"data": {"dataset": "dat_1", "transform": {"scale": 2.0}}},
        {"data": None},
    ],
)
def test_another_seed_step_or_reading_of_the_data_is_another_key(changes: dict[str, Any]) -> None:
    assert _key(**changes) != _key()


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "another", "metadata": {"team": "edge"}, "limits": {"timeout_s": 5}},
        {"model": "net_2", "data": {"dataset": "dat_2"}},
        {"export": ["onnx"]},
        {"device": "cuda"},
        {"require": {"max_metric_drop": 0.1}},
        {"steps": [PRUNE, FINETUNE | {"epochs": 9}]},
        {"steps": [PRUNE]},
    ],
)
def test_names_limits_files_and_later_steps_change_nothing(changes: dict[str, Any]) -> None:
    assert _key(**changes) == _key()


def test_the_bytes_of_network_and_data_count() -> None:
    spec = Spec.model_validate(BASE)
    keys = {checkpoint_key(network, data, spec, 0) for network in (NETWORK, DATASET) for data in (NETWORK, None)}
    assert len(keys) == 4


def test_each_step_has_a_key_of_its_own() -> None:
    spec = Spec.model_validate(BASE)
    keys = checkpoint_keys(NETWORK, DATASET, spec)
    assert keys == [checkpoint_key(NETWORK, DATASET, spec, index) for index in (0, 1)]
    assert len(set(keys)) == 2


def test_the_state_inside_a_step_comes_before_its_end_and_after_the_step_before() -> None:
    first, second = checkpoint_keys(NETWORK, DATASET, Spec.model_validate(BASE))
    assert in_order([first, second]) == [inside_key(first), first, inside_key(second), second]
    assert len(set(in_order([first, second]))) == 4


def test_a_changed_engine_resumes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = _key()
    monkeypatch.setattr(checkpoints, "code_version", lambda: "another version")
    assert _key() != before


def test_a_spec_that_is_not_resolved_has_no_keys() -> None:
    spec = Spec.model_validate({"model": "net_1", "preset": "int8"})
    with pytest.raises(ValueError, match="resolve it first"):
        checkpoint_key(NETWORK, None, spec, 0)
