"""The quantize step of `"method": "auto"`: for each region of a network what a runtime is fast at there.

- Convolutions, what lies between them, and the inputs of linear layers are `static`: ranges from calibration data.
- LSTMs are `dynamic`, they range their inputs at run time; so are linear layers where there is no data.
- Every other matrix or kernel is `stored` in 8 bits and computed with in floating point.
"""

from __future__ import annotations

import copy
import glob
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from torch import fx

from models.errors import Code, Failure
from models.spec import AutoStep, QuantizeStep, StoredStep
from models.statuses import Phase
from worker.engine.quantize.dynamic.step import make_dynamic, why_not_dynamic
from worker.engine.quantize.fold import fold
from worker.engine.quantize.placement import place, weighted_layers
from worker.engine.quantize.step import run as make_static
from worker.engine.quantize.stored.step import store_weights
from worker.engine.run import Run
from worker.engine.subject import Subject

Form = Literal["static", "dynamic", "stored", "float"]


def run(subject: Subject, step: AutoStep, run: Run) -> dict[str, Any]:
    """Quantize `subject` in place; details for the report: the form of each layer, why it computes in floating point
    where it does, and with data the SQNR in dB.

    Raises `Failure`: DATASET_BAD when values are not finite on the data, UNSUPPORTED_OP when the network cannot be
    folded or nothing in it can be 8-bit.
    """
    skip = [choice.match for choice in step.layers]
    exact = fold(subject.graph.to("cpu"), subject.example_inputs())
    forms, reasons = choose_forms(exact, skip, calibrated=run.data is not None)
    if set(forms.values()) <= {"float"}:
        shown = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:5])
        raise Failure(Code.UNSUPPORTED_OP, f"no layer can be made 8-bit ({shown or 'none has a weight'})")
    by_form: dict[Form, list[str]] = {form: [] for form in get_args(Form)}
    for name, form in forms.items():
        by_form[form].append(name)
    if by_form["static"]:
        skipped = [{"match": glob.escape(name), "skip": True} for name in forms if forms[name] != "static"]
        fields = {"step": "quantize", "calibration_samples": step.calibration_samples, "layers": skipped}
        fields |= {"reduce_range": step.reduce_range}
        make_static(subject, QuantizeStep.model_validate(fields), run)
    else:
        subject.graph = copy.deepcopy(exact)
    run.phase(Phase.QUANTIZING)
    noise: dict[str, float] = dict(subject.quantization.sqnr_db) if subject.quantization is not None else {}
    if by_form["dynamic"]:
        noise = dict(make_dynamic(subject, by_form["dynamic"], reasons, exact, run).sqnr_db)
    if by_form["stored"]:
        elsewhere = {name: reasons.get(name, "computes in integers") for name in forms if forms[name] != "stored"}
        store_weights(subject, StoredStep(step="quantize"), elsewhere, exact, run)
        noise |= subject.stored_sqnr_db
    return {
        "scheme": step.scheme,
        "method": step.method,
        "forms": forms,
        "kept_float": reasons,
        "int8_layers": len(by_form["static"]) + len(by_form["dynamic"]),
        "stored_weights": len(subject.stored),
        "lowest_sqnr_db": min(noise.values(), default=None),
        "sqnr_db": noise,
    }


def choose_forms(
    graph: fx.GraphModule, skip: Sequence[str], *, calibrated: bool
) -> tuple[dict[str, Form], dict[str, str]]:
    """For each layer of the folded `graph` that has a weight its form, and of each that computes in floating point why.
    `calibrated`: there is data to find ranges with."""
    static = set(place(graph, skip).layers) if calibrated else set()
    why_not = why_not_dynamic(graph, skip)
    forms: dict[str, Form] = {}
    for name in weighted_layers(graph):
        if any(fnmatchcase(name, pattern) for pattern in skip):
            forms[name] = "float"
        elif name in static:
            forms[name] = "static"
        else:
            forms[name] = "stored" if name in why_not else "dynamic"
    reasons = {name: why_not[name] for name, form in forms.items() if form in ("stored", "float")}
    return forms, {
        name: reason if forms[name] == "float" else f"stored in 8 bits, computed in floating point: {reason}"
        for name, reason in reasons.items()
    }
