"""Specs: rows 69 to 77, each sent with a network of four channels that was really read, and data that fit it."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from models.errors import Code
from tests.api import stories, tus
from tests.api.stories import problem_of
from tests.bad_inputs.place import Place
from tests.bad_inputs.rows import JSON, Call, Check, Row, row
from tests.engine.ingest.archives import good_archive

PRUNE: dict[str, Any] = {"step": "prune", "amount": {"channels": 0.5}, "round_to": 2}
SPARSE: dict[str, Any] = {"step": "sparsify", "pattern": {"n_of_m": [2, 4]}}
RANDOM = np.random.default_rng(0)
DATA: dict[str, Any] = {"x": RANDOM.normal(size=(20, 3, 8, 8)).astype(np.float32), "y": np.arange(20) % 2}


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def network(place: Place) -> str:
    return place.ready("/models", good_archive().write(place.folder / "small.pt2").read_bytes())


@dataclass(frozen=True)
class Spec:
    """A spec with some fields changed; a `raw` value is put in as text, for what `json` would not write."""

    fields: dict[str, Any]
    code: Code
    pointer: str | None = None
    says: str = ""
    status: int = 422
    raw: str | None = None
    allowed: list[str] | None = None
    known: dict[str, str] = field(default_factory=lambda: {"model": "net_" + "0" * 26})

    def __call__(self, place: Place) -> None:
        body = json.dumps({**self.known, **self.fields})
        if self.raw is not None:
            body = body.replace('"RAW"', self.raw)
        before = place.client.get("/jobs").json()
        problem = problem_of(place.client.post("/jobs", content=body, headers=JSON), self.status, self.code)
        errors = {error["pointer"]: error for error in problem["errors"]}
        assert self.pointer is None or self.pointer in errors, errors
        about = errors[self.pointer]["message"] if self.pointer is not None else problem["detail"]
        assert self.says in about
        if self.allowed is not None:
            assert self.pointer is not None
            assert errors[self.pointer]["allowed"] == self.allowed
        assert place.client.get("/jobs").json() == before


def amount(value: str, code: Code = Code.INVALID_SPEC) -> Spec:
    pointer = "/steps/0/amount/channels" if code is Code.INVALID_SPEC else None
    return Spec({"steps": [{"step": "prune", "amount": {"channels": "RAW"}}]}, code, pointer, raw=value)


def on_a_network(*steps: dict[str, Any], code: Code, pointer: str, says: str = "", data: bool = False) -> Check:
    def check(place: Place) -> None:
        known = {"model": network(place)}
        if data:
            known["dataset"] = place.ready("/datasets", npz(**DATA))
        Spec({"steps": list(steps)}, code, pointer, says, known=known)(place)

    return check


def train(**fields: Any) -> dict[str, Any]:
    return {"steps": [{"step": "finetune", **fields}]}


def foreign_deleted_and_incomplete(place: Place) -> None:
    fields: dict[str, Any] = {"steps": [PRUNE]}
    foreign = stories.upload_network(place.other())
    deleted = stories.upload_network(place.client)
    assert place.client.delete(f"/models/{deleted}").status_code == 204
    for unknown in (foreign, deleted, "net_" + "0" * 26):
        Spec(fields, Code.NOT_FOUND, "/model", status=404, known={"model": unknown})(place)
    waiting = stories.upload_network(place.client)
    Spec(fields, Code.NOT_READY, "/model", status=409, known={"model": waiting})(place)
    path = tus.create(place.client, 10)
    for kind in ("/models", "/datasets"):
        incomplete = place.client.post(kind, params={"upload": path.rpartition("/")[2]})
        problem_of(incomplete, 409, "upload_incomplete")


ROWS: tuple[Row, ...] = (
    row(
        69,
        "fraction that is none",
        *(amount(value) for value in ("-1", "0", "1.0", "1.1", '"0.5"', "1e309", "true", "[]")),
        Spec({"steps": [PRUNE | {"amount": {"channels": None}}]}, Code.INVALID_SPEC, "/steps/0/amount", "exactly one"),
        *(amount(value, Code.INVALID_REQUEST) for value in ("NaN", "-Infinity")),
    ),
    row(
        70,
        "unknown field",
        Spec({"steps": [PRUNE | {"amonut": 1}]}, Code.INVALID_SPEC, "/steps/0/amonut", "Unknown field"),
        Spec({"steps": [PRUNE], "stepz": []}, Code.INVALID_SPEC, "/stepz", "Unknown field"),
    ),
    row(
        71,
        "bits that are not supported",
        Spec(
            {"steps": [{"step": "quantize", "scheme": "int4", "bits": 7}]},
            Code.INVALID_SPEC,
            "/steps/0/bits",
            "less than or equal to 6",
        ),
        Spec({"steps": [{"step": "quantize", "bits": 3}]}, Code.INVALID_SPEC, "/steps/0/bits", "Unknown field"),
        Spec(
            {"steps": [{"step": "quantize", "scheme": "int3"}]},
            Code.INVALID_SPEC,
            "/steps/0/scheme",
            allowed=["int8", "int4", "ternary", "binary", "codebook", "fp16", "bf16", "fp8"],
        ),
    ),
    row(
        72,
        "contradiction",
        on_a_network(SPARSE, PRUNE, code=Code.INVALID_SPEC, pointer="/steps/1", says="sparsify"),
        on_a_network({"step": "quantize"}, code=Code.INVALID_SPEC, pointer="/steps/0", says="calibrate"),
        on_a_network(
            {"step": "quantize"}, PRUNE, code=Code.INVALID_SPEC, pointer="/steps/1", says="cannot come after", data=True
        ),
    ),
    row(
        73,
        "spec too large, too long, too deep, or read in two ways",
        Spec({"steps": [PRUNE], "name": "x" * (1 << 20)}, Code.TOO_LARGE, status=413),
        Spec({"steps": [PRUNE] * 10_000}, Code.INVALID_SPEC, "/steps", "32"),
        Spec({"metadata": "RAW"}, Code.INVALID_REQUEST, says="nested", raw="[" * 1000 + "]" * 1000),
        Spec({"metadata": "RAW"}, Code.INVALID_REQUEST, says="twice", raw='{"a": "1", "a": "2"}'),
    ),
    row(
        74,
        "glob that matches nothing",
        *(
            on_a_network(
                PRUNE | {"layers": [{"match": match, "skip": True}]},
                code=Code.NO_LAYER_MATCHES,
                pointer="/steps/0/layers/0/match",
                says=match,
            )
            for match in ("convx*", "(a+)+$", "a*" * 90 + "b")
        ),
    ),
    row(
        75,
        "training without measure",
        Spec(train(epochs=10**9), Code.INVALID_SPEC, "/steps/0/epochs"),
        Spec(train(batch_size=10**9), Code.INVALID_SPEC, "/steps/0/batch_size"),
        Spec(train(learning_rate="RAW"), Code.INVALID_SPEC, "/steps/0/learning_rate", raw="1e309"),
        Spec(train(learning_rate="RAW"), Code.INVALID_REQUEST, raw="Infinity"),
        Spec({"steps": [PRUNE], "limits": {"timeout_s": 10**9}}, Code.INVALID_SPEC, "/limits/timeout_s"),
    ),
    row(
        76,
        "seed out of bounds",
        *(
            Spec({"steps": [PRUNE], "seed": seed}, Code.INVALID_SPEC, "/seed")
            for seed in (2**63, -1, -(2**63) - 1, 10**300)
        ),
        Spec({"steps": [PRUNE], "seed": "RAW"}, Code.INVALID_REQUEST, says="digits", raw="9" * 5000),
    ),
    row(
        77,
        "foreign, deleted or incomplete upload",
        foreign_deleted_and_incomplete,
        Call("POST /models", 404, Code.NOT_FOUND, params={"upload": "upl_" + "0" * 26}),
    ),
)
