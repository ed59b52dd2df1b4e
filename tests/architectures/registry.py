"""The shape of a family: networks by name, built when called."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from tests.networks import Example

Build: TypeAlias = Callable[[], Example]
Registry: TypeAlias = dict[str, Build]
