"""Crafted network files: one for every way to run code or to lie that a `.pt2` reader must close.

Each entry of `CORPUS` writes one file. Where the file carries a payload, the payload makes the folder `canary`; after
reading (or uploading) the file that folder must not be there. `code` is the refusal; None means that the file is read
and the trap in it defused.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.errors import Code
from tests.engine.ingest.archives import CONSTANTS, GRAPH, Archive, good_archive

Change = Callable[[Archive, Path], None]
Tamper = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Crafted:
    """`says` is a part of the message that people get."""

    name: str
    code: Code | None
    says: str
    change: Change
    tamper: Tamper = bytes

    def write(self, path: Path, canary: Path) -> Path:
        archive = good_archive()
        self.change(archive, canary)
        archive.write(path)
        path.write_bytes(self.tamper(path.read_bytes()))
        return path


class _MakesFolder:
    """Unpickling this makes the canary folder."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._canary),)


def payload(canary: Path) -> bytes:
    return pickle.dumps(_MakesFolder(canary), protocol=2)


def torch_payload(canary: Path) -> bytes:
    """A file that `torch.load(weights_only=False)` unpickles."""
    import io

    import torch

    buffer = io.BytesIO()
    torch.save({"x": _MakesFolder(canary)}, buffer)
    return buffer.getvalue()


# Code that torch.export.load would run.


def pickled_weight(archive: Archive, canary: Path) -> None:
    entry = archive.weights["config"]["fc.bias"]
    entry["use_pickle"] = True
    archive.members[f"data/weights/{entry['path_name']}"] = torch_payload(canary)


def pickled_constant(archive: Archive, canary: Path) -> None:
    entry = archive.constants["config"]["table"]
    entry["use_pickle"] = True
    archive.members[f"data/constants/{entry['path_name']}"] = torch_payload(canary)


def object_member(kind: str) -> Change:
    def change(archive: Archive, canary: Path) -> None:
        archive.members[f"data/constants/{kind}_obj_0"] = payload(canary)
        archive.constants["config"]["thing"] = {
            "path_name": f"{kind}_obj_0",
            "is_param": False,
            "use_pickle": True,
            "tensor_meta": None,
        }

    return change


def pickled_sample_inputs(archive: Archive, canary: Path) -> None:
    archive.members["data/sample_inputs/model.pt"] = torch_payload(canary)


def legacy_member(name: str) -> Change:
    def change(archive: Archive, canary: Path) -> None:
        archive.members[name] = torch_payload(canary)

    return change


def code_as_size(archive: Archive, canary: Path) -> None:
    meta = archive.graph["tensor_values"]["image"]
    meta["sizes"][0]["as_expr"]["expr_str"] = f"__import__('os').mkdir({str(canary)!r})"


def compiled_library(name: str) -> Change:
    def change(archive: Archive, canary: Path) -> None:
        archive.members[name] = b"\x7fELF"

    return change


def code_as_guard(archive: Archive, canary: Path) -> None:
    archive.program["guards_code"] = [f"__import__('os').mkdir({str(canary)!r})"]


def quote_in_name(archive: Archive, canary: Path) -> None:
    name = f"fc.we\"+__import__('os').mkdir({str(canary)!r})+\"ight"
    archive.weights["config"][name] = archive.weights["config"].pop("fc.weight")
    for spec in archive.signature["input_specs"]:
        if spec.get("parameter", {}).get("parameter_name") == "fc.weight":
            spec["parameter"]["parameter_name"] = name


def quote_in_value_name(archive: Archive, canary: Path) -> None:
    text = json.dumps(archive.program)
    archive.program = json.loads(text.replace('"image"', json.dumps(f"i');__import__('os').mkdir({str(canary)!r})#")))


def keyword_in_name(archive: Archive, canary: Path) -> None:
    text = json.dumps(archive.program).replace("conv.", "class.forward.")
    archive.program = json.loads(text)
    config = archive.weights["config"]
    archive.weights["config"] = {key.replace("conv.", "class.forward."): value for key, value in config.items()}


