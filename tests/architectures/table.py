"""Every architecture."""

from __future__ import annotations

from tests.architectures.assorted import ASSORTED
from tests.architectures.convolutional import CONVOLUTIONAL
from tests.architectures.dense import DENSE
from tests.architectures.mobile import MOBILE
from tests.architectures.registry import Registry
from tests.architectures.sequence import SEQUENCE
from tests.architectures.unusual import UNUSUAL

ARCHITECTURES: Registry = {**CONVOLUTIONAL, **MOBILE, **DENSE, **UNUSUAL, **ASSORTED, **SEQUENCE}
SAMPLE = ("mobilenetv3_small", "eca", "involution", "shared_kernel", "vit_tiny", "bert", "llama", "lstm_projected")
"""The few that every run of the tests takes."""
FUSED = frozenset({"conformer", "detr", "transformer", "transformer_norm_first"})
"""Those that run a fused kernel as modules and its parts once exported, which round in another order."""
OVER_CHANNELS = frozenset(
    {
        "cbam",
        "channel_softmax",
        "experts",
        "mixture_of_experts",
        "mixture_of_kernels",
        "temporal_weight_norm",
        "weight_norm",
        "weight_norm_hook",
        "weight_norm_inputs",
    }
)
"""Those whose own arithmetic takes a mean, a softmax or a length over channels: zeros there are not the same as fewer
channels, so the original with zeros is no judge of the cut."""

SCALED_ALONE = {"qwen3": ("q_norm", "k_norm")}
"""Normalisations head by head, of which features of the result can go while those they read stay."""
