"""Names from the file become attribute paths of modules and reach generated source, so they are made safe first."""

from __future__ import annotations

import keyword
import re
from collections import Counter

from torch import fx, nn

_UNSAFE = re.compile(r"[^A-Za-z0-9_]+")
_LAYER_FIELDS = frozenset({"weight", "bias", "running_mean", "running_var", "num_batches_tracked"})
_RESERVED = frozenset(dir(nn.Module())) | frozenset(dir(fx.GraphModule)) | frozenset(keyword.kwlist)


def safe_names(names: list[str]) -> dict[str, str]:
    """For every name one made of `[A-Za-z0-9_]` parts joined by dots, unlike all others and no folder of another.

    Ordinary names stay as they are; a part that is a keyword or hides a method of `nn.Module` gets an
    underscore.
    """
    taken: set[str] = set()
    folders: set[str] = set()
    numbers: Counter[str] = Counter()
    result: dict[str, str] = {}
    # Deepest first: a name that is also a folder then meets its folder and is the one to change.
    for name in sorted(names, key=lambda name: (-_safe(name).count("."), name != _safe(name))):
        base = candidate = _safe(name)
        while candidate in taken or candidate in folders:
            numbers[base] += 1
            candidate = f"{base}_{numbers[base] + 1}"
        taken.add(candidate)
        folders.update(_folders(candidate))
        result[name] = candidate
    return result


def safe_path(path: str) -> str | None:
    """The path of a module, made safe in the same way; None when nothing is left of it."""
    parts = [_part(_UNSAFE.sub("_", part), _LAYER_FIELDS) for part in path.split(".") if part]
    return ".".join(parts) or None


def _folders(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def _safe(name: str) -> str:
    parts = [_UNSAFE.sub("_", part) for part in name.split(".")]
    *path, leaf = [part for part in parts if part] or ["tensor"]
    return ".".join([*(_part(part, _LAYER_FIELDS) for part in path), _part(leaf, frozenset())])


def _part(part: str, reserved: frozenset[str]) -> str:
    return f"{part}_" if part in _RESERVED or part in reserved or part.startswith("__") else part


def safe_name(name: str, fallback: str) -> str:
    """An identifier for an input or output."""
    identifier = _UNSAFE.sub("_", name).strip("_")[:60] or fallback
    if identifier[0].isdigit() or keyword.iskeyword(identifier):
        identifier = f"{fallback}_{identifier}"
    return identifier
