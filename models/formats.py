"""What an uploaded file is, by its bytes: what can be read, and for all else what it is and how to convert it.

`sniff_network` and `sniff_dataset` look at the first bytes alone, so the API may call them on a stranger's bytes.
`identify_network_archive` parses the directory of a zip file and belongs in the sandboxed child.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from models.checksums import crc32c, masked
from models.errors import Code, Failure, FieldProblem

HEAD_BYTES = 4096
"""How much of the beginning the two sniffers want; less is fine."""

EXPORT = "Export the network with `modelpress prepare` (torch.export) and send the `.pt2`"
HOLDS_ITS_NETWORK = "`arch` is for files of weights, and this file holds its network: leave it out"
WEIGHTS = "Send the weights as safetensors, or as `torch.save(module.state_dict(), path)` writes them"
NAME_IT = "Name the network these weights belong to (`?arch=timm/resnet18`), or export it with `modelpress prepare`"
NAME_FOLDER = (
    "Say `?arch=transformers` where it is `config.json` and safetensors, packed with `zip -0`; or export the network "
    "with `modelpress prepare`"
)
SAVE_DATA = (
    'Send arrays as `.npz` (`numpy.savez("data.npz", x=…, y=…)`), `.npy`, safetensors, HDF5, Parquet or TFRecord, or '
    "images as a zip or tar of folders (`class/image.png`), or WebDataset"
)

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


@dataclass(frozen=True)
class Format:
    """A kind of file: `found` recognises its beginning, `suffixes` are its usual names, `convert` is the way out."""

    title: str
    found: Callable[[bytes, int], bool]
    suffixes: frozenset[str]
    convert: str | None = None
    code: Code = Code.UNKNOWN_FORMAT


def _magic(*magics: bytes, at: int = 0) -> Callable[[bytes, int], bool]:
    return lambda head, size: any(head[at : at + len(magic)] == magic for magic in magics)


def _matches(pattern: bytes) -> Callable[[bytes, int], bool]:
    compiled = re.compile(pattern, re.DOTALL | re.IGNORECASE)
    return lambda head, size: compiled.match(head) is not None


def _is_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return len(head) > 8 and head[8:9] == b"{" and 2 <= length <= size - 8


def _is_onnx(head: bytes, size: int) -> bool:
    """`ir_version` (3 or more), then one of the model's next fields: protobuf has no magic number."""
    return len(head) > 3 and head[0] == 0x08 and 3 <= head[1] <= 30 and head[2] in b"\x12\x1a\x22\x28\x32\x3a\x42"


def _is_tfrecord(head: bytes, size: int) -> bool:
    """The length of the first record, and the checksum of that."""
    return len(head) >= 12 and int.from_bytes(head[8:12], "little") == masked(crc32c(head[:8]))


def _suffixes(*names: str) -> frozenset[str]:
    return frozenset(f".{name}" for name in names)