def treespec(which: str, kind: str, context: object) -> Change:
    def change(archive: Archive, canary: Path) -> None:
        leaf: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
        document = [1, {"type": kind, "context": json.dumps(context), "children_spec": [leaf]}]
        archive.program["graph_module"]["module_call_graph"][0]["signature"][which] = json.dumps(document)

    return change


def target(name: str) -> Change:
    def change(archive: Archive, canary: Path) -> None:
        archive.node("relu_.default")["target"] = name

    return change


def system_call(archive: Archive, canary: Path) -> None:
    node = archive.node("relu_.default")
    node["target"] = "torch.os.mkdir"
    node["inputs"] = [{"name": "path", "arg": {"as_string": str(canary)}, "kind": 1}]


def custom_object_argument(archive: Archive, canary: Path) -> None:
    archive.node("relu_.default")["inputs"][0]["arg"] = {"as_custom_obj": {"name": "x", "class_fqn": "y"}}


# Tensors that lie.


def weight_meta(**changes: Any) -> Change:
    def change(archive: Archive, canary: Path) -> None:
        archive.weights["config"]["fc.weight"]["tensor_meta"].update(changes)

    return change


def sizes(*numbers: int) -> list[dict[str, int]]:
    return [{"as_int": number} for number in numbers]


def weight_path(archive: Archive, canary: Path) -> None:
    archive.weights["config"]["fc.weight"]["path_name"] = "../../../etc/passwd"


def integer_parameter(archive: Archive, canary: Path) -> None:
    weight_meta(dtype=2, sizes=sizes(2, 4), strides=sizes(4, 1), requires_grad=False)(archive, canary)


def missing_weight(archive: Archive, canary: Path) -> None:
    del archive.weights["config"]["fc.weight"]


# Documents that are not what they should be.


def document(content: bytes) -> Change:
    def change(archive: Archive, canary: Path) -> None:
        archive.program = None
        archive.members[GRAPH] = content

    return change


def without(field: str) -> Change:
    def change(archive: Archive, canary: Path) -> None:
        del archive.graph[field]

    return change


def schema_version(major: int) -> Change:
    def change(archive: Archive, canary: Path) -> None:
        archive.program["schema_version"]["major"] = major

    return change


def big_endian(archive: Archive, canary: Path) -> None:
    archive.members["byteorder"] = b"big"


def argument(**argument: Any) -> Change:
    """Give the ReLU another argument."""

    def change(archive: Archive, canary: Path) -> None:
        archive.node("relu_.default")["inputs"][0].update(argument)

    return change


def no_argument(archive: Archive, canary: Path) -> None:
    archive.node("relu_.default")["inputs"] = []


def same_argument_twice(archive: Archive, canary: Path) -> None:
    archive.node("relu_.default")["inputs"] *= 2


def defined_twice(archive: Archive, canary: Path) -> None:
    archive.graph["nodes"].insert(0, archive.graph["nodes"][0])


def false_shapes(archive: Archive, canary: Path) -> None:
    """Every step is allowed, but the matrix does not fit."""
    weight_meta(sizes=sizes(4, 2), strides=sizes(2, 1))(archive, canary)


def buffer_changed(archive: Archive, canary: Path) -> None:
    name = archive.signature["output_specs"][0]["user_output"]["arg"]["as_tensor"]["name"]
    mutation = {"buffer_mutation": {"arg": {"name": name}, "buffer_name": "bn.running_mean"}}
    archive.signature["output_specs"][0] = mutation


def too_large(archive: Archive, canary: Path) -> None:
    """A small file whose first convolution would give a tebibyte."""
    for position in (2, 3):
        archive.graph["tensor_values"]["image"]["sizes"][position] = {"as_int": 200_000}


def not_finite(archive: Archive, canary: Path) -> None:
    path = archive.weights["config"]["fc.bias"]["path_name"]
    archive.members[f"data/weights/{path}"] = struct.pack("<2f", float("nan"), float("inf"))


def other_device(archive: Archive, canary: Path) -> None:
    text = json.dumps(archive.program)
    archive.program = json.loads(text.replace('{"type": "cpu", "index": null}', '{"type": "cuda", "index": 3}'))


