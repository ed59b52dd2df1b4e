"""Criteria: what makes a channel or a weight matter, what each has to be given, and where it is from.

`worker/engine/score/` has the arithmetic. The scores of a channel's parts are set in proportion (`Normalize`) and put
together (`Aggregate`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

UnitCriterion = Literal["random", "l1", "l2", "fpgm", "lamp", "bn_gamma", "gradient", "taylor", "hessian", "fisher"]
"""How channels, or whatever else goes as a whole, are ranked."""

WeightCriterion = Literal["random", "l1", "l2", "lamp", "gradient", "taylor", "hessian"]
"""How single weights are ranked."""

Aggregate = Literal["mean", "sum", "max"]
Normalize = Literal["mean", "sum", "max", "standard", "none"]
NormalizeOver = Literal["parameters", "group"]

GradientLoss = Literal["task", "distill"]
"""What is differentiated: the loss on labels, or the distance to the original's outputs."""

GRADIENT_SAMPLES = 512
"""Training samples whose gradients are taken without a choice."""

Needs = Literal["nothing", "weights", "batch_norm", "gradients"]


@dataclass(frozen=True)
class CriterionInfo:
    """`normalize`: the default. LAMP and the scales of BatchNorm were made to be compared as they are; of the others a
    group's mean is one, because raw scores, cut off at one height in one go, empty whole layers."""

    needs: Needs
    normalize: Normalize
    source: str


CRITERIA: dict[UnitCriterion, CriterionInfo] = {
    "random": CriterionInfo("nothing", "none", "the control that every criterion must beat"),
    "l1": CriterionInfo("weights", "mean", "Li et al., ICLR 2017"),
    "l2": CriterionInfo("weights", "mean", "Li et al., ICLR 2017"),
    "fpgm": CriterionInfo("weights", "mean", "He et al., CVPR 2019"),
    "lamp": CriterionInfo("weights", "none", "Lee et al., ICLR 2021"),
    "bn_gamma": CriterionInfo("batch_norm", "none", "Liu et al., ICCV 2017"),
    "gradient": CriterionInfo("gradients", "mean", "Mozer and Smolensky, NeurIPS 1988"),
    "taylor": CriterionInfo("gradients", "mean", "Molchanov et al., CVPR 2019"),
    "hessian": CriterionInfo("gradients", "mean", "LeCun et al., NeurIPS 1989"),
    "fisher": CriterionInfo("gradients", "mean", "Theis et al., 2018"),
}


def needs_gradients(criterion: UnitCriterion) -> bool:
    """Whether samples have to go through the network before anything can be scored."""
    return CRITERIA[criterion].needs == "gradients"


WEIGHT_CRITERIA: tuple[WeightCriterion, ...] = get_args(WeightCriterion)
