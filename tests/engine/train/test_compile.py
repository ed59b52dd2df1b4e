"""Training through compiled kernels: what it is without, up to rounding; where it is not had, and where it pays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from models.errors import Code, Failure
from models.spec import FinetuneStep
from tests.engine.subjects import lifted
from tests.engine.train.test_loop import PLAN, clusters, cross_entropy
from tests.engine.train.test_options import kept, stored
from tests.engine.train.test_step import patterns, small, started
from worker.engine import compiler
from worker.engine.machine_rules import check_machine
from worker.engine.subject import StepState
from worker.engine.train import measure_compile
from worker.engine.train.compiled import Compiled
from worker.engine.train.measure_compile import choose_compile
from worker.engine.train.state import copy_weights, load_weights, weights_of
from worker.engine.train.step import run

MASKS = {"head.weight": torch.arange(32).reshape(4, 8) % 3 > 0}
CHOICES: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 32,
    "optimizer": "sgd",
    "average": 0.9,
    "regularize": {"penalty": "l1"},
    "dropout": 0.2,
    "augment": {"flip": True},
    "keep": "last",
}


@pytest.fixture
def a_compiler() -> None:
    if (lacking := compiler.why_not_here("cpu")) is not None:
        pytest.skip(lacking)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("a_compiler")
def test_compiled_steps_are_those_of_the_network_and_go_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four batches that are compiled for and one that is not, an epoch."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kernels"))
    usual = FinetuneStep.model_validate({"step": "finetune"} | CHOICES)
    asked = FinetuneStep.model_validate({"step": "finetune", "speed": {"compile": True}} | CHOICES)
    arrays = patterns(171)
    states = list[StepState]()
    found = []
    for step in (usual, asked):
        subject = small(tmp_path)
        subject.masks = MASKS
        code = subject.graph.code
        counters.clear()
        details = run(subject, step, kept(started(subject, tmp_path, arrays, step), states))
        assert subject.graph.code == code
        assert not subject.graph.get_parameter("head.weight")[~MASKS["head.weight"]].any()
        found.append((details, copy_weights(subject.graph), counters["stats"]["unique_graphs"]))
    (plain, plain_weights, none), (compiled, weights, one) = found
    assert (none, one) == (0, 1), "compiled once, for whole batches"
    assert (plain["speed"]["compiled"], compiled["speed"]["compiled"]) == (False, True)
    for own, other in zip(compiled["history"], plain["history"], strict=True):
        assert own["val_loss"] == pytest.approx(other["val_loss"], rel=1e-4)
    for name, value in weights.items():
        torch.testing.assert_close(value, plain_weights[name], rtol=1e-3, atol=1e-5)

    subject, state = small(tmp_path), states[10 + 6]
    subject.masks = MASKS
    load_weights(subject.graph, {name: state.tensors[f"network.{name}"] for name in weights})
    again = started(subject, tmp_path, arrays, asked)
    again.state = stored(state, tmp_path)
    assert run(subject, asked, again) == compiled
    assert all(torch.equal(value, weights[name]) for name, value in weights_of(subject.graph).items())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("a_compiler")
def test_compiling_is_measured_against_the_steps_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kernels"))
    data, module = clusters(tmp_path), nn.Linear(6, 4)
    before = copy_weights(module)
    with Compiled(module, 16) as forward:
        loss_of = cross_entropy(forward)  # type: ignore[arg-type]
        few = choose_compile("auto", forward, module, data.train, loss_of, PLAN, {})
        assert few.as_details() == {
            "compiled": False,
            "compile_measured": {"failed": "the steps take less than 600 s as they are"},
        }
        monkeypatch.setattr(measure_compile, "SHORTEST_SECONDS", 0.0)
        plan = replace(PLAN, epochs=2)
        some = choose_compile("auto", forward, module, data.train, loss_of, plan, {})
        assert all(torch.equal(before[name], value) for name, value in weights_of(module).items())
        details = some.as_details()
        assert (some.compiled, forward.is_on, details["compile_gain"]) == (False, False, 1.0), "it took seconds"
        assert details["compile_measured"]["compile_seconds"] > 0.5
        assert min(details["compile_measured"]["samples_per_second"].values()) > 0


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(compiler, "COMPILER", "no-such-compiler")
    compiler.why_not_here.cache_clear()
    yield
    compiler.why_not_here.cache_clear()


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_auto_does_not_try_and_says_so_and_more_is_refused(tmp_path: Path) -> None:
    step = FinetuneStep.model_validate({"step": "finetune", "epochs": 1, "speed": {"compile": "auto"}})
    subject = small(tmp_path)
    begun = started(subject, tmp_path, patterns(), step)
    check_machine(begun, talks=True)
    failed = "`no-such-compiler` cannot be started here (No such file or directory)"
    assert run(subject, step, begun)["speed"]["compile_measured"] == {"failed": failed}
    step = FinetuneStep.model_validate({"step": "finetune", "epochs": 1, "speed": {"compile": True}})
    begun = started(subject, tmp_path, patterns(), step)
    with pytest.raises(Failure, match=r"apt-get install g\+\+") as caught:
        check_machine(begun, talks=True)
    assert (caught.value.code, caught.value.where) == (Code.UNSUPPORTED_HERE, "/steps/0/speed/compile")
    with pytest.raises(Failure, match="cannot be compiled, as") as caught:
        run(subject, step, begun)
    assert caught.value.code is Code.UNSUPPORTED_HERE


def test_a_network_that_reads_whole_numbers_is_not_compiled(tmp_path: Path) -> None:
    """A compiled look-up of one that is out of range would end the process; as it is, it is the data's failure."""
    subject = lifted(
        nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 3)), (torch.zeros(2, 5, dtype=torch.int64),), tmp_path
    )
    step = FinetuneStep.model_validate({"step": "finetune", "epochs": 1, "speed": {"compile": "auto"}})
    arrays = {"x": np.arange(60 * 5).reshape(60, 5) % 10, "split": np.repeat(["train", "val"], 30)}
    begun = started(subject, tmp_path, arrays, step)
    failed = run(subject, step, begun)["speed"]["compile_measured"]["failed"]
    assert failed.startswith("it reads whole numbers, and a compiled look-up of one that is out of range ends")
