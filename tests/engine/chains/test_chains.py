"""Which step may follow which, by the table of the rules: what it allows runs to files that are the engine's, what it
does not is refused with the remedy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from models.errors import Code, Failure, FieldProblem
from models.events import CheckpointEvent, EngineEvent
from models.inspection import NetworkInspection
from models.messages import CompressRequest, InputFile, NetworkFile
from models.report import Report
from models.rules import FOLLOWS, check
from models.spec import ExportFormat, Spec
from tests.engine.chains.examples import EXAMPLES, Fields, chain, kind_of, kinds_of
from tests.engine.chains.networks import SHAPES, write
from worker.engine.checkpoint import restore_checkpoint
from worker.engine.data.inspect import inspect_dataset
from worker.engine.export.pt2 import export_pt2
from worker.engine.graph.describe import describe_network
from worker.engine.graph.lift import lift
from worker.engine.ingest.read import read_network
from worker.engine.pipeline import STEPS, compress

FULL = os.environ.get("MODELPRESS_SWEEPS") == "full"


def step_of(name: str) -> str:
    return str(EXAMPLES[name].fields["step"])


PAIRS = list(product(EXAMPLES, EXAMPLES))
FOLLOWING = [(first, second) for first, second in PAIRS if step_of(first) in FOLLOWS[step_of(second)].after]
LEGAL = [(first, second) for first, second in FOLLOWING if step_of(first) not in EXAMPLES[second].not_after]
ILLEGAL = [pair for pair in PAIRS if pair not in FOLLOWING]
CHANGING = [pair for pair in LEGAL if set(map(step_of, pair)) != {"sensitivity"}]

LONG: dict[str, tuple[str, Sequence[str], ExportFormat]] = {
    "learn sparse, prune, distill, ternary": (
        "convolutional",
        ("finetune sparse", "prune", "finetune", "sensitivity", "ternary"),
        "safetensors",
    ),
    "learn sparse, prune, distill, train in 8 bits": (
        "convolutional",
        ("finetune sparse", "prune", "finetune", "int8 qat"),
        "onnx",
    ),
    "prune, low rank, int8": ("convolutional", ("prune", "factorize", "finetune", "int8"), "onnx"),
    "prune, sparsify, codebook": ("attentive", ("prune", "sparsify", "codebook"), "safetensors"),
    "low rank, prune, dynamic": ("recurrent", ("factorize", "prune", "int8 dynamic"), "onnx"),
}
"""Network, examples and format."""

SAMPLE = ("prune, low rank, int8", "prune, sparsify, codebook")
"""Run in every test run; the others, and every pair by itself, in full sweeps only."""


def test_the_table_has_every_step_and_every_scheme() -> None:
    wanted = {(step, kind) for step in STEPS for kind in kinds_of(step)}
    assert {(example.step, kind_of(example)) for example in EXAMPLES.values()} == wanted


def test_the_long_chains_have_every_step() -> None:
    assert {step_of(name) for _, names, _ in LONG.values() for name in names} == {str(step) for step in FOLLOWS}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    return {name: write(name, tmp_path_factory.mktemp(name)) for name in SHAPES}


def problems(names: Sequence[str], paths: tuple[Path, Path]) -> list[FieldProblem]:
    spec = Spec.model_validate({"model": "net", "dataset": "dat", "steps": chain(*names)})
    return check(spec, _inspected(paths[0]), inspect_dataset(paths[1]))


_seen: dict[Path, NetworkInspection] = {}


def _inspected(path: Path) -> NetworkInspection:
    if path not in _seen:
        _seen[path] = describe_network(lift(read_network(path)), "pt2")
    return _seen[path]


@pytest.mark.parametrize("network", SHAPES)
def test_what_the_table_allows_passes_and_what_it_does_not_is_refused_with_the_remedy(
    network: str, files: dict[str, tuple[Path, Path]]
) -> None:
    for pair in LEGAL:
        assert problems(pair, files[network]) == [], pair
    for pair in set(FOLLOWING) - set(LEGAL):
        found = problems(pair, files[network])
        assert found or network == "recurrent", "whose two layers are the first and the last, which are not binary"
        assert all(each.pointer == "/steps/1" and ": use `" in each.message for each in found), "the remedy"
    assert ILLEGAL
    for first, second in ILLEGAL:
        found = problems((first, second), files[network])
        (problem,) = [each for each in found if "cannot come after" in each.message]
        assert problem.pointer == "/steps/1"
        assert f"`{step_of(second)}` cannot come after `{step_of(first)}` (step 0): " in problem.message
        assert "Put `" in problem.message.partition("(step 0): ")[2], "the remedy"
        between = problems((first, "prune", second), files[network])
        assert any("cannot come after" in each.message for each in between), "nor with others between them"


def test_an_engine_refuses_what_the_rules_refuse(files: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    with pytest.raises(Failure) as caught:
        run("convolutional", chain(*ILLEGAL[0]), files, tmp_path)
    assert caught.value.code == Code.INVALID_SPEC
    assert [problem.pointer for problem in caught.value.problems] == ["/steps/1"]


def run(
    network: str, steps: list[Fields], files: dict[str, tuple[Path, Path]], folder: Path, **spec: Any
) -> tuple[Report, list[EngineEvent]]:
    events: list[EngineEvent] = []
    path, data = files[network]
    request = CompressRequest(
        kind="compress",
        network=NetworkFile(path=path),
        dataset=InputFile(path=data),
        folder=folder / "job",
        spec=Spec.model_validate({"model": "net", "dataset": "dat", "steps": steps, **spec}),
        threads=1,
    )
    compress(request, events.append)
    return Report.model_validate_json((folder / "job/artifacts/report.json").read_bytes()), events


def holds(report: Report, events: list[EngineEvent], names: Sequence[str], network: Path, folder: Path) -> None:
    """Every step is there, the files are the engine's, and the last checkpoint is the state that they are of."""
    assert [step.step for step in report.steps] == [step_of(name) for name in names]
    formats = {pair.format for pair in report.files}
    assert formats
    assert {verified.artifact for verified in report.verification} == {f"model.{form}" for form in formats}
    assert all(verified.reloaded for verified in report.verification)
    assert report.compressed is not None
    assert report.compressed.agreement_with_original is not None
    last = [event for event in events if isinstance(event, CheckpointEvent)][-1]
    saved = load_file(folder / "job" / last.path)
    subject = lift(read_network(network))
    restore_checkpoint(subject, folder / "job" / last.path)
    for name, tensor in (*subject.graph.named_parameters(), *subject.graph.named_buffers()):
        assert torch.equal(tensor, saved[f"state.{name}"]), name
    if "pt2" in formats:
        again = folder / "again/model.pt2"
        again.parent.mkdir()
        export_pt2(subject.network(), subject, again)
        assert again.read_bytes() == (folder / "job/artifacts/model.pt2").read_bytes()


@pytest.mark.parametrize("chained", LONG if FULL else SAMPLE)
def test_long_chains_end_in_files_that_are_the_engines(
    chained: str, files: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    network, names, form = LONG[chained]
    export = ["onnx", "pt2", "safetensors"] if FULL else [form]
    report, events = run(network, chain(*names), files, tmp_path, export=export)
    holds(report, events, names, files[network][0], tmp_path)


@pytest.mark.skipif(not FULL, reason="every pair, on every network: MODELPRESS_SWEEPS=full")
@pytest.mark.parametrize("network", SHAPES)
@pytest.mark.parametrize("pair", CHANGING if FULL else CHANGING[:1], ids=", ".join)
def test_every_legal_pair_ends_in_files_that_are_the_engines(
    pair: tuple[str, str], network: str, files: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    report, events = run(network, chain(*pair), files, tmp_path, export=["onnx"])
    holds(report, events, pair, files[network][0], tmp_path)
