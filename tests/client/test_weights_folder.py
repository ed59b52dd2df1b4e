from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from modelpress.cli import main
from modelpress.outcomes import PrepareError
from modelpress.weights_folder import as_one_file
from tests.engine.ingest.named.folders import small_network


def _folder(at: Path) -> Path:
    at.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors", "model.safetensors.index.json", "run.py"):
        (at / name).write_text(name)
    return at


def test_of_a_folder_the_configuration_and_the_weights_are_sent_as_they_are(tmp_path: Path) -> None:
    with as_one_file(_folder(tmp_path / "bert")) as packed:
        with zipfile.ZipFile(packed) as archive:
            assert archive.namelist() == [
                "bert/config.json",
                "bert/model.safetensors",
                "bert/model.safetensors.index.json",
            ]
            assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
            assert archive.read("bert/model.safetensors") == b"model.safetensors"
        first = packed.read_bytes()
    assert not packed.exists()
    with as_one_file(tmp_path / "bert") as again:
        assert again.read_bytes() == first


def test_a_file_is_sent_itself(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with as_one_file(tmp_path / "x") as file:
        assert file == tmp_path / "x"


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PrepareError, match="without config"), as_one_file(tmp_path):
        pass


def test_the_command_checks_a_folder_as_the_service_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_network("DistilBertModel").save_pretrained(tmp_path / "net")
    command = ["check", str(tmp_path / "net"), "--arch", "transformers", "--input-shape", "1,7", "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["inputs"][0]["shape"]) == ("transformers", [None, 7])
    assert main(["check", str(tmp_path / "net"), "--arch", "timm/resnet18"]) == 1
    assert "or a state dict of torch.save" in capsys.readouterr().err
