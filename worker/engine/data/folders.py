"""Image folders, in a zip or a tar: `class/image.png`, or `train/class/image.png` beside `val/` and `test/`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from models.errors import Code, Failure
from models.split_rules import SplitName
from worker.engine.data.splits import SPLIT_NAMES

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})


@dataclass(frozen=True)
class ImageFile:
    """A member of the archive and what its folders say: `class_index` is None without class folders."""

    name: str
    class_index: int | None
    split: SplitName | None


@dataclass(frozen=True)
class Listing:
    """`ignored` are members that are no images by their suffix."""

    files: list[ImageFile]
    class_names: list[str] | None
    ignored: list[str]


def is_hidden(name: str) -> bool:
    """Whether a member is a leftover of a file system, and no one's data."""
    parts = name.replace("\\", "/").split("/")
    return parts[0] == "__MACOSX" or any(part.startswith(".") and part != "." for part in parts)


def list_images(names: Iterable[str]) -> Listing:
    """Sort the files into classes (by name, sorted) and splits.

    Raises Failure(DATASET_BAD) when the folders do not say which class an image is of.
    """
    found: list[tuple[str, tuple[str, ...]]] = []
    ignored = []
    for name in names:
        parts = tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))
        if not parts or is_hidden(name):
            continue
        if Path(parts[-1]).suffix.lower() in SUFFIXES:
            found.append((name, parts))
        else:
            ignored.append(name)
    if not found:
        raise Failure(Code.DATASET_BAD, f"The archive has no images; it may hold {', '.join(sorted(SUFFIXES))} files.")
    while min(len(parts) for _, parts in found) >= 2 and len({parts[0] for _, parts in found}) == 1:
        found = [(name, parts[1:]) for name, parts in found]
    splits: list[SplitName | None] = [None] * len(found)
    if all(len(parts) >= 2 and parts[0].lower() in SPLIT_NAMES for _, parts in found):
        splits = [SPLIT_NAMES[parts[0].lower()] for _, parts in found]
        found = [(name, parts[1:]) for name, parts in found]
    depths = {len(parts) >= 2 for _, parts in found}
    if depths == {True, False}:
        stray = next(name for name, parts in found if len(parts) < 2)
        raise Failure(
            Code.DATASET_BAD,
            f"Some images lie in class folders and {stray!r} does not; put every image into a folder of its class.",
            where=stray,
        )
    class_names = sorted({parts[0] for _, parts in found}) if depths == {True} else None
    index = {name: position for position, name in enumerate(class_names or [])}
    files = [
        ImageFile(name, index[parts[0]] if class_names else None, split)
        for (name, parts), split in zip(found, splits, strict=True)
    ]
    return Listing(files, class_names, ignored)
