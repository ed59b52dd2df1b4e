"""Images of a batch, changed a little: on their device, by random numbers from the CPU, so a seed gives the same."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from models.spec_speed import Augment
from worker.engine.data.dataset import Batch


def augmented(batch: Batch, asked: Augment) -> Batch:
    """The batch with every floating-point input of shape [N, C, H, W] flipped and shifted; inputs of one sample move
    alike where they have the same size. Who computes a part of a batch draws for all of it, so that nobody's samples
    depend on how many there are."""
    part = batch.whole()
    flips = (torch.rand(part.whole) < 0.5)[part.start : part.stop]
    moves = torch.randint(0, 2 * asked.shift + 1, (2, part.whole))[:, part.start : part.stop]
    return replace(
        batch,
        inputs=tuple(
            _changed(value, asked, flips, moves) if value.dim() == 4 and value.is_floating_point() else value
            for value in batch.inputs
        ),
    )


def _changed(images: Tensor, asked: Augment, flips: Tensor, moves: Tensor) -> Tensor:
    """`images` [N, C, H, W], each by its flip and its place (rows, columns) in the image with zeros around it."""
    if asked.flip:
        images = torch.where(flips.to(images.device)[:, None, None, None], images.flip(3), images)
    if asked.shift:
        height, width = images.shape[2:]
        rows, columns = (
            (start[:, None] + torch.arange(size)).to(images.device)
            for start, size in zip(moves, (height, width), strict=True)
        )
        padded = F.pad(images, [asked.shift] * 4)
        samples = torch.arange(len(images), device=images.device)[:, None, None]
        # Indices that are parted by a slice put their own dimensions first: [N, H, W, C].
        images = padded[samples, :, rows[:, :, None], columns[:, None, :]].movedim(3, 1).contiguous()
    return images
