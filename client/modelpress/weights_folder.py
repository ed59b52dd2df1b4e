"""A Hugging Face folder as the one file the service takes: an uncompressed zip of its configuration and weights."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from modelpress.outcomes import PrepareError

_EARLIEST = (1980, 1, 1, 0, 0, 0)
"""The same folder gives the same bytes, so that an upload that broke off can go on."""


@contextlib.contextmanager
def as_one_file(path: str | Path) -> Iterator[Path]:
    """The file itself; of a folder a zip of `config.json` and what ends in `.safetensors`, gone after the block.

    Raises PrepareError for a folder without them.
    """
    source = Path(path)
    if not source.is_dir():
        yield source
        return
    weights = [*sorted(source.glob("*.safetensors")), *sorted(source.glob("*.safetensors.index.json"))]
    config = source / "config.json"
    if not (config.is_file() and weights):
        raise PrepareError(f"{path} is a folder without config.json and .safetensors files; name one file.")
    with tempfile.TemporaryDirectory(prefix="modelpress-folder-") as folder:
        packed = Path(folder) / f"{source.resolve().name}.zip"
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
            for file in (config, *weights):
                info = zipfile.ZipInfo(f"{source.resolve().name}/{file.name}", _EARLIEST)
                info.file_size = file.stat().st_size
                with file.open("rb") as content, archive.open(info, "w") as member:
                    shutil.copyfileobj(content, member, 1 << 20)
        yield packed
