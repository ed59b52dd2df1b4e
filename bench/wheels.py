"""Networks that public wheels carry, with inputs as their owners give them: files for one, words in print for two."""

from __future__ import annotations

import random
import sys
import sysconfig
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

WHEELS = Path(__file__).resolve().parents[1] / "var" / "wheels"
"""Where `make real-files` puts them."""
HALF = 1024
"""Bytes that magika reads of a file's beginning, and of its end."""
BLOCK = 4096
PADDING = 256
HEIGHT, WIDTH = 48, 160
OCR = {"text direction (rapidocr)": "mobile_v2.0_cls_infer", "text (rapidocr)": "PP-OCRv4_rec_infer"}


def magika() -> Path:
    """The ONNX file of magika, which tells what a file is from its bytes."""
    found = find_spec("magika")
    assert found is not None
    assert found.submodule_search_locations is not None
    (path,) = Path(found.submodule_search_locations[0]).glob("models/*/model.onnx")
    return path


def from_rapidocr(ending: str, folder: Path) -> Path | None:
    """The file of the wheel whose name ends so, in `folder`; `None` without the wheel."""
    for wheel in WHEELS.glob("rapidocr_onnxruntime-*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(f"{ending}.onnx"):
                    path = folder / Path(name).name
                    path.write_bytes(archive.read(name))
                    return path
    return None


def files(count: int, seed: int) -> NDArray[np.int32]:
    """[count, 2048] as magika wants them, of the files that Python has installed: of every kind about as many."""
    kinds: dict[str, list[Path]] = defaultdict(list)
    for place in ("stdlib", "purelib"):
        for path in sorted(Path(sysconfig.get_paths()[place]).rglob("*")):
            if path.is_file() and path.stat().st_size > 64:
                kinds[path.suffix].append(path)
    chance = random.Random(seed)
    for paths in kinds.values():
        chance.shuffle(paths)
    return np.stack([_ends(path) for path, _ in zip(_in_turn(kinds), range(count), strict=False)])


def _in_turn(kinds: dict[str, list[Path]]) -> Iterator[Path]:
    while kinds:
        for kind in sorted(kinds):
            yield kinds[kind].pop()
            if not kinds[kind]:
                del kinds[kind]


def _ends(path: Path) -> NDArray[np.int32]:
    content = path.read_bytes()
    first, last = content[:BLOCK].lstrip()[:HALF], content[-BLOCK:].rstrip()[-HALF:]
    ends = np.full(2 * HALF, PADDING, np.int32)
    ends[: len(first)] = list(first)
    ends[2 * HALF - len(last) :] = list(last)
    return ends


def words(count: int, seed: int) -> NDArray[np.float32]:
    """[count, 3, 48, 160] in [-1, 1]: names of Python's modules in print, every other upside down."""
    chance = random.Random(seed)
    names = sorted(sys.stdlib_module_names)
    return np.stack([_drawn(chance.choice(names), chance, turned=index % 2 == 1) for index in range(count)])


def _drawn(word: str, chance: random.Random, *, turned: bool) -> NDArray[np.float32]:
    paper, ink = chance.randint(160, 255), chance.randint(0, 90)
    picture = Image.new("L", (WIDTH, HEIGHT), paper)
    place = chance.randint(2, 12), chance.randint(2, 12)
    ImageDraw.Draw(picture).text(place, word, fill=ink, font=ImageFont.load_default(chance.randint(20, 30)))
    pixels = np.asarray(picture.rotate(180) if turned else picture, np.float32)
    pixels = pixels + np.random.default_rng(chance.randint(0, 1 << 30)).normal(0, 6, pixels.shape).astype(np.float32)
    return np.repeat(pixels[None] / 127.5 - 1, 3, 0).astype(np.float32)
