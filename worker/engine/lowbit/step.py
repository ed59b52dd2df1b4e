"""The quantize step for weights of few bits: integers in groups, ternary, binary or codebooks.

Each weight is stored in the way that loses least; with `epochs` the network is then trained with the weights as they
will be delivered. The graph's weights are left at exactly what the codes say.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from models.errors import Code, Failure
from models.lowbit_policy import EIGHT_BITS, LOW_BIT_KINDS, Coding, coding_of, ends, is_worth_it
from models.spec import FinetuneStep, LowBitStep, Training
from models.spec_types import Floor
from models.statuses import Phase
from worker.engine.graph.blocks import use_blocks
from worker.engine.graph.coded import Coded, holders
from worker.engine.lowbit.blocks import block_inputs
from worker.engine.lowbit.floor import Versions, take_more
from worker.engine.lowbit.learn import GridWeight, Source, learning
from worker.engine.lowbit.noise import output_sqnr_db, weight_sqnr_db
from worker.engine.lowbit.pupil import Learns, pupil_of
from worker.engine.run import Run
from worker.engine.subject import Record, StepState, Subject

_ENCODING = 0.3
"""Share of the step that is not training, for the progress bar."""
_FLOOR = "floor"
_TRAINED = "trained."
"""How the state inside this step names what training calls `network.`: a network other than the subject's."""


@dataclass(frozen=True)
class _Chosen:
    """A parameter to be stored so, and the layers that have it as their weight."""

    parameter: str
    layers: tuple[str, ...]
    coding: Coding


def run(subject: Subject, step: LowBitStep, run: Run) -> dict[str, Any]:
    """Quantize the weights of `subject` in place; details for the report.

    Raises `Failure`: UNSUPPORTED_OP when no weight can be stored in few bits, and what training raises.
    """
    run.phase(Phase.QUANTIZING)
    chosen, kept = choose(subject.graph, step)
    if not chosen:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(kept.items())[:5])
        raise Failure(Code.UNSUPPORTED_OP, f"no weight can be stored in few bits ({reasons or 'there is none'})")
    subject.graph.to("cpu")
    exact = copy.deepcopy(subject.graph)
    network = copy.deepcopy(subject.graph) if step.epochs else subject.graph
    sources: dict[str, Source] = {}
    with run.part(0.0, _ENCODING if step.epochs else 1.0):
        for index, each in enumerate(chosen):
            masks = [subject.masks.get(f"{layer}.weight") for layer in each.layers]
            mask = next((mask for mask in masks if mask is not None), None)
            weight = subject.graph.get_parameter(each.parameter)
            sources[each.parameter] = learning(weight, each.coding, run.spec.seed + index, mask)
            run.progress((index + 1) / len(chosen))
    blocks, float_inputs = block_inputs(subject.graph, step, {each.layers: each.coding for each in chosen})
    floor = None
    if step.floor is not None:
        floor = None if run.state is None else run.state.data.get(_FLOOR)
        if floor is None:
            floor = _hold_floor(subject, chosen, sources, blocks, step.floor, run)
        chosen = _with_8_bits(subject, chosen, sources, floor["in_8_bits"])
        raised = {layer for each in chosen if each.coding == EIGHT_BITS for layer in each.layers}
        float_inputs |= {layer: "its weight takes 8 bits, for the floor" for layer in blocks if layer in raised}
        blocks = {layer: block for layer, block in blocks.items() if layer not in raised}
    use_blocks(subject.graph, blocks)
    stored_right_away = {name: source.coded() for name, source in sources.items()}
    weights_sqnr_db = {
        each.layers[0]: weight_sqnr_db(exact.get_parameter(each.parameter), stored_right_away[each.parameter].values())
        for each in chosen
    }
    training = None
    if step.epochs:
        learners = {each.parameter: Learns(sources[each.parameter], each.layers) for each in chosen}
        with run.part(_ENCODING, 1 - _ENCODING):
            training = _train(pupil_of(subject, network, learners, blocks), step, run, floor)
    subject.coded = {name: source.coded() for name, source in sources.items()}
    _take_over(subject, network.cpu())
    layers = [layer for each in chosen for layer in each.layers]
    sqnr_db = output_sqnr_db(exact, subject.graph, layers, run)
    subject.coded_sqnr_db = sqnr_db
    subject.records.append(_record(step, subject.coded, sqnr_db, blocks))
    return {
        "scheme": step.scheme,
        "stored_in_few_bits": {
            layer: _row(each, subject.coded[each.parameter]) for each in chosen for layer in each.layers
        },
        "kept_float": kept,
        **({"inputs_in_8_bits": blocks, "inputs_in_float": float_inputs} if blocks or float_inputs else {}),
        "floor": floor,
        "weight_sqnr_db": weights_sqnr_db,
        "sqnr_db": sqnr_db,
        "bytes_before": _bytes(subject.graph),
        "bytes": _bytes(subject.graph) - sum(_saved(each) for each in subject.coded.values()),
        "training": training,
        "cut_short": training is not None and training["cut_short"],
    }


