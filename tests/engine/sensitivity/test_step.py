"""The sensitivity step: every group on its own, the network left alone, and a report of nothing else."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from models.events import ProgressEvent
from models.report import Report
from models.spec import SensitivityStep
from tests.e2e.jobs import run_engine, write_data, write_network
from tests.engine.subjects import dataset_for, run_in, subject_of
from worker.engine.assess import assess
from worker.engine.graph.channels import analyse
from worker.engine.graph.cut import cut
from worker.engine.interrupts import Interrupts
from worker.engine.score.units import Scoring, unit_scores
from worker.engine.sensitivity.step import run
from worker.engine.subject import StepState, Subject


def try_out(subject: Subject, folder: Path, **settings: Any) -> dict[str, Any]:
    step = SensitivityStep.model_validate({"step": "sensitivity", **settings})
    return run(subject, step, run_in(folder, step, data=dataset_for(subject, folder)))


def test_each_number_is_that_of_the_network_without_those_channels(tmp_path: Path) -> None:
    subject = subject_of("vgg")
    before = {name: value.clone() for name, value in subject.graph.state_dict().items()}
    details = try_out(subject, tmp_path, amounts=[0.25, 0.5], criterion="l1")
    assert all(torch.equal(value, before[name]) for name, value in subject.graph.state_dict().items())
    assert details["unchanged"]["agreement_with_original"]["value"] == 1.0

    channels = analyse(copy.deepcopy(subject.graph), subject.example_inputs())
    assert [group["id"] for group in details["groups"]] == [group.id for group in channels.groups]
    place = len(channels.groups) - 1
    group, found = channels.groups[place], details["groups"][place]
    count = round(0.5 * len(group.units))
    scores = unit_scores(channels, group, Scoring("l1"), 0)
    cut(channels, [group.units[index] for index in scores.argsort(kind="stable")[:count]])
    by_hand = Subject(channels.graph, subject.original, subject.inputs, subject.outputs)
    step = SensitivityStep(step="sensitivity")
    measured = assess(by_hand, run_in(tmp_path, step, data=dataset_for(subject, tmp_path)))
    point = found["points"][1]
    assert (point["removed"], point["parameters"], point["macs"]) == (count, measured.parameters, measured.macs)
    assert measured.agreement_with_original is not None
    assert point["agreement_with_original"] == measured.agreement_with_original.model_dump(mode="json")


def test_a_group_keeps_one_channel_and_skipped_ones_are_left_out(tmp_path: Path) -> None:
    subject = subject_of("vgg")
    every = try_out(subject, tmp_path, amounts=[0.001, 0.002, 0.999])
    for group in every["groups"]:
        assert [point["removed"] for point in group["points"]] == sorted({1, group["units"] - 1})
    first = every["groups"][0]
    layers = [{"match": name, "skip": True} for name in first["layers"][:1]]
    fewer = try_out(subject, tmp_path, amounts=[0.5], layers=layers)
    assert first["id"] not in [group["id"] for group in fewer["groups"]]
    assert len(fewer["groups"]) < len(every["groups"])


def test_as_many_validation_samples_are_measured_as_asked_for(tmp_path: Path) -> None:
    details = try_out(subject_of("vgg"), tmp_path, amounts=[0.5], validation_samples=5)
    assert {group["points"][0]["agreement_with_original"]["n"] for group in details["groups"]} == {5}


def test_what_was_measured_before_a_stop_is_not_measured_again(tmp_path: Path) -> None:
    subject, step = subject_of("vgg"), SensitivityStep(step="sensitivity", amounts=[0.5])
    whole = run(subject, step, run_in(tmp_path, step, data=dataset_for(subject, tmp_path)))
    states = list[StepState]()
    stopped = run_in(tmp_path, step, data=dataset_for(subject, tmp_path))
    stopped.interrupts, stopped.keep_state = (
        Interrupts(checkpoint_seconds=0),
        lambda state: states.append(StepState(copy.deepcopy(state.data), state.tensors)),
    )
    run(subject, step, stopped)
    assert len(states) == len(whole["groups"])
    marked = states[1].data
    marked["groups"][0]["points"] = ["measured before"]
    resumed = run_in(tmp_path, step, data=dataset_for(subject, tmp_path))
    resumed.state = StepState(marked, {})
    details = run(subject, step, resumed)
    assert details["groups"][0]["points"] == ["measured before"]
    assert details["groups"][1:] == whole["groups"][1:]


def test_when_the_time_is_up_the_groups_so_far_are_reported(tmp_path: Path) -> None:
    subject, step = subject_of("vgg"), SensitivityStep(step="sensitivity", amounts=[0.5])
    ending = run_in(tmp_path, step, data=dataset_for(subject, tmp_path))
    ending.interrupts = Interrupts(deliver_seconds=0)
    details = run(subject, step, ending)
    assert details["cut_short"]
    assert details["groups"] == []


@pytest.mark.parametrize("alone", [True, False])
def test_a_job_gives_a_report_and_a_network_only_if_it_made_one(tmp_path: Path, alone: bool) -> None:
    steps: list[dict[str, Any]] = [{"step": "sensitivity", "amounts": [0.5], "validation_samples": 20}]
    if not alone:
        steps.append({"step": "prune", "amount": {"channels": 0.5}, "round_to": 2})
    asked = {
        "network": {"path": str(write_network("vgg", tmp_path))},
        "dataset": {"path": str(write_data("vgg", tmp_path))},
        "folder": str(tmp_path / "job"),
        "spec": {"model": "net", "dataset": "dat", "steps": steps} | ({} if alone else {"export": ["pt2"]}),
    }
    status, events, log = run_engine(asked, tmp_path)
    assert status == 0, log
    made = {path.name for path in (tmp_path / "job/artifacts").iterdir()}
    assert made == {"report.json", "report.html", "spec.json"} | (set() if alone else {"model.pt2", "README.md"})
    report = Report.model_validate_json((tmp_path / "job/artifacts/report.json").read_bytes())
    assert (report.compressed is None) is alone
    assert report.original.metrics is not None
    assert all("metrics" in point for group in report.steps[0].details["groups"] for point in group["points"])
    percents = [ProgressEvent.model_validate(event).percent for event in events if event["type"] == "progress"]
    assert percents[-1] == 100.0
