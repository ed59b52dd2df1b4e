"""The report: every number measured on the file that is downloaded, or `null` beside the cause."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from models.inspection import Notice
from models.spec import ExportFormat

SCHEMA_VERSION = 1
Cause = Literal["no_data", "no_labels", "no_such_device", "runtime_cannot_run_it", "not_measured_at_this_step"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MetricValue(_Frozen):
    """`n` samples of `split` gave `value`."""

    value: float
    n: int
    split: Literal["train", "val", "test"]


class Latency(_Frozen):
    """Milliseconds a call, before and after interleaved in one process. `isa`: the CPU's vector extensions.

    `quantiles`: the fastest call, then what 5 %, 10 % … of the calls did not exceed, up to the slowest: 21 values.
    `load_average`: processes that ran or waited on the whole machine in the last minute (the larger of before and after
    the measurement, ours among them), null where the system does not tell; `cpus` is how many this process may use.
    """

    p50: float
    p95: float
    samples: int
    runtime: str
    device: str
    batch: int
    threads: int
    isa: str
    quantiles: list[float] = []
    load_average: float | None = None
    cpus: int | None = None


class Content(_Frozen):
    """Bytes of a file that hold the values of `layer` as `dtype`; `layer` is null for what belongs to none: the graph,
    constants, headers."""

    layer: str | None
    dtype: str
    size_bytes: int


class Measurement(_Frozen):
    """One network, measured. `reasons` names, for each field that is `None`, the cause.

    `contents` says where the bytes of the file are; they add up to `file_size_bytes`.
    """

    metrics: dict[str, MetricValue] | None = None
    agreement_with_original: MetricValue | None = None
    parameters: int
    nonzero_parameters: int
    macs: int
    file: str | None = None
    file_size_bytes: int | None = None
    file_size_gzip_bytes: int | None = None
    contents: list[Content] | None = None
    latency_ms: Latency | None = None
    peak_memory_bytes: int | None = None
    reasons: dict[str, Cause] = {}


class StepReport(_Frozen):
    """After one step, inside the engine. `details` is what the step has to say (amount asked and reached, epochs …).

    `warnings` are the step's own; the report's list has them too.
    """

    index: int
    step: str
    seconds: float
    resumed: bool = False
    after: Measurement
    details: dict[str, Any] = {}
    warnings: list[Notice] = []


class LayerReport(_Frozen):
    """One layer before and after. `bits` of a weight, those of scales and tables included where weights are stored as
    codes; `input_bits` of the numbers that it multiplies them by: 8 where products are of integers. `sqnr_db` is the
    signal to quantization-noise ratio of its output, in dB."""

    name: str
    kind: str
    channels_before: int | None
    channels_after: int | None
    bits: float
    input_bits: int
    sqnr_db: float | None = None
    sparsity: float


class Census(_Frozen):
    """What ONNX Runtime makes of an ONNX file when it opens it, on the machine of the worker.

    `integer_kernels` that compute in 8 bits, by operator; `float_kernels` that compute with weights in floating point;
    `unpacked_each_call` are the operators that compute in floating point on weights which are stored as integers and
    made floats again at every call: the slowest of all ways.
    """

    integer_kernels: dict[str, int]
    float_kernels: dict[str, int]
    unpacked_each_call: list[str]


class Verification(_Frozen):
    """A file `reloaded` in a fresh process by the stock runtime and compared, on real samples where there are any.
    `census` of an ONNX file whose weights are quantized."""

    artifact: str
    reloaded: bool
    runtime: str
    max_abs_diff_vs_engine: float
    sqnr_db_vs_engine: float | None = None
    top1_agreement_vs_engine: float | None = None
    census: Census | None = None


class FilePair(_Frozen):
    """The original and the compressed network written to the same format and measured side by side."""

    format: ExportFormat
    original: Measurement
    compressed: Measurement


class Provenance(_Frozen):
    """`teachers_sha256` has the files of networks that taught beside the original, by id."""

    versions: dict[str, str]
    device: str
    seed: int
    model_sha256: str
    dataset_sha256: str | None
    spec_sha256: str
    teachers_sha256: dict[str, str] = {}


class Report(_Frozen):
    """`original` and `compressed` are the first pair of `files`; `requirement_missed` says by how much, in words;
    `cut_short` says what the end of the time left undone (`limits.on_timeout`).

    Where no step changes the network (`sensitivity`), `original` is measured in the engine, `compressed` is null and
    there are no `files`. `baseline` is the original as the engine saw it before the steps, on the validation split.
    `mask_check` is the largest relative difference between a cut network and its masked twin, over all cuts.
    `split_made_here`: a split was drawn by us, so the original may have been trained on what it is tested on.
    """

    schema_version: Literal[1] = 1
    original: Measurement
    compressed: Measurement | None
    baseline: Measurement | None = None
    files: list[FilePair]
    steps: list[StepReport]
    layers: list[LayerReport]
    verification: list[Verification]
    mask_check: float | None
    split_made_here: bool
    requirement_missed: str | None = None
    cut_short: str | None = None
    warnings: list[Notice]
    seconds: dict[str, float]
    provenance: Provenance
