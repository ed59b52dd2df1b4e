"""Globs over the names of layers, and the nearest names to one that matches nothing."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from models.errors import FieldProblem
from models.inspection import LayerInfo


def check_globs(globs: Sequence[str], layers: Sequence[LayerInfo], pointer: str) -> Iterable[FieldProblem]:
    """`globs` are those of `layers` in the step at `pointer`; each has to match a layer."""
    names = [layer.name for layer in layers]
    for index, glob in unmatched(globs, layers):
        message = f"No layer's name matches {glob!r}{nearest(glob, names)}."
        yield FieldProblem(pointer=f"{pointer}/layers/{index}/match", message=message)


def unmatched(globs: Sequence[str], layers: Sequence[LayerInfo]) -> Iterable[tuple[int, str]]:
    """The globs that match none of `layers`, with their places."""
    for index, glob in enumerate(globs):
        if not any(fnmatchcase(layer.name, glob) for layer in layers):
            yield index, glob


def nearest(asked: str, names: Iterable[str]) -> str:
    """In words, to be put behind a name that does not exist; nothing when none is near."""
    close = difflib.get_close_matches(asked, list(names), n=3, cutoff=0.4)
    return f"; the nearest are {', '.join(close)}" if close else ""
