"""Labels of a language model that are nothing but its input: at each position the token that follows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.errors import Code, Failure
from models.inspection import TensorInfo
from models.label_rules import mask_input, token_input
from worker.engine.data.labels import IGNORE_INDEX
from worker.engine.data.samples import Samples
from worker.engine.data.splits import Rows


@dataclass(frozen=True)
class NextTokens:
    """`read` gives int64 [N, L]: the input at place `tokens`, shifted by one; `IGNORE_INDEX` at the last position,
    where the token that follows is `ignored`, and where the input at place `mask` has a zero for it."""

    samples: Samples
    tokens: int
    mask: int | None
    ignored: int | None

    def read(self, rows: Rows) -> Tensor:
        inputs = self.samples.read(rows)
        following = inputs[self.tokens][:, 1:].to(torch.int64)
        skipped = following == IGNORE_INDEX
        if self.ignored is not None:
            skipped = skipped | (following == self.ignored)
        if self.mask is not None:
            skipped = skipped | (inputs[self.mask][:, 1:] == 0)
        labels = following.masked_fill(skipped, IGNORE_INDEX)
        return torch.nn.functional.pad(labels, (0, 1), value=IGNORE_INDEX)


def next_tokens(samples: Samples, inputs: tuple[TensorInfo, ...], ignored: int | None) -> NextTokens:
    """Raises Failure(DATASET_MISMATCH) for a network without an input of tokens."""
    place = token_input(inputs)
    if place is None:
        raise Failure(
            Code.DATASET_MISMATCH,
            "The task 'causal_lm' takes its labels from an input of whole numbers [N, length], and the network has "
            "none: send the token that follows at each position as `y`.",
            where="/data/task",
        )
    return NextTokens(samples, place, mask_input(inputs), ignored)