ZIP = Format(
    "a zip archive", _magic(b"PK\x03\x04"), _suffixes("zip", "pt2", "npz", "pt", "pth", "bin", "ckpt", "keras")
)
SAFETENSORS = Format("a safetensors file: weights without a network", _is_safetensors, _suffixes("safetensors"))
ONNX = Format("an ONNX network", _is_onnx, _suffixes("onnx"))
HDF5 = Format("an HDF5 file, as Keras writes it", _magic(b"\x89HDF\r\n\x1a\n"), _suffixes("h5", "hdf5", "keras"))
PARQUET = Format("a Parquet file", _magic(b"PAR1"), _suffixes("parquet"))
TFRECORD = Format("a TFRecord file", _is_tfrecord, _suffixes("tfrecord", "tfrecords"))
NPY = Format("a numpy array (.npy)", _magic(b"\x93NUMPY"), _suffixes("npy"))
TAR = Format("a tar archive", _magic(b"ustar", at=257), _suffixes("tar", "mar"), "Unpack it and send the file inside")
_PT2_MEMBER = re.compile(
    r"[^/]+/(data/(weights|constants)/|models/|archive_format$)|serialized_exported_program\.json$"
)
LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How torch.save began a file before torch 1.6: a pickle of its magic number."""
PACKED = b'{"__metadata__":{"modelpress-packed"'
"""How the header of the export format `safetensors` begins."""
_UNPACK = "Unpack it and send the file inside"
FORMATS: tuple[Format, ...] = (
    TFRECORD,  # first: its checksum is proof, and its bytes before may look like anything
    ZIP,
    Format("an empty zip archive", _magic(b"PK\x05\x06", b"PK\x07\x08"), ZIP.suffixes, code=Code.BAD_ARCHIVE),
    Format(
        "a Python pickle, which can run code when it is read",
        _matches(rb"\x80[\x02-\x05]|\(?c[\w.]+\n[\w.]+\n|\(?[dl]p\d+\n|\(i[\w.]+\n[\w.]+\n"),
        _suffixes("pt", "pth", "pkl", "pickle", "bin", "ckpt", "joblib"),
        code=Code.UNSAFE_PICKLE,
    ),
    Format("a program (ELF)", _magic(b"\x7fELF"), _suffixes("so", "elf", "o")),
    Format(
        "a program",
        _magic(b"MZ", b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe", b"\xca\xfe\xba\xbe", b"#!"),
        _suffixes("exe", "dll", "dylib", "sh"),
    ),
    Format("gzip-compressed", _magic(b"\x1f\x8b"), _suffixes("gz", "tgz"), _UNPACK),
    Format("a 7z archive", _magic(b"7z\xbc\xaf\x27\x1c"), _suffixes("7z"), _UNPACK),
    Format("bzip2-compressed", _magic(b"BZh"), _suffixes("bz2", "tbz2"), _UNPACK),
    Format("xz-compressed", _magic(b"\xfd7zXZ\x00"), _suffixes("xz", "txz"), _UNPACK),
    Format("zstandard-compressed", _magic(b"\x28\xb5\x2f\xfd"), _suffixes("zst"), _UNPACK),
    Format("a RAR archive", _magic(b"Rar!\x1a\x07"), _suffixes("rar"), _UNPACK),
    TAR,
    HDF5,
    Format("a GGUF file", _magic(b"GGUF"), _suffixes("gguf")),
    Format("a TensorFlow Lite file", _magic(b"TFL3", at=4), _suffixes("tflite")),
    NPY,
    PARQUET,
    Format("an image", _magic(b"\x89PNG", b"\xff\xd8\xff", b"GIF8"), IMAGE_SUFFIXES),
    Format("a PDF document", _magic(b"%PDF"), _suffixes("pdf")),
    Format(
        "a Git LFS pointer, not the file it stands for",
        _magic(b"version https://git-lfs"),
        _suffixes("pt2", "npz", "zip", "onnx", "safetensors", "bin"),
        "Run `git lfs pull` and send the real file",
    ),
    Format(
        "a packed file of modelpress",
        lambda head, size: _is_safetensors(head, size) and head[8:].startswith(PACKED),
        SAFETENSORS.suffixes,
        "Open it with `modelpress.load` and send what `modelpress.prepare` makes of that",
    ),
    SAFETENSORS,
    ONNX,
    Format("a TensorFlow SavedModel", _magic(b"\x08\x01\x12"), _suffixes("pb")),
    Format("an HTML page", _matches(rb"\s*<(!doctype html|html|head|body)"), _suffixes("html", "htm")),
    Format("an XML document", _matches(rb"\s*<\?xml"), _suffixes("xml")),
    Format("JSON text", _matches(rb"(\xef\xbb\xbf)?\s*[{\[]"), _suffixes("json")),
)
_KNOWN_SUFFIXES = frozenset(suffix for known in FORMATS for suffix in known.suffixes)


def sniff_network(
    head: bytes, size: int | None, filename: str | None = None, arch: str | None = None
) -> Literal["zip", "onnx", "tar", "safetensors"]:
    """What the first bytes of a network show. `size` is the file's length in bytes, None while it is not known.

    A zip archive may be a `.pt2`, a tar archive an ONNX file with its data; only a look inside tells. With `arch`
    the file holds weights, as safetensors too.
    Raises `Failure`: empty_file, unknown_format, unsafe_pickle, legacy_format, bad_archive, format_mismatch when
    `filename` says another thing, or invalid_request when the file says itself what network it is.
    """
    if arch is None:
        remedy = NAME_IT if _begins(SAFETENSORS, head, size) else EXPORT
        known = _sniff(head, size, filename, remedy, (ZIP, ONNX, TAR))
        return "onnx" if known is ONNX else "tar" if known is TAR else "zip"
    if head.startswith(LEGACY_TORCH):
        raise Failure(
            Code.LEGACY_FORMAT,
            "the file is a pickle as torch.save wrote it before torch 1.6; it was not read. Save the state dict again.",
        )
    if _begins(ONNX, head, size) or _PT2_MEMBER.match(_first_member(head)):
        problem = FieldProblem(pointer="/query/arch", message="Leave it out: the file holds its network")
        raise Failure(Code.INVALID_REQUEST, HOLDS_ITS_NETWORK, problems=(problem,))
    return "zip" if _sniff(head, size, filename, WEIGHTS, (ZIP, SAFETENSORS)) is ZIP else "safetensors"


def _first_member(head: bytes) -> str:
    """The name in a zip archive's first header."""
    length = int.from_bytes(head[26:28], "little")
    return head[30 : 30 + length].decode(errors="replace") if _begins(ZIP, head, None) else ""


