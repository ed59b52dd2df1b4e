"""Files of networks: rows 35 to 68. What `.pt2` and weight files hold is crafted in `tests/engine/ingest`."""

from __future__ import annotations

import io
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import modelpress
from modelpress import PrepareError
from models.errors import RETRYABLE, Code
from tests.api.stories import problem_of
from tests.bad_inputs.place import Place
from tests.bad_inputs.rows import File, Row, row
from tests.engine.ingest.archives import good_archive
from tests.engine.ingest.corpus import CORPUS, directory_field, target
from tests.engine.ingest.named.checkpoints import CHECKPOINTS
from tests.engine.ingest.onnx.test_archive import linked
from tests.engine.ingest.onnx.test_refusals import REFUSED, changed, deep
from tests.networks import NETWORKS, export_pt2
from worker.engine.failures import as_failure
from worker.engine.graph.lift import lift
from worker.engine.ingest.read import read_network

TIMM = {"arch": "timm/resnet10t"}
PRUNE = {"step": "prune", "amount": {"channels": 0.5}}


def pt2(name: str, code: Code | None, *, warning: str | None = None) -> File:
    """A file of `tests/engine/ingest/corpus.py`."""
    crafted = next(crafted for crafted in CORPUS if crafted.name == name)
    return File(
        lambda canary: crafted.write(canary.with_name("crafted.pt2"), canary).read_bytes(),
        code,
        crafted.says,
        warning=warning,
    )


def weights(name: str, code: Code, *, at_once: bool = False) -> File:
    """A file of `tests/engine/ingest/named/checkpoints.py`, sent under a name that reads such files."""
    crafted = next(crafted for crafted in CHECKPOINTS if crafted.name == name)
    return File(crafted.make, code, crafted.says, at_once=at_once, params=TIMM)


def onnx(name: str, code: Code) -> File:
    """A file of `tests/engine/ingest/onnx/test_refusals.py`."""
    change, _, says = REFUSED[name]
    return File(lambda _: bytes(changed(change).SerializeToString()), code, says)


def exported(name: str) -> Callable[[Path], bytes]:
    return lambda canary: export_pt2(*NETWORKS[name](), canary.with_name("network.pt2")).read_bytes()


