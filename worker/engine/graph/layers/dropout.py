"""Dropouts: without effect in eval mode, at work again in fine-tuning."""

from __future__ import annotations

from torch import fx, nn

from worker.engine.graph.layers.lifter import Arguments, Lifter


def lift_dropout(lifter: Lifter, node: fx.Node, arguments: Arguments) -> bool:
    return _lift(lifter, node, arguments, nn.Dropout)


def lift_feature_dropout(lifter: Lifter, node: fx.Node, arguments: Arguments) -> bool:
    """Drops whole channels."""
    kind = {3: nn.Dropout1d, 4: nn.Dropout2d, 5: nn.Dropout3d}.get(len(node.meta["shape"]))
    return kind is not None and _lift(lifter, node, arguments, kind)


def lift_alpha_dropout(lifter: Lifter, node: fx.Node, arguments: Arguments) -> bool:
    return _lift(lifter, node, arguments, nn.AlphaDropout)


def _lift(lifter: Lifter, node: fx.Node, arguments: Arguments, kind: type[nn.Module]) -> bool:
    probability = arguments["p"]
    if not isinstance(probability, float) or not 0 <= probability <= 1:
        return False
    layer = node.meta.get("layer")
    module = kind(probability)
    source = arguments["input"] if "input" in arguments else arguments["self"]  # as the in-place form has it
    lifter.replace(node, lifter.add_dropout(layer or "dropout", module), source)
    return True
