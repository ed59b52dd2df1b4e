"""Files of torch 2.5 to 2.8, which kept tensors in files of torch.save: written here as those versions wrote them, so
that one thing can be changed at a time. `test_files_of_older_torch.py` has files that they wrote themselves.

Sources: torch/export/__init__.py `save` (2.5 to 2.7), torch/export/pt2_archive/_package.py `package_pt2` (2.8), and
torch/_export/serde/schema.py of each. The bytes of torch.save are this version's, whose layout is the same.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._export.serde.serialize import SerializedArtifact, serialize
from torch.export import ExportedProgram

from models.errors import Code, Failure
from tests.engine.ingest.corpus import torch_payload
from tests.networks import NETWORKS
from worker.engine.graph.lift import lift
from worker.engine.ingest.read import read_network

Files = dict[str, bytes]


def exported(name: str, core: bool) -> tuple[ExportedProgram, SerializedArtifact]:
    module, args = NETWORKS[name]()
    dynamic = tuple({0: torch.export.Dim.AUTO} for _ in args)
    program = torch.export.export(module, tuple(arg.clone() for arg in args), dynamic_shapes=dynamic)
    program = program.run_decompositions() if core else program
    return program, serialize(program)


def older_schema(document: Any, major: int, minor: int) -> Any:
    """The document with what schema 8.2 and before wrote otherwise: nothing as an empty list, symbols by their names,
    no names of nodes, kinds of arguments or guards."""
    if isinstance(document, list):
        return [older_schema(item, major, minor) for item in document]
    if not isinstance(document, dict):
        return document
    document = {key: older_schema(value, major, minor) for key, value in document.items()}
    if "as_none" in document:
        document["as_none"] = []
    if "expr_str" in document:
        document["expr_str"] = re.sub(r"Symbol\('(\w+)'[^)]*\)", r"\1", document["expr_str"])
    if "schema_version" in document:
        document["schema_version"] = {"major": major, "minor": minor}
        document["dialect"] = "TRAINING"
        del document["guards_code"]
    if "target" in document:
        document.pop("name", None)
        document.pop("is_hop_single_tensor_return", None)
    if set(document) == {"name", "arg", "kind"}:
        del document["kind"]
    return document


def before_2_8(artifact: SerializedArtifact, major: int, minor: int) -> Files:
    """A zip file without a root folder."""
    document = older_schema(json.loads(artifact.exported_program), major, minor)
    return {
        "serialized_exported_program.json": json.dumps(document).encode(),
        "serialized_state_dict.pt": artifact.state_dict,
        "serialized_constants.pt": artifact.constants,
        "serialized_example_inputs.pt": artifact.example_inputs,
        "version": f"{major}.{minor}".encode(),
        "extra_files/notes.txt": b"hello",
    }


def of_2_8(artifact: SerializedArtifact) -> Files:
    document = json.loads(artifact.exported_program)
    document["schema_version"] = {"major": 8, "minor": 8}
    files = {
        "archive_format": b"pt2",
        "archive_version": b"0",
        "models/model.json": json.dumps(document).encode(),
        "data/weights/model.pt": artifact.state_dict,
        "data/constants/model.pt": artifact.constants,
        "data/sample_inputs/model.pt": artifact.example_inputs,
        "byteorder": b"little",
        ".data/serialization_id": b"0" * 40,
    }
    return {f"network/{name}": content for name, content in files.items()}


def write(files: Files, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


VERSIONS: dict[str, tuple[Callable[[SerializedArtifact], Files], bool]] = {
    "2.5": (lambda artifact: before_2_8(artifact, 7, 3), True),  # its export decomposed to core ATen
    "2.6": (lambda artifact: before_2_8(artifact, 8, 2), False),
    "2.8": (of_2_8, False),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["resnet18", "two_towers", "tied_language_model"])
def test_a_file_of_an_older_version_is_read_to_the_same_network(version: str, name: str, tmp_path: Path) -> None:
    layout, core = VERSIONS[version]
    program, artifact = exported(name, core)
    subject = lift(read_network(write(layout(artifact), tmp_path / "x.pt2")))
    inputs = subject.example_inputs(3)
    with torch.no_grad():
        expected, found = program.module()(*inputs), subject.graph(*inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    trained = {name for name, parameter in program.named_parameters() if parameter.requires_grad}
    renamed = {subject.renames.get(name, name) for name in trained}
    learning = {name for name, parameter in subject.graph.named_parameters(remove_duplicate=False)}
    assert renamed <= learning
    assert all(parameter.requires_grad for parameter in subject.graph.parameters())


def test_tied_parameters_of_an_older_file_stay_tied(tmp_path: Path) -> None:
    _, artifact = exported("tied_language_model", core=False)
    subject = lift(read_network(write(of_2_8(artifact), tmp_path / "x.pt2")))
    assert subject.graph.get_parameter("embedding.weight") is subject.graph.get_parameter("head.weight")


def refusal(files: Files, path: Path) -> Failure:
    with pytest.raises(Failure) as caught:
        read_network(write(files, path))
    return caught.value


@pytest.mark.parametrize("member", ["serialized_state_dict.pt", "serialized_constants.pt"])
def test_a_pickle_that_runs_code_in_an_older_file_is_refused_unrun(member: str, tmp_path: Path) -> None:
    _, artifact = exported("resnet18", core=False)
    canary = tmp_path / "canary"
    files = {**before_2_8(artifact, 8, 2), member: torch_payload(canary)}
    assert refusal(files, tmp_path / "x.pt2").code == Code.UNSAFE_PICKLE
    assert not canary.exists()


def test_example_inputs_of_an_older_file_are_never_opened(tmp_path: Path) -> None:
    _, artifact = exported("resnet18", core=False)
    canary = tmp_path / "canary"
    files = {**before_2_8(artifact, 8, 2), "serialized_example_inputs.pt": torch_payload(canary)}
    read_network(write(files, tmp_path / "x.pt2"))
    assert not canary.exists()


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_an_older_file_whose_parts_do_not_fit_is_refused_in_words(tmp_path: Path) -> None:
    _, artifact = exported("resnet18", core=False)
    files = before_2_8(artifact, 8, 2)
    without = {name: content for name, content in files.items() if name != "serialized_constants.pt"}
    cases: list[tuple[Files, str]] = [
        (without, "serialized_constants.pt"),
        (before_2_8(artifact, 5, 1), "schema 5.1"),
        ({**files, "serialized_state_dict.pt": saved([1, 2])}, "something else than tensors"),
        ({**files, "serialized_constants.pt": saved({"conv1.weight": torch.ones(2)})}, "a weight and a constant"),
        ({**files, "serialized_state_dict.pt": saved({"conv1.weight": nn.Parameter(torch.ones(2))})}, "does not hold"),
        ({**files, "serialized_state_dict.json": b"{}"}, "2.5 to 2.15"),
    ]
    for changed, says in cases:
        assert says in refusal(changed, tmp_path / "x.pt2").message
