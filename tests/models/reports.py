"""Reports to draw pages of: of any number of layers, with every kind of number and of gap."""

from __future__ import annotations

from typing import Any

from models.inspection import Notice
from models.report import (
    Content,
    FilePair,
    Latency,
    LayerReport,
    Measurement,
    MetricValue,
    Provenance,
    Report,
    StepReport,
    Verification,
)

SPEC: dict[str, Any] = {"model": "net_1", "name": "edge", "data": {"metric": "accuracy"}, "steps": [{"step": "prune"}]}


def latency(p50: float, load: float | None = 0.42) -> Latency:
    quantiles = [round(p50 * (0.9 + 0.01 * place), 4) for place in range(21)]
    return Latency(
        p50=quantiles[10],
        p95=quantiles[19],
        samples=50,
        runtime="onnxruntime 1.31.1",
        device="cpu",
        batch=1,
        threads=1,
        isa="avx2",
        quantiles=quantiles,
        load_average=load,
        cpus=2,
    )


def measured(
    names: list[str], accuracy: float | None = 0.9813, scale: float = 1.0, split: Any = "test", **more: Any
) -> Measurement:
    contents = [Content(layer=name, dtype="float32", size_bytes=int(4000 * scale)) for name in names]
    contents.append(Content(layer=None, dtype="graph", size_bytes=777))
    values: dict[str, Any] = {
        "metrics": None if accuracy is None else {"accuracy": MetricValue(value=accuracy, n=750, split=split)},
        "agreement_with_original": None if accuracy is None else MetricValue(value=0.991, n=750, split=split),
        "parameters": int(1_234_567 * scale),
        "nonzero_parameters": int(1_234_000 * scale),
        "macs": int(98_765_432 * scale),
        "file": "model.onnx",
        "file_size_bytes": sum(part.size_bytes for part in contents),
        "file_size_gzip_bytes": sum(part.size_bytes for part in contents) - 99,
        "contents": contents,
        "latency_ms": latency(3.7 * scale),
        "peak_memory_bytes": int(56_789_012 * scale),
        "reasons": {} if accuracy is not None else {"metrics": "no_data", "agreement_with_original": "no_data"},
    }
    return Measurement(**{**values, **more})


def layer(name: str, place: int) -> LayerReport:
    return LayerReport(
        name=name,
        kind="Conv2d",
        channels_before=64,
        channels_after=64 - place % 40,
        bits=8 if place % 2 else 32,
        input_bits=8 if place % 2 else 32,
        sqnr_db=33.25 + place % 7 if place % 2 else None,
        sparsity=(place % 10) / 20,
    )


def a_report(layer_count: int = 5, name: str = "layer{}.conv", accuracy: float | None = 0.9813, **more: Any) -> Report:
    names = [name.format(place) for place in range(layer_count)]
    history = [
        {
            "epoch": place,
            "train_loss": 1.0 / (place + 1),
            "val_loss": 1.1 / (place + 1),
            "val_metric": 0.9 + place / 100,
        }
        for place in range(5)
    ]
    step = StepReport(
        index=0,
        step="finetune",
        seconds=12.5,
        after=measured(names, accuracy, 0.5, "val"),
        details={"metric": "accuracy", "history": history},
    )
    pair = FilePair(
        format="onnx", original=measured(names, accuracy), compressed=measured(names, accuracy and 0.9787, 0.25)
    )
    values: dict[str, Any] = {
        "original": pair.original,
        "compressed": pair.compressed,
        "baseline": measured(names, accuracy, 1.0, "val"),
        "files": [pair],
        "steps": [step, step.model_copy(update={"index": 1, "step": "quantize", "details": {}})],
        "layers": [layer(name, place) for place, name in enumerate(names)],
        "verification": [
            Verification(
                artifact="model.onnx",
                reloaded=True,
                runtime="onnxruntime 1.31.1",
                max_abs_diff_vs_engine=3.25e-6,
                sqnr_db_vs_engine=112.5,
                top1_agreement_vs_engine=1.0,
            )
        ],
        "mask_check": 2.5e-7,
        "split_made_here": True,
        "warnings": [Notice(code="not_faster", message="model.onnx takes as long as before.")],
        "seconds": {"inspect": 1.5, "export": 3.25},
        "provenance": Provenance(
            versions={"modelpress": "0.1.0", "torch": "2.13.0"},
            device="cpu",
            seed=7,
            model_sha256="a" * 64,
            dataset_sha256=None,
            spec_sha256="c" * 64,
        ),
    }
    return Report(**{**values, **more})