def replay(subject: Subject, record: Record) -> None:
    """Take codes and tables over; the checkpoint has the weights they stand for."""
    subject.coded = {}
    for name, settings in record.data["coded"].items():
        subject.coded[name] = Coded.of(settings, record.tensors_of(name))
    subject.coded_sqnr_db = record.data["sqnr_db"]
    use_blocks(subject.graph, record.data["blocks"])


def _record(
    step: LowBitStep, coded: Mapping[str, Coded], sqnr_db: Mapping[str, float], blocks: Mapping[str, int]
) -> Record:
    data = {
        "coded": {name: each.settings() for name, each in coded.items()},
        "sqnr_db": dict(sqnr_db),
        "blocks": dict(blocks),
    }
    tensors = {f"{name}/{key}": tensor for name, each in coded.items() for key, tensor in each.tensors().items()}
    return Record(f"quantize {step.scheme}", data, tensors)


def choose(graph: fx.GraphModule, step: LowBitStep) -> tuple[list[_Chosen], dict[str, str]]:
    """What is to be stored how, and why the other layers' weights are not. Layers that share a weight share its codes:
    those of the first of them."""
    layers = layers_in_order(graph)
    outer = ends(layers)
    shared = holders(graph)
    chosen: dict[int, _Chosen] = {}
    kept: dict[str, str] = {}
    for name, kind in layers:
        coding = coding_of(step, name, kind, at_an_end=name in outer)
        if kind not in LOW_BIT_KINDS:
            continue
        layer = graph.get_submodule(name)
        weight = layer.weight
        assert isinstance(weight, nn.Parameter)
        if id(weight) in chosen:
            continue
        others = shared[id(weight)]
        if isinstance(coding, str):
            kept[name] = coding
        elif weight.dtype != torch.float32:
            kept[name] = f"its weight is {weight.dtype}"
        elif any(type(other).__name__ not in LOW_BIT_KINDS or leaf != "weight" for _, leaf, other in others):
            kept[name] = "shares its weight with something else"
        elif getattr(layer, "max_norm", None) is not None:
            kept[name] = "changes its weight as it runs"
        elif not is_worth_it(coding, weight.shape):
            kept[name] = "too small: its tables would take more than is saved"
        else:
            chosen[id(weight)] = _Chosen(f"{name}.weight", tuple(other for other, _, _ in others), coding)
    return list(chosen.values()), kept


def _hold_floor(
    subject: Subject,
    chosen: list[_Chosen],
    sources: Mapping[str, Source],
    blocks: Mapping[str, int],
    floor: Floor,
    run: Run,
) -> dict[str, Any]:
    """Which layers take 8 bits, and what was found."""
    weights = {name: source.coded().values() for name, source in sources.items()}
    other: dict[str, Versions] = {}
    for each in chosen:
        weight = subject.graph.get_parameter(each.parameter)
        if each.coding != EIGHT_BITS and is_worth_it(EIGHT_BITS, weight.shape):
            eight = GridWeight(weight, EIGHT_BITS).coded().values()
            other[each.parameter] = Versions(weights.pop(each.parameter), eight)
    raised, details = take_more(subject, weights, other, blocks, floor, run)
    layers = {each.parameter: each.layers[0] for each in chosen}
    alone = details["sqnr_db_alone"]
    return details | {
        "in_8_bits": [layers[name] for name in raised],
        "sqnr_db_alone": None if alone is None else {layers[name]: value for name, value in alone.items()},
    }


