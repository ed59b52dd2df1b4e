"""Networks to `.pt2` files: what is in them, what is not, and what people are told when it cannot be done."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import modelpress
from modelpress import PrepareError
from tests import torchvision_ops


def _reload(written: bytes) -> Any:
    return torch.export.load(io.BytesIO(written))


class _Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.drop(self.features(x).mean((2, 3))))
        return logits


def test_the_file_computes_what_the_module_computes_at_any_batch_size() -> None:
    torch.manual_seed(0)
    network = _Small()
    exported = _reload(modelpress.prepare(network, torch.randn(1, 1, 12, 12))).module(check_guards=False)
    network.eval()
    for batch in (1, 2, 7):
        x = torch.randn(batch, 1, 12, 12)
        assert torch.equal(exported(x), network(x))


def test_prepare_leaves_every_part_of_the_module_in_the_mode_it_had() -> None:
    network = _Small().train()
    network.features[1].eval()
    before = [part.training for part in network.modules()]
    modelpress.prepare(network, torch.randn(2, 1, 12, 12))
    assert [part.training for part in network.modules()] == before


def test_the_mode_is_restored_when_the_export_fails() -> None:
    network = _Small().train()
    with pytest.raises(PrepareError):
        modelpress.prepare(network, torch.randn(2, 3, 12, 12))
    assert network.training
    assert network.drop.training


def test_dropout_is_exported_in_eval_mode() -> None:
    program = _reload(modelpress.prepare(_Small().train(), torch.randn(2, 1, 12, 12)))
    dropouts = [node for node in program.graph.nodes if str(node.target) == "aten.dropout.default"]
    assert [node.args[2] for node in dropouts] == [False]


def test_a_sliced_example_does_not_bring_its_storage_nor_its_values() -> None:
    network, images = _Small(), torch.full((5000, 1, 12, 12), 0.12345)
    whole = modelpress.prepare(network, images[:2])
    assert len(whole) < 30_000
    assert images[0, 0, 0, :1].numpy().tobytes() not in whole


def test_a_parameter_that_is_a_view_does_not_bring_its_storage_and_stays_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode = nn.Linear(16, 4, bias=False)
            self.encode.weight = nn.Parameter(torch.randn(4000, 16)[:4])
            self.decode = nn.Linear(16, 4, bias=False)
            self.decode.weight = self.encode.weight

        def forward(self, x: Tensor) -> Tensor:
            decoded: Tensor = self.encode(x) + self.decode(x)
            return decoded

    network = Tied()
    written = modelpress.prepare(network, torch.randn(2, 16))
    assert len(written) < 20_000
    state = _reload(written).state_dict
    assert torch.equal(state["encode.weight"], network.encode.weight)
    assert state["encode.weight"].data_ptr() == state["decode.weight"].data_ptr()


def test_the_file_holds_no_path_and_no_source_line_of_the_person() -> None:
    written = modelpress.prepare(_Small(), torch.randn(2, 1, 12, 12))
    assert __file__.encode() not in written
    assert b"self.features(x)" not in written


def test_a_stored_zip_is_written_beside_the_target_and_moved_there(tmp_path: Path) -> None:
    path = modelpress.prepare(_Small(), torch.randn(2, 1, 12, 12), tmp_path / "net.pt2")
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt2"]
    with zipfile.ZipFile(path) as archive:
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}


def test_several_inputs_go_by_position_or_by_name() -> None:
    class Two(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return left + 2 * right

    left, right = torch.randn(3, 5), torch.randn(3, 5)
    by_position = _reload(modelpress.prepare(Two(), (left, right))).module(check_guards=False)
    assert torch.equal(by_position(left, right), left + 2 * right)
    by_name = _reload(modelpress.prepare(Two(), {"right": right, "left": left})).module(check_guards=False)
    assert torch.equal(by_name(left, right), left + 2 * right)


def test_inputs_gathered_by_a_star_are_exported() -> None:
    class Star(nn.Module):
        def forward(self, *parts: Tensor) -> Tensor:
            return torch.cat(parts, dim=1)

    exported = _reload(modelpress.prepare(Star(), (torch.randn(2, 3), torch.randn(2, 4)))).module(check_guards=False)
    assert exported(torch.randn(6, 3), torch.randn(6, 4)).shape == (6, 7)


class _Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class _FixedView(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, 32) + 1


@pytest.mark.parametrize(
    ("network", "inputs", "said"),
    [
        (_Branches(), torch.randn(2, 32), ["_Branches cannot be exported", "if x.sum() > 0", "torch.where", __file__]),
        (_FixedView(), torch.randn(2, 32), ["a batch of 10", "x.view(2, 32)", __file__]),
        (_Small(), torch.randn(2, 3, 12, 12), ["_Small cannot be exported", "channels"]),
        (_Small(), (), ["at least one input"]),
        (_Small(), torch.tensor(1.0), ["no dimensions"]),
        (_Small(), torch.randn(0, 1, 12, 12), ["empty"]),
        (_Small(), None, ["needs example inputs"]),
        (_Small(), ["text"], ["Input 0 is a str"]),
        (_Small(), (torch.randn(2, 3), torch.randn(4, 3)), ["must be the same", "(4, 3)"]),
        ("a network", torch.randn(2, 3), ["transformers cannot load a network"]),
        (print, torch.randn(2, 3), ["takes an nn.Module, not a builtin_function_or_method"]),
    ],
)
def test_what_cannot_be_exported_is_said_with_its_place(network: Any, inputs: Any, said: list[str]) -> None:
    with pytest.raises(PrepareError) as caught:
        modelpress.prepare(network, inputs)
    text = str(caught.value)
    assert all(part in text for part in said), text
    assert len(text) < 1600


def test_an_output_of_another_kind_than_tensors_in_tuples_is_refused_by_name() -> None:
    from collections import OrderedDict

    class Ordered(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return OrderedDict(logits=x * 2)

    with pytest.raises(PrepareError, match="returns a OrderedDict"):
        modelpress.prepare(Ordered(), torch.randn(2, 3))


def test_a_failing_export_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PrepareError):
        modelpress.prepare(_Branches(), torch.randn(2, 32))
    assert capfd.readouterr() == ("", "")


def test_a_hugging_face_folder_is_exported_with_its_own_inputs(tmp_path: Path) -> None:
    torchvision_ops.declare()
    import transformers

    config = transformers.BertConfig(  # type: ignore[call-arg]
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=100,
        num_labels=3,
        max_position_embeddings=20,
    )
    network: Any = transformers.BertForSequenceClassification(config)
    network.eval()
    network.save_pretrained(tmp_path)
    exported = _reload(modelpress.prepare(tmp_path)).module(check_guards=False)
    tokens = torch.randint(0, 100, (4, 20))
    ones = torch.ones_like(tokens)
    assert torch.allclose(exported(tokens, ones), network(tokens, attention_mask=ones).logits, atol=1e-6)


def _downloaded(network: nn.Module, example: Tensor, folder: Path) -> Path:
    """A folder as `job.download` leaves it."""
    path = modelpress.prepare(network, example, folder / "network.pt2")
    entry = {"name": path.name, "kind": "pt2", "sha256": modelpress.job.sha256_of(path)}
    (folder / "artifacts.json").write_text(json.dumps({"job": "job_1", "artifacts": [entry]}))
    return folder


def test_a_loaded_network_trains_like_the_module_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = _Small()
    network.drop.p = 0.0
    loaded = modelpress.load(_downloaded(network, torch.randn(2, 1, 12, 12), tmp_path))
    x, y = torch.randn(16, 1, 12, 12), torch.randint(0, 4, (16,))
    for module in (network, loaded):
        module.train()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        module.eval()
    state = loaded.state_dict()
    for name, value in network.state_dict().items():
        if name != "features.1.num_batches_tracked":
            assert torch.allclose(state[name], value, atol=1e-6), name
    assert torch.allclose(loaded(x), network(x), atol=1e-6)


def test_dropout_of_a_loaded_network_follows_train_and_eval(tmp_path: Path) -> None:
    torch.manual_seed(0)
    loaded = modelpress.load(_downloaded(_Small(), torch.randn(2, 1, 12, 12), tmp_path))
    x = torch.randn(8, 1, 12, 12)
    assert torch.equal(loaded(x), loaded(x))
    loaded.train()
    assert loaded.training
    assert not torch.equal(loaded(x), loaded(x))


def test_a_loaded_network_can_be_prepared_and_loaded_again(tmp_path: Path) -> None:
    (tmp_path / "once").mkdir()
    (tmp_path / "twice").mkdir()
    loaded = modelpress.load(_downloaded(_Small(), torch.randn(2, 1, 12, 12), tmp_path / "once")).train()
    again = modelpress.load(_downloaded(loaded, torch.randn(1, 1, 12, 12), tmp_path / "twice"))
    assert loaded.training
    assert set(again.state_dict()) == set(loaded.state_dict())
    x = torch.randn(3, 1, 12, 12)
    assert torch.equal(again(x), loaded.eval()(x))


def test_a_file_that_is_not_the_listed_one_is_not_loaded(tmp_path: Path) -> None:
    folder = _downloaded(_Small(), torch.randn(2, 1, 12, 12), tmp_path)
    (folder / "other.pt2").write_bytes((folder / "network.pt2").read_bytes())
    with pytest.raises(modelpress.DownloadError, match=r"other\.pt2 is not listed"):
        modelpress.load(folder / "other.pt2")
    with (folder / "network.pt2").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(modelpress.DownloadError, match="is not the file the job gave"):
        modelpress.load(folder)
    (folder / "artifacts.json").unlink()
    with pytest.raises(modelpress.DownloadError, match="modelpress fetch"):
        modelpress.load(folder)