# Containers that lie.


def as_it_is(archive: Archive, canary: Path) -> None:
    pass


def member(name: str, content: bytes = b"x") -> Change:
    def change(archive: Archive, canary: Path) -> None:
        archive.members[name] = content

    return change


def compressed(archive: Archive, canary: Path) -> None:
    archive.compression[GRAPH] = zipfile.ZIP_DEFLATED


def without_member(name: str) -> Change:
    def change(archive: Archive, canary: Path) -> None:
        del archive.members[name]

    return change


def _directory(content: bytes) -> int:
    """Where the directory starts (APPNOTE 4.3.16); the pickled sample inputs are a zip archive of their own."""
    (start,) = struct.unpack_from("<I", content, content.rindex(b"PK\x05\x06") + 16)
    return int(start)


def renamed_in_directory(old: bytes, new: bytes, both: bool = False) -> Tamper:
    """Change a name of the same length in the directory, and with `both` in the member's own header."""

    def tamper(content: bytes) -> bytes:
        start = _directory(content)
        head = content[:start].replace(old, new) if both else content[:start]
        return head + content[start:].replace(old, new)

    return tamper


def directory_field(offset: int, value: bytes) -> Tamper:
    """Overwrite a field of the first entry of the directory (APPNOTE 4.3.12)."""

    def tamper(content: bytes) -> bytes:
        at = _directory(content) + offset
        return content[:at] + value + content[at + len(value) :]

    return tamper


def flipped_bit(content: bytes) -> bytes:
    """Change one byte of the first member."""
    name_length, extra_length = struct.unpack_from("<HH", content, 26)
    at = 30 + name_length + extra_length
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def with_prefix(content: bytes) -> bytes:
    return b"\x02" + bytes(7) + b"{}" + b" " * 90 + content


def with_suffix(content: bytes) -> bytes:
    return content + b"after the end"


def cut_short(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3]