def _with_8_bits(
    subject: Subject,
    chosen: list[_Chosen],
    sources: dict[str, Source],
    layers: Sequence[str],
) -> list[_Chosen]:
    """`chosen` with 8 bits for `layers`, whose weights get other `sources`."""
    raised = {each.parameter for each in chosen if each.layers[0] in layers}
    sources |= {name: GridWeight(subject.graph.get_parameter(name), EIGHT_BITS) for name in raised}
    return [replace(each, coding=EIGHT_BITS) if each.parameter in raised else each for each in chosen]


def layers_in_order(graph: fx.GraphModule) -> list[tuple[str, str]]:
    """(name, kind) of the layers, in the order they run."""
    names = dict.fromkeys(str(node.target) for node in graph.graph.nodes if node.op == "call_module")
    return [(name, type(graph.get_submodule(name)).__name__) for name in names]


def _train(pupil: Subject, step: LowBitStep, run: Run, floor: Mapping[str, Any] | None) -> dict[str, Any]:
    """The better of before and after stays in `pupil`. What the `floor` decided is kept with the state: elsewhere it
    might come out otherwise."""
    if run.train is None:
        raise Failure(Code.INTERNAL, "nothing here trains")
    fields = {name: getattr(step, name) for name in Training.model_fields}
    fields["speed"] = step.speed.model_copy(update={"compile": False})
    state, keep_state = run.state, run.keep_state
    run.state = None if state is None else _renamed(state, _TRAINED, "network.")
    decided = {} if floor is None else {_FLOOR: dict(floor)}

    def keep(inside: StepState) -> None:
        renamed = _renamed(inside, "network.", _TRAINED)
        keep_state(StepState(renamed.data | decided, renamed.tensors))

    run.keep_state = keep
    details = run.train(pupil, FinetuneStep(step="finetune", epochs=step.epochs, **fields), run)
    run.state, run.keep_state = state, keep_state
    return details


def _renamed(state: StepState, old: str, new: str) -> StepState:
    """What begins with `new` goes."""
    kept = {name: tensor for name, tensor in state.tensors.items() if not name.startswith(new)}
    return StepState(
        state.data,
        {new + name.removeprefix(old) if name.startswith(old) else name: tensor for name, tensor in kept.items()},
    )


def _take_over(subject: Subject, network: fx.GraphModule) -> None:
    """Everything `network` has learnt, and the weights that are stored as the codes say."""
    learnt = dict(network.named_parameters(remove_duplicate=False)) | dict(
        network.named_buffers(remove_duplicate=False)
    )
    own = dict(subject.graph.named_parameters()) | dict(subject.graph.named_buffers())
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(subject.coded[name].values() if name in subject.coded else learnt[name])


def _row(each: _Chosen, coded: Coded) -> dict[str, Any]:
    """The bits of a weight, with its part of the tables."""
    count = subject_count(coded)
    coding = each.coding
    said: dict[str, Any] = {"scheme": "int" if coding.scheme == "integers" else coding.scheme}
    if coding.scheme in ("integers", "codebook"):
        said["bits"] = coding.bits
    if coding.scheme == "integers":
        said["group_size"] = coded.group
    if coding.scheme == "codebook":
        said["dimension"] = coding.dimension
    return said | {"bits_a_weight": round(8 * coded.stored_bytes() / count, 3)}


def subject_count(coded: Coded) -> int:
    return int(torch.Size(coded.shape).numel())


def _saved(coded: Coded) -> int:
    return 4 * subject_count(coded) - coded.stored_bytes()


def _bytes(graph: fx.GraphModule) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in [*graph.parameters(), *graph.buffers()])
