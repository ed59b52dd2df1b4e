"""What the service answers, as plain dataclasses.

Every field has a default and `raw` keeps the whole answer, so that an older client reads a newer service: what it
does not know is passed over, what is not there is the default.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, TypeVar

TERMINAL = frozenset({"succeeded", "failed", "cancelled"})

Json = dict[str, Any]
_Record = TypeVar("_Record", bound="_Answer")


@dataclass(kw_only=True)
class _Answer:
    raw: Json = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls: type[_Record], answer: Json) -> _Record:
        """Read an answer: unknown fields are passed over, missing and null ones are the default."""
        record = cls()
        record.update(answer)
        return record

    def update(self, answer: Json) -> None:
        """Take over a newer answer about the same thing."""
        for known in self.answer_fields():
            value = answer.get(known.name)
            setattr(self, known.name, _default(known) if value is None else value)
        self.raw = answer

    @classmethod
    def answer_fields(cls) -> list[Field[Any]]:
        """The fields looked for in an answer."""
        return [known for known in fields(cls) if known.name != "raw" and not known.name.startswith("_")]


def _default(known: Field[Any]) -> Any:
    return known.default if known.default_factory is MISSING else known.default_factory()


@dataclass(kw_only=True)
class Upload(_Answer):
    """A file the service accepted: `status` goes from `inspecting` to `ready` or `rejected` (then see `error`)."""

    id: str = ""
    name: str = ""
    sha256: str = ""
    size_bytes: int = 0
    status: str = ""
    error: Json | None = None
    created_at: str = ""


@dataclass(kw_only=True)
class Network(Upload):
    """A network and, once it is ready, what was found in it."""

    read_options: Json = field(default_factory=dict)
    format: str | None = None
    inputs: list[Json] = field(default_factory=list)
    outputs: list[Json] = field(default_factory=list)
    parameters: int | None = None
    macs: int | None = None
    layers: list[Json] = field(default_factory=list)
    groups: list[Json] = field(default_factory=list)
    warnings: list[Json] = field(default_factory=list)


@dataclass(kw_only=True)
class StoredData(Upload):
    """A data set and, once it is ready, what was found in it."""

    format: str | None = None
    samples: int | None = None
    inputs: list[Json] = field(default_factory=list)
    labels: Json | None = None
    class_names: list[str] | None = None
    splits: dict[str, int] | None = None
    skipped_samples: int | None = None
    image_sizes: Json | None = None
    warnings: list[Json] = field(default_factory=list)


@dataclass(kw_only=True)
class JobRecord(_Answer):
    """A job as the service tells it. `progress` has percent, step_index, step_count, epoch, epochs, eta_seconds."""

    id: str = ""
    name: str | None = None
    status: str = ""
    phase: str | None = None
    attempt: int = 0
    spec: Json = field(default_factory=dict)
    resolved_spec: Json = field(default_factory=dict)
    progress: Json = field(default_factory=dict)
    queue_position: int | None = None
    error: Json | None = None
    webhook: Json | None = None
    created_at: str = ""
    started_at: str | None = None
    finished_at: str | None = None
    expires_at: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    urls: Json = field(default_factory=dict)

    @property
    def is_finished(self) -> bool:
        """True for every status that never changes again, also one this client has not heard of."""
        return self.status in TERMINAL or self.finished_at is not None

    @property
    def percent(self) -> float:
        return float(self.progress.get("percent") or 0.0)


@dataclass(kw_only=True)
class Artifact(_Answer):
    """A file a job gives back; `partial` ones are of a job that did not finish."""

    name: str = ""
    kind: str = ""
    size_bytes: int = 0
    sha256: str = ""
    content_type: str = ""
    partial: bool = False
    url: str = ""


@dataclass(kw_only=True)
class Event(_Answer):
    """One thing that happened in a job. `data` is the event itself; its `type` may be one this client does not know."""

    id: int = 0
    at: str = ""
    attempt: int = 0
    data: Json = field(default_factory=dict)

    @property
    def type(self) -> str:
        return str(self.data.get("type") or "")