CORPUS: tuple[Crafted, ...] = (
    Crafted("pickled_weight", Code.NETWORK_REJECTED, "stored as a pickle", pickled_weight),
    Crafted("pickled_constant", Code.NETWORK_REJECTED, "stored as a pickle", pickled_constant),
    Crafted("opaque_object", Code.NETWORK_REJECTED, "pickled object", object_member("opaque")),
    Crafted("custom_object", Code.NETWORK_REJECTED, "pickled object", object_member("custom")),
    Crafted("pickled_sample_inputs", None, "", pickled_sample_inputs),
    Crafted("legacy_weights", Code.NETWORK_REJECTED, "in two ways", legacy_member("data/weights/model.pt")),
    Crafted("legacy_constants", Code.NETWORK_REJECTED, "in two ways", legacy_member("data/constants/model.pt")),
    Crafted("legacy_state", Code.NETWORK_REJECTED, "in two ways", legacy_member("serialized_state_dict.pt")),
    Crafted("code_as_size", Code.NETWORK_REJECTED, "not a symbolic size", code_as_size),
    Crafted("compiled_library", Code.NETWORK_REJECTED, "machine code", compiled_library("data/aotinductor/m/a.so")),
    Crafted("compiled_path", Code.BAD_ARCHIVE, "path out", compiled_library("data/aotinductor/../../../x.so")),
    Crafted("code_as_guard", None, "", code_as_guard),
    Crafted("quote_in_name", None, "", quote_in_name),
    Crafted("quote_in_value_name", None, "", quote_in_value_name),
    Crafted("keyword_in_name", None, "", keyword_in_name),
    Crafted(
        "defaultdict_output",
        Code.NETWORK_REJECTED,
        "plain dict",
        treespec(
            "out_spec",
            "collections.defaultdict",
            {"default_factory_module": "os", "default_factory_name": "getcwd", "dict_context": ["x"]},
        ),
    ),
    Crafted(
        "defaultdict_input",
        Code.NETWORK_REJECTED,
        "plain dict",
        treespec("in_spec", "collections.defaultdict", {"default_factory_module": "antigravity"}),
    ),
    Crafted(
        "foreign_output_class", Code.NETWORK_REJECTED, "tuples, lists", treespec("out_spec", "os.environ", {"a": 1})
    ),
    Crafted(
        "broken_treespec", Code.NETWORK_REJECTED, "do not match", treespec("out_spec", "builtins.dict", ["a", "b"])
    ),
    Crafted("system_call", Code.NETWORK_REJECTED, "not an operator", system_call),
    Crafted("dunder_target", Code.UNSUPPORTED_OP, "not supported", target("torch.ops.aten.__class__.mro")),
    Crafted("custom_library", Code.UNSUPPORTED_OP, "not a plain ATen", target("torch.ops.evil.run.default")),
    Crafted("reads_a_file", Code.UNSUPPORTED_OP, "from_file", target("torch.ops.aten.from_file.default")),
    Crafted("resizes", Code.UNSUPPORTED_OP, "resize_", target("torch.ops.aten.resize_.default")),
    Crafted("raw_strides", Code.UNSUPPORTED_OP, "as_strided", target("torch.ops.aten.as_strided.default")),
    Crafted("sets_storage", Code.UNSUPPORTED_OP, "set_", target("torch.ops.aten.set_.source_Tensor")),
    Crafted("draws_random", Code.NETWORK_REJECTED, "module.eval()", target("torch.ops.aten.bernoulli.default")),
    Crafted("custom_object_argument", Code.NETWORK_REJECTED, "as_custom_obj", custom_object_argument),
    Crafted(
        "stride_zero", Code.NETWORK_REJECTED, "claims", weight_meta(sizes=sizes(1 << 20, 1 << 20), strides=sizes(0, 0))
    ),
    Crafted("beyond_bytes", Code.NETWORK_REJECTED, "claims", weight_meta(storage_offset={"as_int": 1})),
    Crafted("long_stride", Code.NETWORK_REJECTED, "claims", weight_meta(strides=sizes(1 << 40, 1))),
    Crafted("negative_stride", Code.NETWORK_REJECTED, "whole number", weight_meta(strides=sizes(-1, 1))),
    Crafted(
        "huge_and_empty", Code.NETWORK_REJECTED, "empty", weight_meta(sizes=sizes(0, 1 << 62), strides=sizes(1, 1))
    ),
    Crafted("size_overflow", Code.NETWORK_REJECTED, "claims", weight_meta(sizes=sizes(1 << 62, 1 << 62))),
    Crafted(
        "many_dimensions", Code.NETWORK_REJECTED, "sizes", weight_meta(sizes=sizes(*[1] * 12), strides=sizes(*[1] * 12))
    ),
    Crafted("fewer_strides", Code.NETWORK_REJECTED, "strides", weight_meta(strides=sizes(1))),
    Crafted("sparse_weight", Code.NETWORK_REJECTED, "to_dense", weight_meta(layout=2)),
    Crafted("wide_complex_weight", Code.NETWORK_REJECTED, "element type", weight_meta(dtype=11)),
    Crafted(
        "complex_weight",
        Code.NETWORK_REJECTED,
        "view_as_complex",
        weight_meta(dtype=10, sizes=sizes(1), strides=sizes(1)),
    ),
    Crafted("weight_path", Code.NETWORK_REJECTED, "no tensor file", weight_path),
    Crafted("missing_weight", Code.NETWORK_REJECTED, "does not hold", missing_weight),
    Crafted("integer_parameter", Code.NETWORK_REJECTED, "already quantized", integer_parameter),
    Crafted("not_json", Code.NETWORK_REJECTED, "schema", document(b"{")),
    Crafted("not_text", Code.NETWORK_REJECTED, "schema", document(b"\xff\xfe\x00")),
    Crafted("other_json", Code.NETWORK_REJECTED, "schema", document(b"[1, 2]")),
    Crafted("deep_json", Code.NETWORK_REJECTED, "schema", document(b"[" * 100_000)),
    Crafted("without_nodes", Code.NETWORK_REJECTED, "nodes", without("nodes")),
    Crafted("without_tensor_values", Code.NETWORK_REJECTED, "tensor_values", without("tensor_values")),
    Crafted("newer_schema", Code.NETWORK_REJECTED, "schema 9", schema_version(9)),
    Crafted("big_endian", Code.NETWORK_REJECTED, "big-endian", big_endian),
    Crafted("wrong_kind", Code.NETWORK_REJECTED, "given a string", argument(arg={"as_string": "x"})),
    Crafted("two_kinds", Code.NETWORK_REJECTED, "exactly one", argument(arg={"as_int": 1, "as_bool": True})),
    Crafted("huge_number", Code.NETWORK_REJECTED, "schema", argument(arg={"as_int": 1 << 70})),
    Crafted("unknown_argument", Code.NETWORK_REJECTED, "not given `self`", argument(name="evil")),
    Crafted(
        "undefined_value", Code.NETWORK_REJECTED, "before it is defined", argument(arg={"as_tensor": {"name": "?"}})
    ),
    Crafted("no_argument", Code.NETWORK_REJECTED, "not given `self`", no_argument),
    Crafted("same_argument_twice", Code.NETWORK_REJECTED, "twice", same_argument_twice),
    Crafted("defined_twice", Code.NETWORK_REJECTED, "defined twice", defined_twice),
    Crafted("false_shapes", Code.NETWORK_REJECTED, "does not run", false_shapes),
    Crafted("buffer_changed", Code.NETWORK_REJECTED, "keep no state", buffer_changed),
    Crafted("too_large", Code.NETWORK_REJECTED, "GiB", too_large),
    Crafted("not_finite", None, "", not_finite),
    Crafted("other_device", None, "", other_device),
    Crafted("extra_file", None, "", member("extra/notes.txt")),
    Crafted("unknown_member", Code.NETWORK_REJECTED, "does not belong", member("data/readme.txt")),
    Crafted("second_program", Code.NETWORK_REJECTED, "another program", member("models/other.json", b"{}")),
    Crafted("no_graph", Code.UNKNOWN_FORMAT, "modelpress prepare", without_member(GRAPH)),
    Crafted("no_constants", Code.BAD_ARCHIVE, "no member", without_member(CONSTANTS)),
    Crafted("compressed", Code.BAD_ARCHIVE, "compressed", compressed),
    Crafted(
        "two_members_one_name",
        Code.BAD_ARCHIVE,
        "twice",
        as_it_is,
        renamed_in_directory(b"data/weights/weight_1", b"data/weights/weight_0", both=True),
    ),
    Crafted(
        "two_roots",
        Code.BAD_ARCHIVE,
        "one root",
        as_it_is,
        renamed_in_directory(b"small/byteorder", b"other/byteorder"),
    ),
    Crafted("parent_path", Code.BAD_ARCHIVE, "path out", member("../../../canary")),
    Crafted(
        "absolute_path",
        Code.BAD_ARCHIVE,
        "path out",
        member("zz", b""),
        renamed_in_directory(b"small/zz", b"/tmp/xzz", both=True),
    ),
    Crafted(
        "symbolic_link", Code.BAD_ARCHIVE, "link", as_it_is, directory_field(38, struct.pack("<I", 0o120777 << 16))
    ),
    Crafted("encrypted", Code.BAD_ARCHIVE, "encrypted", as_it_is, directory_field(8, struct.pack("<H", 1))),
    Crafted("changed_byte", Code.BAD_ARCHIVE, "CRC", as_it_is, flipped_bit),
    Crafted(
        "two_names",
        Code.BAD_ARCHIVE,
        "disagree",
        as_it_is,
        renamed_in_directory(b"weights/weight_0", b"weights/weight_9"),
    ),
    Crafted("bytes_before", Code.UNKNOWN_FORMAT, "safetensors", as_it_is, with_prefix),
    Crafted("bytes_after", Code.BAD_ARCHIVE, "end", as_it_is, with_suffix),
    Crafted("cut_short", Code.BAD_ARCHIVE, "cut short", as_it_is, cut_short),
)
