"""How a spec asks for weights or channels that training draws towards zero, so that a cut takes less with it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from models.spec_types import Fraction, Strict

_Strength = Annotated[float, Field(gt=0, le=1e4, allow_inf_nan=False)]


class L1(Strict):
    """strength · Σ |w| over the weights that decay (Tibshirani, 1996): single weights go to zero, as `sparsify` wants
    them."""

    penalty: Literal["l1"]
    strength: _Strength = 1e-4


class GroupLasso(Strict):
    """strength · Σ √n ‖w‖₂ over the units that `prune` can remove, w being all n weights of one (Yuan and Lin, 2006;
    Wen et al., 2016): whole channels go to zero."""

    penalty: Literal["group_lasso"]
    strength: _Strength = 1e-3


class BatchNormGamma(Strict):
    """strength · Σ |γ| over the scales of BatchNorm layers whose channels `prune` can remove (network slimming, Liu et
    al., 2017), for the criterion `bn_gamma`."""

    penalty: Literal["bn_gamma"]
    strength: _Strength = 1e-2
    shifts: bool = Field(
        default=False,
        description="Also |β|, which the paper leaves out: a channel without scale then gives zero, not a constant "
        "that the next layers miss once it is cut.",
    )


class Growing(Strict):
    """½ λ ‖w‖² on the units ranked lowest, where λ grows by steps (Wang et al., 2021): they are driven out, and the
    others take over. The ranking is the first one; nothing else is drawn anywhere."""

    penalty: Literal["growing"]
    fraction: Fraction = Field(default=0.5, description="Share of the units of every group that is drawn to zero.")
    criterion: Literal["l1", "l2"] = Field(default="l2", description="What ranks them: as in `prune`.")
    strength: _Strength = Field(default=30.0, description="λ in the last part of the training.")
    rises: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=10, description="Equal parts of the training; λ is as much larger in each."
    )


Regularize = Annotated[L1 | GroupLasso | BatchNormGamma | Growing, Field(discriminator="penalty")]
