"""`python -m worker.engine job.json` without any service around it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from models.report import Report
from tests.e2e.jobs import run_engine, write_data, write_network
from tests.engine.export.test_nothing_of_the_machine import assert_nothing_inside
from worker.engine.data.splits import make_splits

CHAIN: list[dict[str, Any]] = [
    {"step": "prune", "amount": {"macs": 0.5}, "round_to": 2},
    {"step": "finetune", "epochs": 2},
    {"step": "quantize", "calibration_samples": 64},
]

pytestmark = pytest.mark.slow


def request(folder: Path, name: str, steps: list[dict[str, Any]], **spec: Any) -> dict[str, Any]:
    return {
        "network": {"path": str(write_network(name, folder))},
        "dataset": {"path": str(write_data(name, folder))},
        "folder": str(folder / "job"),
        "spec": {"model": "net", "dataset": "dat", "steps": steps, **spec},
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]], dict[str, Any]]:
    folder = tmp_path_factory.mktemp("whole")
    asked = request(folder, "resnet18", CHAIN)
    status, events, log = run_engine(asked, folder)
    assert status == 0, log
    return folder, events, asked


def test_a_job_says_what_it_does_and_leaves_its_files(finished: tuple[Path, list[dict[str, Any]], Any]) -> None:
    folder, events, _ = finished
    percents = [event["percent"] for event in events if event["type"] == "progress"]
    assert percents == sorted(percents)
    assert percents[-1] == 100.0
    assert [event["report"]["step"] for event in events if event["type"] == "step"] == ["prune", "finetune", "quantize"]
    assert events[-1] == {"type": "finished", "report": "artifacts/report.json"}
    announced = {event["name"] for event in events if event["type"] == "artifact"}
    assert announced == {path.name for path in (folder / "job/artifacts").iterdir()}
    assert announced == {"model.onnx", "model.pt2", "report.json", "report.html", "README.md", "spec.json"}
    for path in (folder / "job/artifacts").iterdir():
        assert_nothing_inside(path, folder)


def test_the_report_is_about_the_files_that_are_delivered(finished: tuple[Path, list[dict[str, Any]], Any]) -> None:
    folder, _, _ = finished
    artifacts = folder / "job/artifacts"
    report = Report.model_validate_json((artifacts / "report.json").read_bytes())
    for pair in report.files:
        path = artifacts / f"model.{pair.format}"
        assert pair.compressed.file == path.name
        assert pair.compressed.file_size_bytes == path.stat().st_size
        assert pair.original.latency_ms is not None
        assert pair.compressed.latency_ms is not None
        assert pair.original.latency_ms.runtime == pair.compressed.latency_ms.runtime
    assert report.compressed is not None
    assert report.compressed.macs == pytest.approx(report.original.macs * 0.5, rel=0.06)
    assert report.mask_check is not None
    assert report.mask_check <= 1e-5
    assert all(row.reloaded for row in report.verification)
    assert report.split_made_here
    assert {row.bits for row in report.layers} == {8}
    stored = json.loads((artifacts / "spec.json").read_bytes())
    assert stored["steps"][1]["loss"] == "both"


def test_stock_onnxruntime_gives_the_accuracy_of_the_report(finished: tuple[Path, list[dict[str, Any]], Any]) -> None:
    folder, _, _ = finished
    report = Report.model_validate_json((folder / "job/artifacts/report.json").read_bytes())
    data = np.load(folder / "resnet18.npz")
    session = onnxruntime.InferenceSession(folder / "job/artifacts/model.onnx")
    (name,) = [value.name for value in session.get_inputs()]
    (scores,) = session.run(None, {name: data[name]})
    rows = make_splits(len(data["y"]), None, data["y"], report.provenance.seed).test
    assert report.compressed is not None
    assert report.compressed.metrics is not None
    measured = report.compressed.metrics["accuracy"]
    assert (measured.split, measured.n) == ("test", len(rows))
    assert measured.value == pytest.approx((scores.argmax(1) == data["y"])[rows].mean())
    loaded = torch.export.load(folder / "job/artifacts/model.pt2").module()(torch.from_numpy(data[name][:16]))
    assert (loaded.argmax(1).numpy() == scores[:16].argmax(1)).mean() >= 0.9


def test_a_resumed_job_ends_with_the_weights_of_an_uninterrupted_one(
    finished: tuple[Path, list[dict[str, Any]], dict[str, Any]], tmp_path: Path
) -> None:
    folder, events, asked = finished
    keys = [event["key"] for event in events if event["type"] == "checkpoint"]
    first = folder / "job/checkpoints" / f"{keys[0]}.safetensors"
    asked = asked | {"checkpoints": [str(first)], "folder": str(tmp_path / "job")}
    asked["spec"] = asked["spec"] | {"export": ["onnx"]}
    status, again, log = run_engine(asked, tmp_path)
    assert status == 0, log
    assert [event["report"]["resumed"] for event in again if event["type"] == "step"] == [True, False, False]
    assert [event["key"] for event in again if event["type"] == "checkpoint"] == keys[1:]
    whole = load_file(folder / "job/checkpoints" / f"{keys[2]}.safetensors")
    resumed = load_file(tmp_path / "job/checkpoints" / f"{keys[2]}.safetensors")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_resumed_job_says_what_its_finished_steps_warned_of(tmp_path: Path) -> None:
    asked = request(tmp_path, "gru", [{"step": "prune", "amount": {"macs": 0.97}}], export=["onnx"])
    del asked["dataset"], asked["spec"]["dataset"]
    for folder in (tmp_path / "job", tmp_path / "again"):
        checkpoints = [str(path) for path in (tmp_path / "job").glob("checkpoints/*")]
        status, events, log = run_engine(asked | {"folder": str(folder), "checkpoints": checkpoints}, tmp_path)
        assert status == 0, log
        assert "amount_not_reached" in [event["notice"]["code"] for event in events if event["type"] == "warning"]
        report = Report.model_validate_json((folder / "artifacts/report.json").read_bytes())
        assert [notice.code for notice in report.steps[0].warnings] == ["amount_not_reached"]
        assert report.steps[0].warnings[0] in report.warnings
    assert report.steps[0].resumed


def test_an_engine_told_to_stop_while_it_trains_keeps_its_state_and_another_ends_with_the_same_bytes(
    finished: tuple[Path, list[dict[str, Any]], dict[str, Any]], tmp_path: Path
) -> None:
    folder, _, asked = finished
    asked = asked | {"folder": str(tmp_path / "job")}
    (tmp_path / "request.json").write_text(json.dumps(asked))
    command = [sys.executable, "-P", "-m", "worker.engine", str(tmp_path / "request.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as engine:
        assert engine.stdout is not None
        events = []
        for line in engine.stdout:
            events.append(json.loads(line))
            if events[-1]["type"] == "progress" and events[-1]["epoch"] == 1:
                engine.send_signal(signal.SIGTERM)
                break
        events += [json.loads(line) for line in engine.stdout]
    assert engine.returncode == 128 + signal.SIGTERM
    assert (events[-1]["type"], events[-1]["step_index"], events[-1]["epoch"]) == ("checkpoint", 1, 1)

    state = tmp_path / "job" / events[-1]["path"]
    status, events, log = run_engine(asked | {"checkpoints": [str(state)], "folder": str(tmp_path / "on")}, tmp_path)
    assert status == 0, log
    assert [event["report"]["resumed"] for event in events if event["type"] == "step"] == [True, True, False]
    for name in ("model.onnx", "model.pt2", "spec.json"):
        assert (tmp_path / "on/artifacts" / name).read_bytes() == (folder / "job/artifacts" / name).read_bytes(), name


def test_when_the_time_is_up_the_best_so_far_is_delivered_and_the_report_says_so(tmp_path: Path) -> None:
    steps = [CHAIN[0], {"step": "finetune", "epochs": 1000}, CHAIN[2]]
    limits = {"timeout_s": 1, "on_timeout": "best_so_far"}
    asked = request(tmp_path, "resnet18", steps, export=["onnx"], limits=limits)
    status, events, log = run_engine(asked, tmp_path)
    assert status == 0, log
    report = Report.model_validate_json((tmp_path / "job/artifacts/report.json").read_bytes())
    assert report.cut_short is not None
    assert report.cut_short.startswith("The 1 seconds of `limits.timeout_s` were up: ")
    assert "quantize left out" in report.cut_short
    assert "cut_short" in [notice.code for notice in report.warnings]
    assert report.compressed is not None
    assert report.compressed.macs < 0.6 * report.original.macs
    assert {row.bits for row in report.layers} == {32}
    ends = [event["step_index"] for event in events if event["type"] == "checkpoint" and event["epoch"] is None]
    assert ends == [0], "a step that was cut short is no state that another job may take for its end"


@pytest.mark.parametrize("on_miss", ["report", "fail"])
def test_without_labels_what_is_required_is_agreement(on_miss: str, tmp_path: Path) -> None:
    prune = {"step": "prune", "amount": {"macs": 0.5}, "round_to": 1, "criterion": "random"}
    require = {"max_metric_drop": 0.0, "on_miss": on_miss}
    asked = request(tmp_path, "gru", [prune], export=["onnx"], require=require)
    asked["dataset"]["path"] = str(write_data("gru", tmp_path, labels=False))
    status, events, log = run_engine(asked, tmp_path)
    if on_miss == "fail":
        assert status == 1
        assert events[-1]["error"]["code"] == "requirement_missed"
        return
    assert status == 0, log
    report = Report.model_validate_json((tmp_path / "job/artifacts/report.json").read_bytes())
    assert report.requirement_missed is not None
    assert report.requirement_missed.startswith("agreement on the validation data got worse by ")


def test_agreement_may_decide_although_there_are_labels(tmp_path: Path) -> None:
    asked = request(tmp_path, "gru", [{"step": "finetune", "epochs": 1}], export=["onnx"])
    asked["spec"] |= {"data": {"dataset": "dat", "metric": "agreement"}, "require": {"max_metric_drop": 0.5}}
    del asked["spec"]["dataset"]
    status, _, log = run_engine(asked, tmp_path)
    assert status == 0, log
    report = Report.model_validate_json((tmp_path / "job/artifacts/report.json").read_bytes())
    assert report.steps[0].details["metric"] == "agreement"
    assert report.requirement_missed is None


def test_a_damaged_checkpoint_costs_its_step_not_the_job(
    finished: tuple[Path, list[dict[str, Any]], dict[str, Any]], tmp_path: Path
) -> None:
    folder, events, asked = finished
    keys = [event["key"] for event in events if event["type"] == "checkpoint"]
    whole = (folder / "job/checkpoints" / f"{keys[0]}.safetensors").read_bytes()
    good, damaged = tmp_path / f"{keys[0]}.safetensors", tmp_path / f"{keys[1]}.safetensors"
    good.write_bytes(whole)
    damaged.write_bytes(whole[: len(whole) // 2])
    again = asked | {"checkpoints": [str(good), str(damaged)], "folder": str(tmp_path / "job")}
    again["spec"] = asked["spec"] | {"export": ["onnx"]}
    status, said, log = run_engine(again, tmp_path)
    assert status == 0, log
    assert [event["notice"]["code"] for event in said if event["type"] == "warning"].count("checkpoint_not_used") == 1
    assert [event["report"]["resumed"] for event in said if event["type"] == "step"] == [True, False, False]


@pytest.mark.parametrize("name", ["mobilenet_v3", "vit", "gru"])
def test_other_networks_are_pruned_recovered_and_quantized(name: str, tmp_path: Path) -> None:
    steps = [CHAIN[0] | {"amount": {"parameters": 0.4}}, {"step": "finetune", "epochs": 1}, CHAIN[2]]
    status, _, log = run_engine(request(tmp_path, name, steps, export=["onnx"]), tmp_path)
    assert status == 0, log
    report = Report.model_validate_json((tmp_path / "job/artifacts/report.json").read_bytes())
    assert report.compressed is not None
    assert report.compressed.parameters < 0.7 * report.original.parameters


def test_pruning_needs_no_data(tmp_path: Path) -> None:
    asked = request(tmp_path, "densenet", [{"step": "prune", "amount": {"channels": 0.5}, "round_to": 1}])
    del asked["dataset"], asked["spec"]["dataset"]
    asked["spec"]["export"] = ["pt2"]
    status, _, log = run_engine(asked, tmp_path)
    assert status == 0, log
    report = Report.model_validate_json((tmp_path / "job/artifacts/report.json").read_bytes())
    assert report.compressed is not None
    assert report.compressed.metrics is None
    assert report.compressed.reasons["metrics"] == "no_data"


def test_a_failure_is_the_last_line_with_a_code_a_place_and_a_hint(tmp_path: Path) -> None:
    asked = request(
        tmp_path, "vgg", [{"step": "prune", "amount": {"macs": 0.5}, "layers": [{"match": "nowhere*", "skip": True}]}]
    )
    status, events, _ = run_engine(asked, tmp_path)
    assert status == 1
    assert events[-1]["type"] == "failed"
    assert events[-1]["error"]["phase"] == "inspecting"
    assert "nowhere*" in events[-1]["error"]["message"]
    assert events[-1]["error"]["hint"]


def test_a_request_that_is_not_one_is_refused_before_anything_runs(tmp_path: Path) -> None:
    status, events, log = run_engine({"network": {"path": "x"}, "surprise": 1}, tmp_path)
    assert status == 2
    assert not events
    assert "surprise" in log
