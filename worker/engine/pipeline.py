"""The order of things: read, look at the baseline, take each step, write the files, prove them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from safetensors import SafetensorError

from models.checkpoints import checkpoint_keys, in_order
from models.errors import Code, Failure
from models.events import EngineEvent, FinishedEvent, StepEvent
from models.messages import CompressRequest
from models.report import Measurement, StepReport
from models.rules import check, resolve
from models.sensitivity_rules import changes_nothing
from models.spec import (
    AutoStep,
    BinaryStep,
    CodebookStep,
    DynamicStep,
    FactorizeStep,
    FinetuneStep,
    FloatStep,
    Fp8Step,
    Int4Step,
    LowBitStep,
    PruneStep,
    QatStep,
    QuantizeStep,
    SensitivityStep,
    SparsifyStep,
    Step,
    StoredStep,
    TernaryStep,
)
from models.statuses import Phase
from worker.engine.assess import assess, deciding
from worker.engine.checkpoint import Checkpoints, restore_checkpoint
from worker.engine.crew import Crew
from worker.engine.data.dataset import open_dataset
from worker.engine.data.inspect import inspect_dataset
from worker.engine.deliver import EXPORTERS, REPORT, deliver, deliver_report
from worker.engine.factorize.step import run as factorize
from worker.engine.graph.describe import describe_network
from worker.engine.graph.lift import lift
from worker.engine.ingest.read import read_network
from worker.engine.interrupts import Interrupts
from worker.engine.lowbit.step import run as low_bit
from worker.engine.machine_rules import check_machine
from worker.engine.measure.metrics import at_chance
from worker.engine.prune.step import run as prune
from worker.engine.quantize.auto.step import run as quantize_auto
from worker.engine.quantize.dynamic.step import run as quantize_dynamic
from worker.engine.quantize.qat.step import run as quantize_aware
from worker.engine.quantize.step import run as quantize
from worker.engine.quantize.stored.step import run as quantize_stored
from worker.engine.run import Run
from worker.engine.sensitivity.step import run as sensitivity
from worker.engine.sparsify.step import run as sparsify
from worker.engine.subject import StepState, Subject
from worker.engine.timing import Stopwatch
from worker.engine.train.step import run as finetune

STEPS: dict[type, Callable[[Subject, Any, Run], dict[str, Any]]] = {
    PruneStep: prune,
    SparsifyStep: sparsify,
    FactorizeStep: factorize,
    FinetuneStep: finetune,
    QuantizeStep: quantize,
    QatStep: quantize_aware,
    AutoStep: quantize_auto,
    DynamicStep: quantize_dynamic,
    Int4Step: low_bit,
    TernaryStep: low_bit,
    BinaryStep: low_bit,
    CodebookStep: low_bit,
    StoredStep: quantize_stored,
    FloatStep: quantize_stored,
    Fp8Step: quantize_stored,
    SensitivityStep: sensitivity,
}
"""The code of each step of `models/spec.py`."""

_WEIGHTS = {"prune": 1.0, "sparsify": 1.0, "factorize": 1.0, "finetune": 12.0, "quantize": 2.0, "sensitivity": 12.0}
"""How long steps take relative to one another, for the progress bar."""

_STEPS_START, _STEPS_END = 5.0, 75.0


def compress(
    request: CompressRequest,
    emit: Callable[[EngineEvent], None],
    give_up: Callable[[Failure], None] | None = None,
) -> None:
    """Run a whole job. Raises `Failure`; everything worth keeping was emitted before. `give_up`: see `Crew`."""
    torch.set_num_threads(request.threads)
    folder = request.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    limits = request.spec.limits
    deliver_seconds = limits.timeout_s if limits.on_timeout == "best_so_far" else math.inf
    interrupts = Interrupts(request.checkpoint_seconds, deliver_seconds)
    run = Run(request.spec, folder, emit, _device(request.device), interrupts=interrupts)

    run.phase(Phase.INSPECTING)
    with run.timed("inspect"):
        subject = _read(request, run)
    check_machine(run, talks=request.talks)
    dataset_sha256 = request.dataset.digest() if request.dataset else None
    taught_by = {each: file.identity() for each, file in request.teachers.items()}
    keys = checkpoint_keys(request.network.identity(), dataset_sha256, run.spec, taught_by)

    run.phase(Phase.BASELINE)
    run.share(2.0, 3.0)
    with run.timed("baseline"):
        baseline = assess(subject, run)
    _warn_of_a_baseline_at_chance(run, baseline)

    subject, done, run.state = _resume(subject, run, request, keys)
    run.train, run.gather = finetune, Crew(request, give_up).gather
    with _stopwatch(subject, run, request) as run.latency:
        reports = _take_steps(subject, run, Checkpoints(subject, run, keys), done)
    if changes_nothing(run.spec.steps or []):
        deliver_report(run, request, baseline, reports)
    else:
        deliver(subject, run, request, baseline, reports)
    emit(FinishedEvent(report=REPORT))


def _read(request: CompressRequest, run: Run) -> Subject:
    """Read the network and the data, check the spec against them and fill its defaults in."""
    program = read_network(request.network.path, request.network.read)
    subject = lift(program)
    network = describe_network(subject, program.format, program.warnings)
    dataset = inspect_dataset(request.dataset.path) if request.dataset else None
    teachers = {each: lift(read_network(file.path, file.read)) for each, file in request.teachers.items()}
    described = {each: describe_network(teacher, "pt2") for each, teacher in teachers.items()}
    problems = check(request.spec, network, dataset, described)
    if problems:
        lines = "; ".join(f"{problem.pointer}: {problem.message}" for problem in problems)
        raise Failure(Code.INVALID_SPEC, lines, problems=tuple(problems))
    run.spec = resolve(request.spec, network, dataset)
    run.teachers = {each: teacher.original for each, teacher in teachers.items()}
    if request.dataset is not None and run.spec.data is not None:
        run.data = open_dataset(request.dataset.path, run.spec.data, subject.inputs, run.spec.seed)
    for notice in (*program.warnings, *(dataset.warnings if dataset else ())):
        run.warn(notice.code, notice.message)
    return subject


def _warn_of_a_baseline_at_chance(run: Run, baseline: Measurement) -> None:
    if run.data is None or (measured := deciding(baseline, run.data.metric)) is None:
        return
    if at_chance(run.data.metric, measured.value, run.data):
        run.warn(
            "check_preprocessing",
            f"The original scores {run.data.metric} {measured.value:.3f}, no better than chance: "
            "check `transform` (scale, mean, std) and the order of the classes.",
        )


def _resume(
    subject: Subject, run: Run, request: CompressRequest, keys: list[str]
) -> tuple[Subject, list[StepReport], StepState | None]:
    """Restore the furthest checkpoint handed over that can be read; their files are named by key. The steps it stands
    for come back, and the state inside the next one, where it is of that."""
    offered = {path.stem: path for path in request.checkpoints}
    for key in reversed(in_order(keys)):
        if key not in offered:
            continue
        try:
            return subject, *restore_checkpoint(subject, offered[key])
        except (Failure, SafetensorError, ValueError) as error:
            run.warn("checkpoint_not_used", f"A checkpoint cannot be read ({error}); its steps are done again.")
            subject = lift(read_network(request.network.path, request.network.read))
    return subject, [], None


def _take_steps(subject: Subject, run: Run, checkpoints: Checkpoints, done: list[StepReport]) -> list[StepReport]:
    """Every step not done yet, each measured and checkpointed as soon as it ends, and inside where it takes long. Once
    the time is up no other begins, and one that was cut short is no state to go on from."""
    steps = run.spec.steps or []
    width = (_STEPS_END - _STEPS_START) / sum(_weight(step) for step in steps)
    start, reports = _STEPS_START, list(done)
    for report in done:
        for notice in report.warnings:
            run.warn(notice.code, notice.message)
        run.emit(StepEvent(report=report))

    def keep_state(state: StepState) -> None:
        checkpoints.inside_step(reports, state)
        run.interrupts.state_kept()

    run.keep_state = keep_state
    for index, step in enumerate(steps):
        run.step_index = index
        run.share(start, width * _weight(step))
        start += width * _weight(step)
        if index < len(done):
            continue
        if reports and run.interrupts.out_of_time():
            _cut_short(run, f"{', '.join(step.step for step in steps[index:])} left out")
            break
        began, said = time.monotonic(), len(run.warnings)
        torch.manual_seed((run.spec.seed + index) % 2**63)
        details = STEPS[type(step)](subject, step, run)
        report = StepReport(
            index=index,
            step=step.step,
            seconds=round(time.monotonic() - began, 3),
            after=assess(subject, run),
            resumed=run.state is not None,
            details=details,
            warnings=run.warnings[said:],
        )
        run.state = None
        reports.append(report)
        run.emit(StepEvent(report=report))
        if details.get("cut_short"):
            rest = "".join(f", {later.step} left out" for later in steps[index + 1 :])
            _cut_short(run, f"{step.step} ended with {_how_far(step, details)}{rest}")
            break
        checkpoints.after_step(reports)
    run.step_index = None
    return reports


def _weight(step: Step) -> float:
    return _WEIGHTS["finetune" if isinstance(step, QatStep | LowBitStep) and step.epochs else step.step]


def _how_far(step: Step, details: dict[str, Any]) -> str:
    if isinstance(step, PruneStep | SparsifyStep) and step.schedule is not None:
        return f"round {len(details['rounds'])} of {step.schedule.rounds}"
    if isinstance(step, FinetuneStep):
        return f"epoch {details['epochs']} of {step.epochs}"
    if isinstance(step, QatStep | LowBitStep):
        return f"epoch {details['training']['epochs']} of {step.epochs}"
    return f"{len(details['groups'])} groups"


def _stopwatch(subject: Subject, run: Run, request: CompressRequest) -> AbstractContextManager[Stopwatch | None]:
    """In the format whose figures the report begins with."""
    if not run.spec.export:
        return nullcontext()
    form = run.spec.export[0]
    return Stopwatch(subject, run, request.threads, form, EXPORTERS[form])


def _cut_short(run: Run, what: str) -> None:
    run.cut_short = f"The {run.spec.limits.timeout_s} seconds of `limits.timeout_s` were up: {what}."
    run.warn("cut_short", run.cut_short)


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise Failure(Code.NO_SUCH_DEVICE, "this worker has no CUDA device")
    return torch.device(name)