DatasetHead = Literal["zip", "tar", "npy", "safetensors", "hdf5", "parquet", "tfrecord"]
DATASET_HEADS: dict[Format, DatasetHead] = {
    ZIP: "zip",
    TAR: "tar",
    NPY: "npy",
    SAFETENSORS: "safetensors",
    HDF5: "hdf5",
    PARQUET: "parquet",
    TFRECORD: "tfrecord",
}


def sniff_dataset(head: bytes, size: int | None, filename: str | None = None) -> DatasetHead:
    """What the first bytes of a data set show. A zip is `.npz` or image folders, a tar those or WebDataset.

    Raises the same.
    """
    return DATASET_HEADS[_sniff(head, size, filename, SAVE_DATA, tuple(DATASET_HEADS))]


def _begins(known: Format, head: bytes, size: int | None) -> bool:
    return known.found(head, max(size, len(head)) if size is not None else 1 << 62)


def _sniff(head: bytes, size: int | None, filename: str | None, remedy: str, read: tuple[Format, ...]) -> Format:
    if not head:
        raise Failure(Code.EMPTY_FILE, "the file is empty")
    known = next((known for known in FORMATS if _begins(known, head, size)), None)
    suffix = PurePosixPath(filename or "").suffix.lower()
    if known is None:
        what = (
            f"{size} bytes are too short for any format"
            if size is not None and size < 22
            else "this is no known format"
        )
        raise Failure(Code.UNKNOWN_FORMAT, f"{what}. {remedy}.")
    title = known.title
    if known.code is Code.UNSAFE_PICKLE:
        names = _globals(head)
        named = f" It names {', '.join(names)}." if names else ""
        raise Failure(Code.UNSAFE_PICKLE, f"the file is {title}; it was not read.{named} {remedy}.")
    if suffix in _KNOWN_SUFFIXES and suffix not in known.suffixes:
        raise Failure(Code.FORMAT_MISMATCH, f"the name ends in `{suffix}`, but the file is {title}. {remedy}.")
    if known not in read:
        raise Failure(known.code, f"the file is {title}. {known.convert or remedy}.")
    return known