class Norms(nn.Module):
    """Parameters, and none of them a channel that could go."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def file_of(module: nn.Module) -> Callable[[Path], bytes]:
    return lambda canary: export_pt2(module, (torch.randn(2, 4),), canary.with_name("network.pt2")).read_bytes()


def job_on_weights_that_are_not_finite(place: Place) -> None:
    crafted = pt2("not_finite", None)
    assert callable(crafted.content)
    network = place.ready("/models", crafted.content(place.canary))
    refused = place.client.post("/jobs", json={"model": network, "preset": "half"})
    errors = {error["pointer"]: error["message"] for error in problem_of(refused, 422, "invalid_spec")["errors"]}
    assert "finite weights" in errors["/model"]


def job_without_anything_to_prune(place: Place) -> None:
    network = place.ready("/models", file_of(Norms())(place.canary))
    refused = place.client.post("/jobs", json={"model": network, "steps": [PRUNE]})
    [error] = problem_of(refused, 422, "invalid_spec")["errors"]
    assert error["pointer"] == "/steps/0"
    assert "No channels of this network can be removed" in error["message"]


def tied_weights(place: Place) -> None:
    module, inputs = NETWORKS["tied_language_model"]()
    path = export_pt2(module, inputs, place.folder / "tied.pt2")
    row = place.inspected("/models", path.read_bytes())
    assert (row["status"], row["parameters"]) == ("ready", sum(value.numel() for value in module.parameters()))
    graph = lift(read_network(path)).graph
    assert graph.get_parameter("embedding.weight") is graph.get_parameter("head.weight")
    with torch.no_grad():
        assert torch.equal(graph(*inputs), module(*inputs))


def out_of_gpu_memory(place: Place) -> None:
    """What torch says, and what a job that fails so carries; it takes a GPU to fill one."""
    said = (
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 15.77 GiB of which 3.25 GiB is "
        "free. Process 1 has 12.52 GiB memory in use."
    )
    failure = as_failure(torch.OutOfMemoryError(said))
    assert failure.code is Code.OUT_OF_GPU_MEMORY
    assert "20.00 GiB" in failure.message
    assert "3.25 GiB" in failure.message
    assert not failure.retryable
    assert Code.OUT_OF_GPU_MEMORY not in RETRYABLE


def endless_loop(canary: Path) -> bytes:
    archive = good_archive()
    target("torch.ops.higher_order.while_loop")(archive, canary)
    return archive.write(canary.with_name("loop.pt2")).read_bytes()


def branch_on_data(place: Place) -> None:
    """Exporting is done where the code is: by `modelpress prepare`."""
    with pytest.raises(PrepareError) as caught:
        modelpress.prepare(Branches(), torch.randn(2, 4))
    assert "x.sum() > 0" in str(caught.value)
    assert f"{__file__}:" in str(caught.value)


def zip_of(members: int) -> bytes:
    """A directory (APPNOTE 4.3.12) of so many entries, all of one member without bytes."""
    first = b"x/models/model.json"
    local = struct.pack("<IHHHHHIIIHH", 0x04034B50, 20, 0, 0, 0, 0, 0, 0, 0, len(first), 0) + first
    names = [first, *(b"x/data/weights/%06d" % number for number in range(members - 1))]
    fields = (0x02014B50, 20, 20, 0, 0, 0, 0, 0, 0, 0)
    entries = b"".join(struct.pack("<IHHHHHHIIIHHHHHII", *fields, len(n), 0, 0, 0, 0, 0, 0) + n for n in names)
    at = len(local) + len(entries)
    end64 = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, members, members, len(entries), len(local))
    locator = struct.pack("<IIQI", 0x07064B50, 0, at, 1)
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return local + entries + end64 + locator + end


def nested_zip() -> bytes:
    inner = bytes(1 << 20)
    for _ in range(3):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("small/models/model.json", inner)
        inner = buffer.getvalue()
    return inner


def lying_zip64(canary: Path) -> bytes:
    """Each size of the first entry is in a zip64 field that is not there (APPNOTE 4.5.3)."""
    content = good_archive().write(canary.with_name("zip64.pt2")).read_bytes()
    return directory_field(20, b"\xff" * 8)(content)


def scripted(_: Path) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


def tar_with(kind: bytes) -> Callable[[Path], bytes]:
    return lambda canary: linked(canary.with_name("network.tar"), kind).read_bytes()


SAFETENSORS = (
    weights("header_of_2_64", Code.UNKNOWN_FORMAT, at_once=True),
    weights("header_over_100_MB", Code.NETWORK_REJECTED),
    *(
        weights(name, Code.NETWORK_REJECTED)
        for name in (
            "header_cut", "overlap", "gap", "trailing", "shape_is_not_bytes", "shape_overflows", "key_twice",
            "unknown_type", "not_utf_8",
        )
    ),
)  # fmt: skip
ARCHIVES = (
    *(
        pt2(name, Code.BAD_ARCHIVE)
        for name in (
            "two_members_one_name", "two_roots", "parent_path", "absolute_path", "symbolic_link", "encrypted",
            "changed_byte", "two_names", "bytes_after", "cut_short",
        )
    ),
    File(lying_zip64, Code.BAD_ARCHIVE),
)  # fmt: skip

ROWS: tuple[Row, ...] = (
    row(
        35,
        "pickle with os.system",
        weights("no_storage", Code.UNSAFE_PICKLE),
        weights("call", Code.UNSAFE_PICKLE),
        weights("call_in_optimizer", Code.UNSAFE_PICKLE),
        weights("plain_pickle", Code.UNSAFE_PICKLE, at_once=True),
    ),
    row(36, "forged sparse tensor", weights("forged_csr", Code.SPARSE_NOT_SUPPORTED)),
    row(37, "deflated checkpoint", weights("deflated", Code.COMPRESSED_RECORD)),
    row(
        38,
        "stride zero",
        weights("stride_zero", Code.LOGICAL_SIZE_EXCEEDS_STORAGE),
        pt2("stride_zero", Code.NETWORK_REJECTED),
    ),
    row(39, "nested 200,000 deep", weights("nested", Code.TOO_DEEP), weights("nested_tuples", Code.TOO_DEEP)),
    row(40, "legacy checkpoint", weights("legacy", Code.LEGACY_FORMAT, at_once=True)),
    row(41, "pickle of a whole module", weights("module", Code.MODULE_PICKLE_NOT_SUPPORTED)),
    row(
        42,
        "TorchScript",
        weights("torchscript", Code.TORCHSCRIPT_NOT_SUPPORTED),
        File(scripted, Code.TORCHSCRIPT_NOT_SUPPORTED),
    ),
    row(
        43,
        "pt2 with pickled tensors",
        pt2("pickled_weight", Code.NETWORK_REJECTED),
        pt2("pickled_constant", Code.NETWORK_REJECTED),
    ),
    row(
        44,
        "pt2 with objects",
        pt2("opaque_object", Code.NETWORK_REJECTED),
        pt2("custom_object", Code.NETWORK_REJECTED),
    ),
    row(45, "pt2 with machine code", pt2("compiled_library", Code.NETWORK_REJECTED)),
    row(
        46,
        "pt2 with legacy weights",
        pt2("legacy_weights", Code.NETWORK_REJECTED),
        pt2("legacy_constants", Code.NETWORK_REJECTED),
    ),
    row(47, "code as a size", pt2("code_as_size", Code.NETWORK_REJECTED)),
    row(48, "system call as an operator", pt2("system_call", Code.NETWORK_REJECTED)),
    row(
        49,
        "defaultdict of a module",
        pt2("defaultdict_output", Code.NETWORK_REJECTED),
        pt2("defaultdict_input", Code.NETWORK_REJECTED),
    ),
    row(50, "pickled sample inputs", pt2("pickled_sample_inputs", None)),
    row(51, "archive that lies", *ARCHIVES),
    row(
        52,
        "compressed archive",
        pt2("compressed", Code.BAD_ARCHIVE),
        File(nested_zip(), Code.BAD_ARCHIVE, "compressed"),
    ),
    row(53, "a million records", File(lambda _: zip_of(100_001), Code.BAD_ARCHIVE, "100000")),
    row(54, "safetensors that lie", *SAFETENSORS),
    row(55, "path as a tensor's name", weights("path_as_name", Code.NETWORK_REJECTED)),
    row(56, "empty and huge tensor", weights("empty_2_62", Code.NETWORK_REJECTED)),
    row(57, "weights of another network", weights("other_names", Code.NETWORK_REJECTED)),
    row(
        58,
        "ONNX with data elsewhere",
        onnx("weights_elsewhere", Code.NETWORK_REJECTED),
        onnx("weights_in_etc", Code.NETWORK_REJECTED),
        onnx("weights_above", Code.NETWORK_REJECTED),
        File(tar_with(tarfile.SYMTYPE), Code.BAD_ARCHIVE, "plain file"),
        File(tar_with(tarfile.LNKTYPE), Code.BAD_ARCHIVE, "plain file"),
    ),
    row(
        59,
        "ONNX that would allocate terabytes",
        onnx("constant_of_terabytes", Code.NETWORK_REJECTED),
        onnx("too_large", Code.NETWORK_REJECTED),
        onnx("unknown_attribute", Code.NETWORK_REJECTED),
    ),
    row(
        60,
        "ONNX of another domain or opset",
        onnx("other_domain", Code.UNSUPPORTED_OP),
        onnx("opset_of_the_future", Code.NETWORK_REJECTED),
        onnx("own_function", Code.NETWORK_REJECTED),
    ),
    row(61, "protobuf nested without end", File(lambda _: deep(), Code.NETWORK_REJECTED, "no ONNX network")),
    row(
        62,
        "NaN weights",
        pt2("not_finite", None, warning="nonfinite_weights"),
        job_on_weights_that_are_not_finite,
    ),
    row(63, "nothing to compress", File(file_of(nn.ReLU()), Code.NOT_TRAINABLE), job_without_anything_to_prune),
    row(
        64,
        "quantized already",
        pt2("integer_parameter", Code.NETWORK_REJECTED),
        onnx("quantized", Code.NETWORK_REJECTED),
    ),
    row(65, "tied weights", tied_weights),
    row(66, "more than the GPU's memory", out_of_gpu_memory),
    row(
        67,
        "loop without end",
        onnx("loop", Code.NETWORK_REJECTED),
        File(endless_loop, Code.UNSUPPORTED_OP, "while_loop"),
    ),
    row(68, "control flow by data", branch_on_data, onnx("branch_on_data", Code.NETWORK_REJECTED)),
)
"""Ours is stricter, or later, than the list in three places. 55: a name may be a path in every format that is read
(`quote_in_name` and `hostile_names` in the engine's tests); with `arch` it is simply no name of that network. 62: there
is no `allow_nonfinite`, since nothing could be compared with such a network. 67: no loop is read at all, so none can
stall a job; one that stalls by other means is promise P10."""
