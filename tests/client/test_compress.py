"""From a module and a loader to a smaller network, through the whole service as a person starts it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from deploy.temporary import temporary_service
from modelpress import Client, JobFailed, PrepareError, UploadRejected, check, compress, prepare, prepare_data

COMMAND = Path(sys.executable).with_name("modelpress")
PRUNE = {"step": "prune", "amount": {"channels": 0.5}}


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 16, 3)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.norm(self.first(x)))))
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with temporary_service(tmp_path_factory.mktemp("service")) as url:
        yield url


@pytest.fixture
def loader() -> DataLoader[tuple[Tensor, ...]]:
    torch.manual_seed(0)
    x = torch.randn(96, 1, 10, 10)
    return DataLoader(TensorDataset(x, torch.arange(96) % 3), batch_size=16)


@pytest.mark.slow
def test_a_module_and_a_loader_give_a_smaller_network_that_trains_and_goes_round_again(
    url: str, loader: DataLoader[tuple[Tensor, ...]], tmp_path: Path
) -> None:
    network = _Network().train()
    types: list[str] = []
    with Client(url) as client:
        result = compress(
            network,
            loader,
            steps=[PRUNE, {"step": "finetune", "epochs": 1}],
            export=["pt2"],
            folder=tmp_path / "out",
            client=client,
            on_event=lambda event: types.append(event.type),
        )
        assert network.training
        assert {"status", "phase", "progress", "step", "metric"} <= set(types)
        assert result.report["compressed"]["parameters"] < result.report["original"]["parameters"]
        assert sorted(file.name for file in result.folder.iterdir()) == [
            "README.md",
            "artifacts.json",
            "model.pt2",
            "report.html",
            "report.json",
            "spec.json",
        ]

        smaller = result.network()
        assert sum(value.numel() for value in smaller.parameters()) == result.report["compressed"]["parameters"]
        x = torch.randn(5, 1, 10, 10)
        before = smaller(x)
        assert before.shape == (5, 3)
        smaller.train()
        optimizer = torch.optim.SGD(smaller.parameters(), lr=0.1)
        nn.functional.cross_entropy(smaller(x), torch.tensor([0, 1, 2, 0, 1])).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        assert not torch.equal(smaller.eval()(x), before)

        again = client.models.upload(prepare(smaller, x, tmp_path / "again.pt2"))
        assert again.status == "ready"
        assert again.parameters == result.report["compressed"]["parameters"]
        assert any(layer["prunable"] for layer in again.layers)

        with pytest.raises(JobFailed) as caught:
            compress(_Network(), loader, steps=[PRUNE], limits={"timeout_s": 1}, client=client)
        assert caught.value.job.status == "failed"
        assert "timeout_s" in str(caught.value)


@pytest.mark.slow
def test_a_sparse_network_comes_back_packed_and_keeps_its_zeros(
    url: str, loader: DataLoader[tuple[Tensor, ...]], tmp_path: Path
) -> None:
    rounds = {"rounds": 2, "curve": "cubic"}
    with Client(url) as client:
        result = compress(
            _Network(),
            loader,
            steps=[
                {"step": "sparsify", "amount": 0.75, "schedule": rounds, "layers": [{"match": "head", "skip": True}]},
                {"step": "finetune", "epochs": 1},
            ],
            export=["safetensors"],
            folder=tmp_path / "out",
            client=client,
        )
    assert (result.folder / "model.safetensors").is_file()
    before, after = result.report["original"], result.report["compressed"]
    assert after["file_size_bytes"] == (result.folder / "model.safetensors").stat().st_size < before["file_size_bytes"]
    assert (after["parameters"], after["macs"]) == (before["parameters"], before["macs"])
    assert [row["reached"] for row in result.report["steps"][0]["details"]["rounds"]] == [
        pytest.approx(0.75 * 7 / 8, abs=1e-3),
        pytest.approx(0.75, abs=1e-3),
    ]
    network = result.network()
    zeros = sum(int((network.get_parameter(f"{name}.weight") == 0).sum()) for name in ("first", "second"))
    assert zeros == result.report["steps"][0]["details"]["zeros"]
    assert network(torch.randn(5, 1, 10, 10)).shape == (5, 3)


@pytest.mark.slow
def test_the_command_compresses_a_file_and_shows_before_and_after(
    url: str, loader: DataLoader[tuple[Tensor, ...]], tmp_path: Path
) -> None:
    prepare(_Network(), torch.zeros(2, 1, 10, 10), tmp_path / "net.pt2")
    prepare_data(loader, tmp_path / "data.npz")
    done = subprocess.run(
        [COMMAND, "--url", url, "compress", "net.pt2", "--data", "data.npz", "--preset", "int8", "-o", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for words in ("accuracy (test", "parameters", "MACs per sample", "file size", "latency p50"):
        assert words in done.stdout
    assert (tmp_path / "out" / "model.onnx").is_file()


@pytest.mark.slow
def test_a_file_the_reader_refuses_is_rejected_with_the_reason(url: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "words.npz", x=np.zeros((4, 2)), y=np.zeros(3))
    with Client(url) as client, pytest.raises(UploadRejected) as caught:
        client.datasets.upload(tmp_path / "words.npz")
    assert caught.value.upload.error is not None
    assert caught.value.upload.error["code"] == "dataset_bad"
    assert "words.npz was rejected" in str(caught.value)


def test_check_reads_a_network_as_the_service_would(tmp_path: Path) -> None:
    found = check(prepare(_Network(), torch.zeros(2, 1, 10, 10), tmp_path / "net.pt2"))
    assert found["inputs"][0]["shape"] == [None, 1, 10, 10]
    assert found["parameters"] == sum(value.numel() for value in _Network().parameters())
    assert any(layer["prunable"] for layer in found["layers"])
    (tmp_path / "bad.pt2").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(PrepareError, match=r"bad\.pt2"):
        check(tmp_path / "bad.pt2")
    with pytest.raises(PrepareError, match="There is no file"):
        check(tmp_path / "none.pt2")


def test_the_check_command_tells_what_was_found(tmp_path: Path) -> None:
    prepare(_Network(), torch.zeros(2, 1, 10, 10), tmp_path / "net.pt2")
    (tmp_path / "worker").mkdir()
    (tmp_path / "worker" / "__init__.py").write_text("raise RuntimeError('not ours')")
    done = subprocess.run([COMMAND, "check", "net.pt2"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "net.pt2: ready to upload" in done.stdout
    assert "float32[*, 1, 10, 10]" in done.stdout


def test_check_reads_data_as_the_service_would(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((5, 3), np.float32))
    found = check(tmp_path / "x.npy", data=True)
    assert (found["format"], found["samples"], found["labels"]) == ("npy", 5, None)
    (tmp_path / "x.npy").write_bytes(b"\x80\x04N.")
    with pytest.raises(PrepareError, match="pickle"):
        check(tmp_path / "x.npy", data=True)