def _globals(head: bytes) -> list[str]:
    """Up to five classes or functions that a pickle's beginning names; the pickle is parsed, never run."""
    names: list[str] = []
    strings: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(io.BytesIO(head)):
            if opcode.name in ("GLOBAL", "INST"):
                names.append(str(argument).replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL" and len(strings) >= 2:
                names.append(".".join(strings[-2:]))
            elif isinstance(argument, str):
                strings.append(argument)
    except (ValueError, IndexError, OverflowError):
        pass  # the head ends in the middle of the pickle, or it is a broken one: what was seen so far counts
    return [ascii(name)[1:-1][:80] for name in dict.fromkeys(names)][:5]


@dataclass(frozen=True)
class ArchiveKind:
    """A kind of zip archive, told by the name of one of its members. `name` is that of one which is read: without
    `arch`, or with one of the library `arch`."""

    title: str
    member: re.Pattern[str]
    code: Code = Code.UNKNOWN_FORMAT
    name: Literal["pt2", "pth", "transformers"] | None = None
    arch: str | None = None
    convert: str = EXPORT


def _named(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


READ_WITH = {
    "timm": "safetensors, or a state dict of torch.save",
    "transformers": "a zip of config.json and safetensors",
}
ARCHIVES: tuple[ArchiveKind, ...] = (
    ArchiveKind(
        "a TorchScript archive, which can run code when it is loaded",
        _named(r"/constants\.pkl$|/code/.*\.py$"),
        Code.TORCHSCRIPT_NOT_SUPPORTED,
    ),
    ArchiveKind(
        "a torch.package archive, which is Python source", _named(r"/\.data/extern_modules$"), Code.UNSAFE_PICKLE
    ),
    ArchiveKind("a pt2 archive", _named(r"^([^/]+/models/[^/]+|serialized_exported_program)\.json$"), name="pt2"),
    ArchiveKind(
        "a file of torch.save (a pickle in a zip archive), which can run code when it is read",
        _named(r"(^|/)data\.pkl$"),
        Code.UNSAFE_PICKLE,
        "pth",
        "timm",
        NAME_IT,
    ),
    ArchiveKind("a Keras network", _named(r"(^|/)model\.weights\.h5$")),
    ArchiveKind("a TensorFlow SavedModel", _named(r"(^|/)saved_model\.pb$")),
    ArchiveKind("a data set of numpy arrays (.npz), not a network", _named(r"\.npy$")),
    ArchiveKind("a zip archive with an ONNX network in it", _named(r"\.onnx$")),
    ArchiveKind(
        "a zipped folder of weights",
        _named(r"\.(safetensors|bin|pth|pt|ckpt)$|(^|/)config\.json$"),
        name="transformers",
        arch="transformers",
        convert=NAME_FOLDER,
    ),
    ArchiveKind("a zip archive of images, not a network", _named(r"\.(png|jpe?g|bmp|gif|webp|tiff?)$")),
)


def identify_network_archive(path: Path, arch: str | None = None) -> Literal["pt2", "pth", "transformers"]:
    """Tell by the members of a zip file what network, or with `arch` what weights, it holds. Only its directory is
    parsed; nothing is unpacked.

    Raises `Failure`: bad_archive for a broken directory; else what the file is (torchscript_not_supported,
    unsafe_pickle, unknown_format) and how to convert it, or that it is not for this `arch` (network_rejected).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise Failure(
            Code.BAD_ARCHIVE, f"the zip archive cannot be read: {error}; it may be cut short. Send it again whole."
        ) from error
    kind = next((kind for kind in ARCHIVES if any(kind.member.search(name) for name in names)), None)
    library = arch and arch.partition("/")[0]
    if kind is None:
        raise Failure(
            Code.UNKNOWN_FORMAT, f"the file is a zip archive, but no network that torch.export saved. {EXPORT}."
        )
    if kind.name is not None and kind.arch == library:
        return kind.name
    if kind.name is None or library is None:
        raise Failure(kind.code, f"the file is {kind.title}. {kind.convert}.")
    remedy = HOLDS_ITS_NETWORK if kind.arch is None else f"{arch} reads {READ_WITH[library]}"
    raise Failure(Code.NETWORK_REJECTED, f"the file is {kind.title}. {remedy[:1].upper()}{remedy[1:]}.")
