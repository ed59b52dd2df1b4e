"""WebDataset: a tar whose members with one name up to the first dot are one sample: `000.jpg`, `000.cls`.

`.jpg .png .bmp .webp` is the image; `.cls` a whole number, the label; `NAME.npy` one sample of the input NAME, or of
the labels `y`; a bare `.npy` that of `x`, beside an image the label (a map, say); `.json` the label, or an object with
it under `y`, `label` or `cls` and the part under `split`. A folder or shard called after a part (`train-000.tar`) says
the same. Others are left out and counted.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import Code, Failure
from worker.engine.data.folders import SUFFIXES, is_hidden
from worker.engine.data.npy import Array, bad_array, read_header
from worker.engine.data.splits import SPLIT_NAMES
from worker.engine.data.spool import Spool
from worker.engine.data.tar import TarMember, pictures_of

IMAGE, LABEL, JSON = "an image", "`.cls`", "`.json`"
ARRAY = ".npy"
LABEL_KEYS = ("y", "label", "cls")
MAX_TEXT_BYTES = 1 << 20
Sample = dict[str, TarMember]
"""What a sample is made of: by IMAGE, LABEL, JSON, or `NAME.npy`."""


def is_webdataset(members: Sequence[TarMember]) -> bool:
    """Whether some member is a label or an array, or a JSON text beside an image of the same name."""
    parts = [(key, part) for key, part, _ in _parts(members) if part is not None]
    images = {key for key, part in parts if part == IMAGE}
    return any(part == LABEL or part.endswith(ARRAY) or (part == JSON and key in images) for key, part in parts)


def group_samples(members: Iterable[TarMember]) -> tuple[dict[str, Sample], list[str]]:
    """The samples by key, in the archive's order, and the names of what was left out.

    Raises Failure(DATASET_BAD) when a sample has a part twice, or not the same parts as the first.
    """
    samples: dict[str, Sample] = {}
    ignored = []
    for key, part, member in _parts(members):
        if part is None:
            ignored.append(member.name)
            continue
        sample = samples.setdefault(key, {})
        if part in sample:
            raise _bad(f"The sample {key!r} has {part} twice; one network input takes one.", member.name)
        sample[part] = member
    first = next(iter(samples.values()))
    for key, sample in samples.items():
        if sample.keys() != first.keys():
            other = ", ".join(sorted(sample.keys() ^ first.keys()))
            raise _bad(f"The samples are not made alike: {key!r} and the first differ in {other}.", key)
    return samples, ignored


class SampleTable:
    """The arrays of samples: `inputs` by name, `y` and `split` as in an `.npz`; `pictures` when they have images."""

    def __init__(self, path: Path, samples: Mapping[str, Sample]) -> None:
        self.samples = samples
        with path.open("rb") as file:
            self._read_bytes: Callable[[TarMember], bytes] = lambda member: os.pread(
                file.fileno(), member.size, member.start
            )
            parts = next(iter(samples.values())).keys()
            images = [sample[IMAGE] for sample in samples.values() if IMAGE in sample]
            self.pictures = pictures_of(path, images) if images else None
            self.arrays = {self._array_name(part): self._array(part) for part in parts if part.endswith(ARRAY)}
            self.class_names: list[str] | None = None
            if LABEL in parts:
                self._add("y", np.array([self._whole_number(sample[LABEL]) for sample in samples.values()]))
            if JSON in parts:
                self._add_json()
        if "split" not in self.arrays:
            self._add_split_of_names()

    def _array_name(self, part: str) -> str:
        return part.removesuffix(ARRAY) or ("x" if self.pictures is None else "y")

    def _array(self, part: str) -> Array:
        """[samples, …] of a part that is a `.npy` file of one sample."""
        spool: Spool | None = None
        name = self._array_name(part)
        for key, sample in self.samples.items():
            content = self._read_bytes(sample[part])
            stream = io.BytesIO(content)
            header = read_header(stream, len(content), name, one_sample=True)
            values: Array = np.ndarray(
                header.shape, header.dtype, content, header.data_offset, order="F" if header.column_major else "C"
            )
            spool = spool or Spool(header.dtype, header.shape)
            if header.shape != spool.sample_shape or header.dtype.newbyteorder("=") != spool.dtype:
                raise bad_array(
                    name,
                    f"has the shape {header.shape} and dtype {header.dtype} in the sample {key!r}, and "
                    f"{spool.sample_shape} and {spool.dtype} in the first",
                    "give all samples one shape and dtype",
                )
            spool.append(values[None])
        assert spool is not None
        return spool.array()

    def _add(self, name: str, values: Array) -> None:
        if name in self.arrays:
            raise _bad(f"The samples have {name!r} twice: in {LABEL}, {JSON} or `.npy`. Keep one of them.", name)
        self.arrays[name] = values

    def _add_json(self) -> None:
        found = [self._json(sample[JSON]) for sample in self.samples.values()]
        keys = {key for entry in found if isinstance(entry, dict) for key in entry}
        label = next((key for key in LABEL_KEYS if key in keys), None)
        if not any(isinstance(entry, dict) for entry in found):
            self._add("y", self._labels(found))
        elif label is not None and "y" not in self.arrays:
            self._add("y", self._labels([self._entry(entry, label) for entry in found]))
        if "split" in keys:
            self._add("split", np.array([str(self._entry(entry, "split")) for entry in found]))

    def _entry(self, entry: Any, key: str) -> Any:
        if not isinstance(entry, dict) or key not in entry:
            raise _bad(f"The `.json` of some samples has {key!r} and that of others not: {str(entry)[:90]!r}.", key)
        return entry[key]

    def _labels(self, values: list[Any]) -> Array:
        """Numbers as they are; texts as classes, sorted by name."""
        if all(isinstance(value, str) for value in values):
            self.class_names = sorted(set(values))
            positions = {name: position for position, name in enumerate(self.class_names)}
            return np.array([positions[value] for value in values])
        try:
            labels = np.array(values)
        except ValueError:
            labels = np.array(None)
        if labels.dtype.kind not in "biuf" or len(labels) != len(values):
            raise _bad("The labels in `.json` must be numbers, or lists of them of one length, or names.", "y")
        return labels

    def _whole_number(self, member: TarMember) -> int:
        text = self._text(member).strip()
        if re.fullmatch(rb"-?[0-9]{1,18}", text) is None:
            raise _bad(f"{member.name!r} says {text[:40]!r}; it must hold the class as a whole number.", member.name)
        return int(text)

    def _json(self, member: TarMember) -> Any:
        try:
            return json.loads(self._text(member))
        except (ValueError, RecursionError) as error:
            raise _bad(f"{member.name!r} is no JSON: {error}. Correct it.", member.name) from error

    def _text(self, member: TarMember) -> bytes:
        if member.size > MAX_TEXT_BYTES:
            raise _bad(f"{member.name!r} has {member.size} bytes; at most {MAX_TEXT_BYTES} are read.", member.name)
        return self._read_bytes(member)

    def _add_split_of_names(self) -> None:
        """Where every folder or shard is called after just one part."""
        named = [
            {SPLIT_NAMES[word] for word in re.split("[^a-z]+", key.lower().rpartition("/")[0]) if word in SPLIT_NAMES}
            for key in self.samples
        ]
        if all(len(names) == 1 for names in named):
            self.arrays["split"] = np.array([names.pop() for names in named])


def _parts(members: Iterable[TarMember]) -> Iterable[tuple[str, str | None, TarMember]]:
    """(key, part, member) of every file that is not hidden; the part is None where it is of no use."""
    for member in members:
        if is_hidden(member.name):
            continue
        folder, _, file = member.name.removeprefix("./").rpartition("/")
        base, _, ending = file.partition(".")
        last = "." + ending.lower().rpartition(".")[2]
        part = IMAGE if last in SUFFIXES else {".cls": LABEL, ".json": JSON}.get(last)
        if last == ARRAY:
            part = ending.rpartition(".")[0] + ARRAY
        yield f"{folder}/{base}" if folder else base, part, member


def _bad(message: str, where: str) -> Failure:
    return Failure(Code.DATASET_BAD, message, where=where[:200])
