"""Everything a deployment can set, read once from `MODELPRESS_*` environment variables."""

from __future__ import annotations

import ipaddress
import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

GiB = 1 << 30
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _parted(value: object) -> object:
    """`a, b` is how a variable lists things."""
    return tuple(part.strip().lower() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _known(entries: tuple[str, ...]) -> tuple[str, ...]:
    for entry in entries:
        if "/" in entry:
            ipaddress.ip_network(entry)
        elif not all(entry.split(".")) or not entry.replace(".", "").replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"{entry!r} is neither the name of a host nor a network as 10.1.0.0/16")
    return entries


class Settings(BaseSettings):
    """Durations are seconds, sizes bytes. `clock_scale` shrinks heartbeat, lease, sweep and grace, for tests."""

    model_config = SettingsConfigDict(
        env_prefix="MODELPRESS_", env_ignore_empty=True, frozen=True, extra="ignore", hide_input_in_errors=True
    )

    database_url: str = Field(default="sqlite:///var/modelpress.sqlite3", repr=False)
    broker_url: str = Field(default="redis://localhost:6379/0", repr=False)
    blobs: Annotated[str, BeforeValidator(str)] = Field(
        default="var/blobs", description="A folder, or `s3://bucket/prefix`."
    )
    s3_endpoint: str | None = Field(default=None, description="Of an S3 that is not Amazon's, as http://minio:9000.")
    s3_region: str | None = None
    s3_access_key_id: str | None = None
    s3_secret_access_key: str | None = Field(default=None, repr=False)
    work: Path = Path("var/work")
    incoming: Path | None = Field(
        default=None,
        description="Files of resumable uploads under way; the same for every api process. Default: with the blobs.",
    )

    host: str = "127.0.0.1"
    port: int = 8000
    open_access: bool = Field(default=False, description="No keys; refused unless bound to loopback.")
    tenant: str = Field(default="default", description="The tenant of open access.")
    bootstrap_key: str | None = Field(
        default=None, repr=False, description="Made the first key, once, when there is none."
    )

    metrics_token: str | None = Field(
        default=None,
        min_length=16,
        repr=False,
        description="What Prometheus sends as its bearer token; unset: no metrics.",
    )
    log_format: Literal["human", "json"] = Field(default="human", description="json: one object a line.")
    log_level: Literal["debug", "info", "warning"] = "info"

    webhook_secret: str | None = Field(
        default=None,
        min_length=32,
        repr=False,
        description="What webhooks are signed with is derived from it; the same for api and control. Unset: none.",
    )
    webhook_http: bool = Field(default=False, description="Call http:// webhooks too, which others can read.")
    webhook_allowed: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_parted), AfterValidator(_known)] = Field(
        default=(),
        description="Names of hosts, and networks as 10.1.0.0/16, that webhooks may reach though they are private; "
        "between commas.",
    )
    webhook_timeout_seconds: Annotated[float, Field(gt=0, le=30)] = Field(
        default=20.0, description="What a webhook's receiver may take to answer, in all."
    )

    device_class: str = Field(default="cpu", pattern="^(cpu|cuda)$", description="What a device worker offers.")
    gpus: str | None = Field(default=None, description="Device set of a CUDA worker, as in CUDA_VISIBLE_DEVICES.")
    engine_threads: Annotated[int, Field(ge=1, le=256)] = Field(
        default_factory=lambda: max(1, (os.cpu_count() or 1) // 2)
    )
    engine_memory_bytes: int | None = Field(
        default=None, description="Memory of one engine with all it starts; by default a share of the machine's."
    )
    engine_disk_bytes: int = Field(default=64 * GiB, description="What one engine may hold on disk while it runs.")
    allow_weak_sandbox: bool = Field(
        default=False, description="Let workers start where the kernel cannot confine what opens uploads."
    )

    allow_shared_network: bool = Field(
        default=False,
        description="Where engines cannot have a network of their own, give those that train in several processes the "
        "worker's: whatever it can reach over TCP, broker and database included, they can.",
    )

    max_model_bytes: int = 8 * GiB
    max_dataset_bytes: int = 64 * GiB
    body_idle_seconds: float = 30.0
    body_minimum_bytes_per_second: int = Field(default=1024, description="A body that comes slower is cut off.")
    max_stored_bytes: int = Field(
        default=512 * GiB, description="Of one tenant: networks, data sets, artifacts and uploads, same bytes once."
    )
    max_open_uploads: int = Field(default=1000, description="Resumable uploads of one tenant at once.")
    max_queued_jobs: int = Field(default=1000, description="Jobs of one tenant that wait at once.")
    max_running_jobs: int | None = Field(
        default=None, description="Jobs of one tenant that workers run at once; unset: as many as there are slots."
    )
    max_requests_per_second: Annotated[float, Field(ge=0.001, le=1e6)] | None = Field(
        default=100.0, description="Of one tenant, over all api processes; unset, or under open access: no limit."
    )
    max_request_burst: Annotated[int, Field(ge=1)] = Field(
        default=1000, description="Requests that may come at once before the rate counts."
    )
    max_wrong_keys: Annotated[int, Field(ge=1)] = Field(
        default=100, description="Unknown keys that one address may send at once; then one more each second."
    )
    upload_expiry_seconds: float = Field(default=86400.0, description="How long a resumable upload may rest.")

    keep_jobs_days: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Ended jobs are deleted with all they gave after so long; unset: never."
    )
    keep_checkpoints_days: Annotated[float, Field(gt=0)] | None = Field(
        default=14.0, description="Longer than any job may run; unset: forever."
    )
    keep_audit_days: Annotated[float, Field(ge=1)] | None = Field(
        default=400.0, description="Of the audit trail; unset: forever."
    )
    collect_grace_seconds: Annotated[float, Field(ge=600)] = Field(
        default=3600.0, description="How long bytes stay that nobody names, twice: before and after they are condemned."
    )
    keep_webhooks_days: Annotated[float, Field(gt=0)] = Field(
        default=30.0, description="How long it is known what became of a message that is not sent any more."
    )
    upkeep_seconds: float = Field(default=3600.0, description="Between two rounds of deleting what is not needed.")

    clock_scale: Annotated[float, Field(gt=0, le=10)] = 1.0
    heartbeat_seconds: float = 5.0
    lease_seconds: float = 30.0
    sweep_seconds: float = 5.0
    cancel_grace_seconds: float = 10.0
    checkpoint_seconds: Annotated[float, Field(gt=0)] = Field(
        default=300.0, description="Between two states kept inside a step, so that no more work than this is lost."
    )
    deliver_seconds: float = Field(
        default=600.0, description="What an engine whose time is up may take to deliver the best so far."
    )
    inspect_timeout_seconds: float = 600.0
    stall_seconds: float = 600.0
    max_strikes: int = Field(default=3, description="Attempts that may end badly before a job fails.")

    @property
    def webhook_networks(self) -> tuple[Network, ...]:
        return tuple(ipaddress.ip_network(entry) for entry in self.webhook_allowed if "/" in entry)

    def scaled(self, seconds: float) -> float:
        return seconds * self.clock_scale


@lru_cache
def settings() -> Settings:
    """The settings of this process."""
    return Settings()
