"""What a machine cannot give is refused before any work, with a pointer into the spec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.errors import Code, Failure
from models.events import EngineEvent
from models.messages import CompressRequest, InputFile, NetworkFile
from models.spec import Spec
from models.spec_train import team_size
from tests.engine.train.test_processes import Plain
from tests.engine.train.test_step import patterns
from tests.networks import export_pt2
from worker.engine.machine_rules import check_machine
from worker.engine.measure.machine import signed_products_saturate, usable_cpus
from worker.engine.pipeline import compress
from worker.engine.run import Run

PRUNE = {"step": "prune", "amount": {"channels": 0.5}}


def asked(*steps: dict[str, Any]) -> Run:
    data = {"dataset": "dat_test"}
    spec = Spec.model_validate({"model": "net_test", "data": data, "steps": steps, "export": ["onnx"]})
    return Run(spec, Path(), lambda event: None, torch.device("cpu"))


def many(processes: int | str) -> dict[str, Any]:
    return {"speed": {"processes": processes}}


@pytest.mark.parametrize(
    ("step", "where", "talks", "words"),
    [
        ({"step": "finetune", **many(2)}, "/steps/1/speed/processes", False, "ALLOW_SHARED_NETWORK=true"),
        ({"step": "finetune", **many(64)}, "/steps/1/speed/processes", True, f"has {usable_cpus()} CPUs"),
        ({"step": "finetune", "speed": {"loaders": 64}}, "/steps/1/speed/loaders", True, f"has {usable_cpus()} CPUs"),
        ({**PRUNE, "schedule": {"rounds": 2, **many(64)}}, "/steps/1/schedule/speed/processes", True, "ask for fewer"),
    ],
)
@pytest.mark.skipif(usable_cpus() >= 64, reason="has CPUs for as many processes as a spec can ask for")
def test_processes_and_loaders_that_cannot_be_had_are_refused(
    step: dict[str, Any], where: str, talks: bool, words: str
) -> None:
    with pytest.raises(Failure, match=words) as caught:
        check_machine(asked(PRUNE, step), talks=talks)
    assert (caught.value.code, caught.value.where) == (Code.UNSUPPORTED_HERE, where)


@pytest.mark.parametrize("method", ["ptq", "qat", "auto"])
def test_the_eighth_bit_of_weights_is_refused_where_its_onnx_file_could_not_be_verified(method: str) -> None:
    run = asked(PRUNE, {"step": "quantize", "method": method, "reduce_range": False})
    if not signed_products_saturate():
        check_machine(run, talks=True)
        return
    with pytest.raises(Failure, match="without VNNI") as caught:
        check_machine(run, talks=True)
    assert (caught.value.code, caught.value.where) == (Code.UNSUPPORTED_HERE, "/steps/1/reduce_range")


def test_what_every_machine_has_is_let_through_without_a_word() -> None:
    run = asked(PRUNE, {"step": "finetune", **many("auto")}, {"step": "quantize"})
    check_machine(run, talks=False)
    assert run.warnings == []


def test_every_training_may_be_divided_among_devices() -> None:
    few_bits = asked({"step": "quantize", "scheme": "ternary", "epochs": 1, **many("auto")}).spec.steps or []
    assert team_size(few_bits, 4) == 4
    steps = (
        asked({**PRUNE, "schedule": {"rounds": 2, **many("auto")}}, {"step": "finetune", **many(3)}).spec.steps or []
    )
    assert [team_size(steps, devices) for devices in (1, 4)] == [3, 4]


def test_a_job_is_refused_before_its_first_step(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **patterns())  # type: ignore[arg-type]
    steps = [{"step": "finetune"}, {"step": "finetune", **many(2)}]
    request = CompressRequest(
        network=NetworkFile(path=export_pt2(Plain(), (torch.randn(2, 1, 8, 8),), tmp_path / "network.pt2")),
        dataset=InputFile(path=tmp_path / "data.npz"),
        spec=Spec.model_validate({"model": "net_test", "data": {"dataset": "dat_test"}, "steps": steps}),
        folder=tmp_path / "job",
        talks=False,
    )
    events: list[EngineEvent] = []
    with pytest.raises(Failure) as caught:
        compress(request, events.append)
    assert (caught.value.code, caught.value.where) == (Code.UNSUPPORTED_HERE, "/steps/1/speed/processes")
    assert [event.phase for event in events if event.type == "phase"] == ["inspecting"]
