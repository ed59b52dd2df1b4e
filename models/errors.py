"""Every way a request or a job can fail, in one table.

The engine, the worker and the API raise `Failure`; only `api/errors.py` knows HTTP statuses.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from models.texts import Text


class Code(StrEnum):
    """The closed set of error codes. `HINTS` has the remedy of each."""

    # A job or an inspection failed.
    NETWORK_REJECTED = "network_rejected"
    UNSUPPORTED_OP = "unsupported_op"
    NOT_TRAINABLE = "not_trainable"
    DATASET_BAD = "dataset_bad"
    DATASET_MISMATCH = "dataset_mismatch"
    NOTHING_TO_PRUNE = "nothing_to_prune"
    OUT_OF_GPU_MEMORY = "out_of_gpu_memory"
    OUT_OF_MEMORY = "out_of_memory"
    DISK_FULL = "disk_full"
    TIMEOUT = "timeout"
    STALLED = "stalled"
    NAN_LOSS = "nan_loss"
    VERIFICATION_FAILED = "verification_failed"
    ENGINE_CRASHED = "engine_crashed"
    WORKER_LOST = "worker_lost"
    NO_SUCH_DEVICE = "no_such_device"
    UNSUPPORTED_HERE = "unsupported_here"
    REQUIREMENT_MISSED = "requirement_missed"
    FILE_DAMAGED = "file_damaged"
    INTERNAL = "internal"

    # An upload was refused.
    EMPTY_FILE = "empty_file"
    UNKNOWN_FORMAT = "unknown_format"
    FORMAT_MISMATCH = "format_mismatch"
    UNSAFE_PICKLE = "unsafe_pickle"
    TORCHSCRIPT_NOT_SUPPORTED = "torchscript_not_supported"
    MODULE_PICKLE_NOT_SUPPORTED = "module_pickle_not_supported"
    LEGACY_FORMAT = "legacy_format"
    COMPRESSED_RECORD = "compressed_record"
    SPARSE_NOT_SUPPORTED = "sparse_not_supported"
    LOGICAL_SIZE_EXCEEDS_STORAGE = "logical_size_exceeds_storage"
    TOO_DEEP = "too_deep"
    BAD_ARCHIVE = "bad_archive"
    USE_RAW_BODY = "use_raw_body"
    TOO_LARGE = "too_large"
    BODY_TIMEOUT = "body_timeout"
    QUOTA_EXCEEDED = "quota_exceeded"
    CHECKSUM_MISMATCH = "checksum_mismatch"

    # A resumable upload was refused.
    TOO_MANY_UPLOADS = "too_many_uploads"
    UNSUPPORTED_TUS_VERSION = "unsupported_tus_version"
    WRONG_OFFSET = "wrong_offset"
    INCONSISTENT_UPLOAD_LENGTH = "inconsistent_upload_length"
    UPLOAD_INCOMPLETE = "upload_incomplete"
    UPLOAD_COMPLETE = "upload_complete"
    UPLOAD_INVALID = "upload_invalid"
    UPLOAD_EXPIRED = "upload_expired"
    UPLOAD_BUSY = "upload_busy"

    # A request was refused.
    BAD_REQUEST = "bad_request"
    HEADERS_TOO_LARGE = "headers_too_large"
    INVALID_REQUEST = "invalid_request"
    INVALID_SPEC = "invalid_spec"
    NO_LAYER_MATCHES = "no_layer_matches"
    TOO_MANY_JOBS = "too_many_jobs"
    RATE_LIMITED = "rate_limited"
    UNAUTHORIZED = "unauthorized"
    KEY_EXPIRED = "key_expired"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    RANGE_NOT_SATISFIABLE = "range_not_satisfiable"
    NOT_READY = "not_ready"
    IN_USE = "in_use"
    ALREADY_FINISHED = "already_finished"
    IDEMPOTENCY_MISMATCH = "idempotency_mismatch"
    IDEMPOTENCY_IN_FLIGHT = "idempotency_in_flight"
    UNAVAILABLE = "unavailable"


HINTS: dict[Code, str] = {
    Code.NETWORK_REJECTED: "Export it again with `modelpress prepare`; `modelpress check FILE` tells before uploading.",
    Code.UNSUPPORTED_OP: "Replace the operator named here, or export without the part that uses it.",
    Code.NOT_TRAINABLE: "Upload a network with floating-point parameters that gradients reach.",
    Code.DATASET_BAD: "Correct the samples named here and upload the data again.",
    Code.DATASET_MISMATCH: "Make the arrays match the network's inputs, shown side by side here.",
    Code.NOTHING_TO_PRUNE: "See `layers` of the network for what is prunable and why the rest is frozen.",
    Code.OUT_OF_GPU_MEMORY: 'Lower `batch_size`, or run on `"device": "cpu"`.',
    Code.OUT_OF_MEMORY: "Lower `batch_size`, or run on a worker with more memory.",
    Code.DISK_FULL: "The worker's disk is full; free space, then clone the job: finished steps are kept.",
    Code.TIMEOUT: 'Raise `limits.timeout_s`, ask for fewer epochs, or set `"on_timeout": "best_so_far"`.',
    Code.STALLED: "The engine stopped making progress and was ended; clone the job, and report it if it happens again.",
    Code.NAN_LOSS: "Lower the learning rate; if no epoch had begun, check `transform` and the samples.",
    Code.VERIFICATION_FAILED: "The file did not reproduce the engine's outputs and was withheld; please report it.",
    Code.ENGINE_CRASHED: "Clone the job; if it crashes again, the log shows where.",
    Code.WORKER_LOST: "Workers stopped while they ran this job; clone it once workers are healthy.",
    Code.NO_SUCH_DEVICE: "See `/capabilities` for the devices registered here.",
    Code.UNSUPPORTED_HERE: "See `/capabilities` for what this deployment can do.",
    Code.REQUIREMENT_MISSED: "Loosen `require`, or ask for less compression.",
    Code.FILE_DAMAGED: "Upload the file again; what a job gave is made again by a clone of it.",
    Code.INTERNAL: "This is our mistake; please report it with the request or job id.",
    Code.EMPTY_FILE: "Send the file as the raw body: `curl --data-binary @FILE` or `curl -T FILE`.",
    Code.UNKNOWN_FORMAT: "Send a `.pt2` of `modelpress prepare`, or ONNX; data as `.npz` or image folders.",
    Code.FORMAT_MISMATCH: "Send the file with the name that its content has.",
    Code.UNSAFE_PICKLE: "Pickles can run code when read. Export the network with `modelpress prepare`.",
    Code.TORCHSCRIPT_NOT_SUPPORTED: "TorchScript can run code when read. Export the network with `modelpress prepare`.",
    Code.MODULE_PICKLE_NOT_SUPPORTED: "Send `module.state_dict()` with `?arch=`, or use `modelpress prepare`.",
    Code.LEGACY_FORMAT: "Load it and save it again with torch 1.6 or newer, or as safetensors.",
    Code.COMPRESSED_RECORD: "Send the file as `torch.save` wrote it, not one that was packed again.",
    Code.SPARSE_NOT_SUPPORTED: "Store every tensor dense: `tensor.to_dense()`.",
    Code.LOGICAL_SIZE_EXCEEDS_STORAGE: "Store tensors of their own: `tensor.contiguous().clone()`, then save again.",
    Code.TOO_DEEP: "Save `module.state_dict()` alone.",
    Code.BAD_ARCHIVE: "Write the file again with `modelpress prepare` and upload that file unchanged.",
    Code.USE_RAW_BODY: "Send the file itself as the body, not a form: `curl -T FILE`.",
    Code.TOO_LARGE: "See `/capabilities` for the size limits.",
    Code.BODY_TIMEOUT: "Send the body without pauses; `/uploads` goes on where a connection broke.",
    Code.QUOTA_EXCEEDED: "Delete networks, data sets, jobs or uploads that are not needed any more.",
    Code.CHECKSUM_MISMATCH: "Send these bytes again: they changed on their way, or while they were read.",
    Code.TOO_MANY_UPLOADS: "Complete or `DELETE` open uploads; those left alone expire by themselves.",
    Code.UNSUPPORTED_TUS_VERSION: "Send `Tus-Resumable: 1.0.0`.",
    Code.WRONG_OFFSET: "Go on at the `Upload-Offset` of this answer, or of `HEAD`.",
    Code.INCONSISTENT_UPLOAD_LENGTH: "Leave `Upload-Length` out, or send the one the upload was created with.",
    Code.UPLOAD_INCOMPLETE: "Send the rest by `PATCH` first; `HEAD` tells the offset.",
    Code.UPLOAD_COMPLETE: "Use it: `POST /models?upload=` or `POST /datasets?upload=`.",
    Code.UPLOAD_INVALID: "Create a new upload with the length that will really be sent.",
    Code.UPLOAD_EXPIRED: "Create a new upload; `Upload-Expires` tells how long one may rest.",
    Code.UPLOAD_BUSY: "Try again in a second.",
    Code.BAD_REQUEST: "Send the header or parameter named here as `/docs` describes it.",
    Code.HEADERS_TOO_LARGE: "Send no more than 64 KiB of headers, and shorter parameters.",
    Code.INVALID_REQUEST: "Correct the fields named in `errors`.",
    Code.INVALID_SPEC: "Correct the fields named in `errors`; `/schema/job` has the schema.",
    Code.NO_LAYER_MATCHES: "See `layers` of the network for its layer names.",
    Code.TOO_MANY_JOBS: "Wait until some of your jobs have started, or cancel some.",
    Code.RATE_LIMITED: "Wait as many seconds as `Retry-After` says; `?wait=30` saves asking again and again.",
    Code.UNAUTHORIZED: "Send `Authorization: Bearer mp_…`.",
    Code.KEY_EXPIRED: "Use its successor, or ask who operates the service for a new key.",
    Code.FORBIDDEN: "Use a key that has the scope named here; without keys, ask from the service's own machine.",
    Code.NOT_FOUND: "Check the id.",
    Code.METHOD_NOT_ALLOWED: "Use one of the methods in the `Allow` header.",
    Code.UNSUPPORTED_MEDIA_TYPE: "Send JSON as `Content-Type: application/json`, files as they are; neither packed.",
    Code.RANGE_NOT_SATISFIABLE: "Ask for bytes below the size in the `Content-Range` header.",
    Code.NOT_READY: "Wait for it: `GET …?wait=30`.",
    Code.IN_USE: "Wait for the jobs that use it, or delete them first.",
    Code.ALREADY_FINISHED: "Nothing is left to cancel.",
    Code.IDEMPOTENCY_MISMATCH: "Use a new `Idempotency-Key` for a different body.",
    Code.IDEMPOTENCY_IN_FLIGHT: "Try again in a second.",
    Code.UNAVAILABLE: "Try again shortly.",
}

RETRYABLE: frozenset[Code] = frozenset({Code.ENGINE_CRASHED, Code.WORKER_LOST, Code.UNAVAILABLE, Code.UPLOAD_BUSY})
"""Codes after which the same job may be run again without a change."""


class FieldProblem(BaseModel):
    """One field that is wrong: a JSON pointer into what was sent, and what would be right."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pointer: str
    message: str
    allowed: list[str] | None = None


class Failure(Exception):
    """An error as a value with a code.

    `message` says what is wrong and what to change; `where` names the layer, field, file or phase;
    `problems` points at each wrong field of a request.
    """

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        where: str | None = None,
        problems: tuple[FieldProblem, ...] = (),
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.where = where
        self.problems = problems
        self.retryable = code in RETRYABLE if retryable is None else retryable

    def as_error(self, phase: str | None = None) -> JobError:
        return JobError(
            code=self.code,
            phase=phase,
            message=self.message,
            where=self.where,
            retryable=self.retryable,
            hint=HINTS[self.code],
        )


class JobError(BaseModel):
    """What a failed job, or a rejected network or dataset, carries."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: Code
    phase: str | None = None
    message: Text
    where: Text | None = None
    retryable: bool = False
    hint: str
