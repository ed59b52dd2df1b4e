"""Which layers of few bits take 8-bit inputs, where a step asks for them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx, nn

from models.errors import Code, Failure
from models.lowbit_policy import Coding, goes_with_blocks
from models.spec import LowBitStep
from models.spec_lowbit import Int4Step


def block_inputs(
    graph: fx.GraphModule, step: LowBitStep, codings: Mapping[tuple[str, ...], Coding]
) -> tuple[dict[str, int], dict[str, str]]:
    """By layer, how many inputs share a scale; and why the inputs of the others stay floats. `codings` are those of
    weights, by the layers that have them.

    Raises `Failure` (UNSUPPORTED_OP) when a step asks for 8-bit inputs and no layer can have them.
    """
    if not isinstance(step, Int4Step) or step.activations == "float":
        return {}, {}
    blocks: dict[str, int] = {}
    floats: dict[str, str] = {}
    for layers, coding in codings.items():
        kinds = {type(graph.get_submodule(layer)) for layer in layers}
        if reason := _why_not(kinds, coding):
            floats |= dict.fromkeys(layers, reason)
        else:
            assert coding.group_size is not None
            blocks |= dict.fromkeys(layers, coding.group_size)
    if not blocks:
        reasons = "; ".join(f"{layer}: {reason}" for layer, reason in list(floats.items())[:5])
        raise Failure(
            Code.UNSUPPORTED_OP,
            f"no layer can take 8-bit inputs ({reasons}); leave `activations` out",
        )
    return blocks, floats


def _why_not(kinds: set[type[nn.Module]], coding: Coding) -> str | None:
    if nn.Linear not in kinds:
        return "only linear layers take 8-bit inputs beside weights of few bits"
    if len(kinds) > 1:
        return "shares its weight with a layer that is not linear"
    if not goes_with_blocks(coding):
        return "its weight is stored in a way that the kernel does not multiply by"
    return None
