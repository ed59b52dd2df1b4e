"""The network as it runs while it trains: as it is, or through kernels that torch compiled for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from worker.engine.compiler import compiling
from worker.engine.train.state import device_of


class Compiled:
    """Runs `network`; while `is_on`, batches of `whole` samples through what `torch.compile` made of it at the first of
    them. Other batches, as the last of an epoch, would each have to be compiled for; they are run as ever. Parameters
    are the same in both, and `network` itself knows nothing of it. `why_not`: it cannot be compiled, for that reason.
    Compiling is one call that may take minutes: `meanwhile` goes around it. After the block everything is as before.
    """

    def __init__(
        self,
        network: nn.Module,
        whole: int,
        why_not: str | None = None,
        meanwhile: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.network, self.whole, self.why_not, self._meanwhile = network, whole, why_not, meanwhile
        self.is_on = False
        self._compiled: Any = None
        self._open = ExitStack()

    def __enter__(self) -> Compiled:
        return self

    def __exit__(self, *_: object) -> None:
        self.keep(False)

    def keep(self, is_on: bool) -> None:
        """How to run from now on. Without what was compiled, that goes."""
        self.is_on = is_on
        if not is_on:
            self._compiled = None
            self._open.close()

    def __call__(self, *inputs: Tensor) -> Any:
        if not self.is_on or len(inputs[0]) != self.whole:
            return self.network(*inputs)
        if self._compiled is None:
            self._open.enter_context(compiling(device_of(self.network)))
            self._compiled = torch.compile(self.network, dynamic=False)
            with self._meanwhile():
                return self._compiled(*inputs)
        return self._compiled(*inputs)
