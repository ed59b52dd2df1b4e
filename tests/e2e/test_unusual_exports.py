"""A file that an older version of torch wrote, of an unusual export, through a whole job."""

from __future__ import annotations

from pathlib import Path

import torch
from torch._export.serde.serialize import serialize

from models.report import Report
from tests.e2e.jobs import run_engine
from tests.engine.ingest.test_older_archives import before_2_8, write
from tests.networks import NETWORKS
from worker.engine.ingest.read import read_network


def test_an_old_decomposed_half_precision_export_of_one_sample_is_compressed(tmp_path: Path) -> None:
    module, (example,) = NETWORKS["vit"]()
    half = module.to(torch.bfloat16)
    program = torch.export.export(half, (example[:1].clone().to(torch.bfloat16),)).run_decompositions()
    path = write(before_2_8(serialize(program), 7, 3), tmp_path / "old.pt2")
    request = {
        "network": {"path": str(path)},
        "folder": str(tmp_path / "job"),
        "spec": {"model": "net", "steps": [{"step": "prune", "amount": {"parameters": 0.5}}], "export": ["pt2"]},
    }
    status, _, log = run_engine(request, tmp_path)
    assert status == 0, log
    report = Report.model_validate_json((tmp_path / "job/artifacts/report.json").read_bytes())
    assert report.compressed is not None
    assert 0.45 <= report.compressed.parameters / report.original.parameters <= 0.55
    assert {"converted_to_float32", "batch_set_free"} <= {notice.code for notice in report.warnings}
    delivered = read_network(tmp_path / "job/artifacts/model.pt2")
    assert (delivered.inputs[0].dtype, delivered.inputs[0].shape) == ("float32", [None, *example.shape[1:]])
