"""What a spec asks for and this machine cannot give: refused before any work, not hours later where it is needed."""

from __future__ import annotations

import torch

from models.errors import Code, Failure
from models.spec import AutoStep, Int8Choices, Step
from models.spec_train import Training, team_size, trainings
from worker.engine.compiler import REMEDY, why_not_here
from worker.engine.measure.machine import instruction_set, signed_products_saturate, usable_cpus
from worker.engine.run import Run


def check_machine(run: Run, *, talks: bool) -> None:
    """Look at every step of `run.spec`; `talks`: processes of this engine may talk to one another.

    Raises Failure(UNSUPPORTED_HERE), `where` a pointer into the spec. Warns where `auto` gets fewer processes than it
    might.
    """
    steps = run.spec.steps or []
    for pointer, training in trainings(steps):
        if problem := _too_many_processes(training, run, talks):
            raise Failure(Code.UNSUPPORTED_HERE, problem, where=f"/steps{pointer}/speed/processes")
        loaders, cpus = training.speed.loaders, usable_cpus()
        if loaders != "auto" and loaders > cpus:
            problem = f"`speed.loaders` is {loaders}, and this worker has {cpus} CPUs: ask for fewer."
            raise Failure(Code.UNSUPPORTED_HERE, problem, where=f"/steps{pointer}/speed/loaders")
        if training.speed.compile is True and (lacking := why_not_here(run.device.type)):
            problem = f"`speed.compile` needs a compiler, and {lacking}; {REMEDY}."
            raise Failure(Code.UNSUPPORTED_HERE, problem, where=f"/steps{pointer}/speed/compile")
    for index, step in enumerate(steps):
        if problem := _overflowing_products(step, run):
            raise Failure(Code.UNSUPPORTED_HERE, problem, where=f"/steps/{index}/reduce_range")
    devices = torch.cuda.device_count() if run.device.type == "cuda" else 1
    if not talks and team_size(steps, devices) > 1:
        run.warn(
            "one_process",
            f'`"processes": "auto"` trains in one process, though there are {devices} devices: this worker cannot give '
            "engines a network of their own to talk over.",
        )


def _too_many_processes(training: Training, run: Run, talks: bool) -> str | None:
    asked = training.speed.processes
    most, places = (torch.cuda.device_count(), "CUDA devices") if run.device.type == "cuda" else (usable_cpus(), "CPUs")
    if asked == "auto" or asked == 1:
        return None
    if not talks:
        return (
            f"`speed.processes` is {asked}, and this worker cannot give engines a network of their own to talk over: "
            "ask for 1, or let it have network namespaces, or set MODELPRESS_ALLOW_SHARED_NETWORK=true."
        )
    if asked > most:
        return (
            f"`speed.processes` is {asked}, and this worker has {most} {places}, one for each process: ask for fewer."
        )
    return None


def _overflowing_products(step: Step, run: Run) -> str | None:
    """Where the ONNX file could not be shown to compute what it should."""
    if not isinstance(step, Int8Choices | AutoStep) or step.reduce_range or "onnx" not in (run.spec.export or []):
        return None
    if not signed_products_saturate():
        return None
    return (
        f"with `reduce_range: false` 8-bit products overflow on this worker's processor ({instruction_set()}, without "
        "VNNI), and the file could not be verified; leave it out, or export without `onnx`"
    )
