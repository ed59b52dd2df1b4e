"""Sparsifying in rounds: how many weights each takes, the training between them, and going on from every place."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.spec import SparsifyStep
from tests.engine.subjects import dataset_for, run_in, subject_of
from worker.engine.checkpoint import restore_checkpoint, save_checkpoint
from worker.engine.interrupts import Interrupts
from worker.engine.run import Run
from worker.engine.sparsify.step import run as sparsify
from worker.engine.subject import StepState, Subject
from worker.engine.train.step import run as finetune

CURVES = {
    "linear": [0.2, 0.4, 0.6, 0.8],
    "cubic": [0.8 - 0.8 * (1 - part) ** 3 for part in (0.25, 0.5, 0.75, 1.0)],
    "exponential": [1 - 0.2**part for part in (0.25, 0.5, 0.75, 1.0)],
}


def step(rounds: int = 4, curve: str = "cubic", **fields: Any) -> SparsifyStep:
    schedule = {"rounds": rounds, "curve": curve, "learning_rate": 1e-3, "batch_size": 32}
    return SparsifyStep.model_validate({"step": "sparsify", "amount": 0.8, "schedule": schedule, **fields})


class _EveryBatches(Interrupts):
    """A state is due after every so many batches; with `ends`, the time is up after so many."""

    def __init__(self, every: int, ends: int | None = None) -> None:
        super().__init__(float("inf"), float("inf"))
        self.batches, self.every, self.ends = 0, every, ends

    def state_due(self) -> bool:
        self.batches += 1
        return self.batches % self.every == 0

    def out_of_time(self) -> bool:
        return self.ends is not None and self.batches >= self.ends


def begun(subject: Subject, folder: Path) -> Run:
    run = run_in(folder, data=dataset_for(subject, folder, 100))
    run.train = finetune
    return run


@pytest.mark.parametrize("curve", CURVES)
def test_each_round_takes_what_the_curve_says(curve: str, tmp_path: Path) -> None:
    subject = subject_of("gru")
    run = begun(subject, tmp_path)
    masks: list[dict[str, Tensor]] = []
    run.keep_state = lambda state: masks.append(dict(subject.masks))
    details = sparsify(subject, step(curve=curve), run)
    assert [row["reached"] for row in details["rounds"]] == [pytest.approx(part, abs=1e-3) for part in CURVES[curve]]
    assert [row["training"] is None for row in details["rounds"]] == [False, False, False, True]
    assert details["reached"] == pytest.approx(0.8, abs=1e-3)
    for row in details["rounds"]:
        assert row["metric"]["name"] == "agreement"
        assert (row["metric"]["after_training"] is None) == (row["training"] is None)
    for first, second in itertools.pairwise(masks):
        assert all(not bool((second[name] & ~mask).any()) for name, mask in first.items())
    assert [record.step for record in subject.records].count("sparsify") == 1, "the last masks include all"
    for name, mask in subject.masks.items():
        assert torch.equal(subject.graph.get_parameter(name) != 0, mask)


def test_layers_with_their_own_amount_follow_the_curve_too(tmp_path: Path) -> None:
    subject = subject_of("gru")
    asked = step(rounds=2, curve="linear", layers=[{"match": "fc", "amount": 0.5}])
    run = begun(subject, tmp_path)
    masks: list[Tensor] = []
    run.keep_state = lambda state: masks.append(subject.masks["fc.weight"])
    details = sparsify(subject, asked, run)
    first = masks[0]
    assert int(first.sum()) == round(0.75 * first.numel())
    assert next(row for row in details["layers"] if row["name"] == "fc")["zeros"] == first.numel() // 2


def test_it_goes_on_from_every_state_it_kept_to_the_same_bytes(tmp_path: Path) -> None:
    whole = subject_of("gru")
    kept: list[Path] = []
    run = begun(whole, tmp_path)

    def keep(state: StepState) -> None:
        kept.append(tmp_path / f"{len(kept)}.safetensors")
        save_checkpoint(whole, [], kept[-1], state)

    run.keep_state, run.interrupts = keep, _EveryBatches(2)
    expected = sparsify(whole, step(rounds=3), run)
    places = set()
    for path in kept:
        resumed = subject_of("gru")
        again = begun(resumed, tmp_path)
        _, again.state = restore_checkpoint(resumed, path)
        assert again.state is not None
        places.add((len(again.state.data["sparsity"]), "log" in again.state.data))
        assert sparsify(resumed, step(rounds=3), again) == expected
        assert [record.step for record in resumed.records] == [record.step for record in whole.records]
        for name, value in whole.graph.state_dict().items():
            assert torch.equal(resumed.graph.state_dict()[name], value), (path.name, name)
        assert all(torch.equal(resumed.masks[name], mask) for name, mask in whole.masks.items())
    assert places == {(1, False), (1, True), (2, False), (2, True), (3, False)}, "after, and inside, every round"


def test_when_the_time_is_up_no_other_round_begins(tmp_path: Path) -> None:
    subject = subject_of("gru")
    run = begun(subject, tmp_path)
    run.interrupts = _EveryBatches(1000, ends=4)
    details = sparsify(subject, step(), run)
    assert details["cut_short"]
    assert len(details["rounds"]) == 2
    assert details["reached"] < 0.8
    assert run.warnings == []
