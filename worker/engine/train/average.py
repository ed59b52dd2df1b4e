"""A moving average of the weights, which is often better than any of them (Polyak and Juditsky, 1992)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from worker.engine.train.state import Weights, copy_weights, load_weights, weights_of


class Average:
    """Of all floating-point parameters and buffers of `network`; other values are its own, newest.

    After step t (from 0) the decay is min(decay, (1 + t) / (10 + t)), as in TensorFlow's `ExponentialMovingAverage`:
    of a short training the start does not stay in the average.
    """

    def __init__(self, network: nn.Module, decay: float, values: Weights | None = None) -> None:
        self._network, self._decay = network, decay
        self.values = copy_weights(network) if values is None else values

    def add(self, step: int) -> None:
        """The weights as they are now, after step `step`."""
        decay = min(self._decay, (1.0 + step) / (10.0 + step))
        with torch.no_grad():
            for name, value in weights_of(self._network).items():
                if value.is_floating_point():
                    self.values[name].lerp_(value, 1.0 - decay)
                else:
                    self.values[name].copy_(value)

    def copy(self) -> Weights:
        return {name: value.clone() for name, value in self.values.items()}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the block the network has the average for its weights."""
        own = copy_weights(self._network)
        load_weights(self._network, self.values)
        try:
            yield
        finally:
            load_weights(self._network, own)
