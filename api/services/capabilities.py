"""What this deployment can do: read from the spec's own types, and from the workers that are alive."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any, get_args

from api.deps import MAX_ITEMS, MAX_WAIT_SECONDS, Service
from api.services.devices import live
from api.services.resumable import max_size_bytes
from api.strict_json import MAX_JSON_BYTES
from models.criteria import WEIGHT_CRITERIA
from models.inspection import DatasetInspection, NetworkInspection
from models.messages import DEVICE_CLASSES
from models.never_exercised import NEVER_EXERCISED
from models.quotas import Limits
from models.settings import Settings
from models.spec import (
    Amount,
    Blocks,
    ExportFormat,
    FactorizeStep,
    FinetuneStep,
    Metric,
    NOfM,
    PruneStep,
    Rank,
    Schedule,
    SensitivityStep,
    SparsifyStep,
    Target,
    Task,
)
from models.spec_optimizer import AdamW, Sgd
from models.spec_quantize import QUANTIZE_STEPS
from models.spec_regularize import L1, BatchNormGamma, GroupLasso, Growing
from models.spec_speed import Speed
from models.tables import Worker
from models.views import Capabilities, DeviceView, LimitsView, WebhooksView
from models.webhook_views import EventType
from models.webhooks import SCHEDULE


def _choices(annotation: Any) -> list[str]:
    """The strings a Literal type allows, also inside a union with None."""
    found: list[str] = []
    for argument in get_args(annotation):
        found += [argument] if isinstance(argument, str) else _choices(argument)
    return found


def _field(model: Any, name: str) -> list[str]:
    return _choices(model.model_fields[name].annotation)


def _of_schemes(name: str) -> list[str]:
    """What the classes of `quantize` allow in the field `name`, those that have it."""
    steps = [step for step in QUANTIZE_STEPS if name in step.model_fields]
    return list(dict.fromkeys(choice for step in steps for choice in _field(step, name)))


def _versions(workers: Iterable[Worker]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for worker in workers:
        for name, number in worker.versions.items():
            found.setdefault(name, set()).add(str(number))
    return {name: sorted(numbers) for name, numbers in sorted(found.items())}


def _device(device: str, workers: list[Worker]) -> DeviceView:
    memory = [worker.memory_bytes for worker in workers if worker.memory_bytes is not None]
    return DeviceView(
        device=device,
        workers=len(workers),
        slots=sum(worker.slots for worker in workers),
        memory_bytes=max(memory, default=None),
        sandbox=sorted({worker.sandbox for worker in workers}),
        versions=_versions(workers),
    )


def _webhooks(settings: Settings) -> WebhooksView | None:
    if settings.webhook_secret is None:
        return None
    return WebhooksView(
        events=_choices(EventType),
        schemes=["https", "http"] if settings.webhook_http else ["https"],
        signature="v1 (HMAC-SHA256)",
        delays_seconds=[delay.total_seconds() for delay in SCHEDULE],
        timeout_seconds=settings.webhook_timeout_seconds,
    )


def capabilities(service: Service, limits: Limits) -> Capabilities:
    """`limits` are those of who asks."""
    with service.database.read() as session:
        alive = live(session, service.settings)
    classes = sorted({worker.device_class for worker in alive if worker.device_class})
    settings = service.settings
    steps = (PruneStep, SparsifyStep, FactorizeStep, FinetuneStep, QUANTIZE_STEPS[0], SensitivityStep)
    return Capabilities(
        steps=[choice for step in steps for choice in _field(step, "step")],
        structures=_field(PruneStep, "structure"),
        criteria=_field(PruneStep, "criterion"),
        weight_criteria=list(WEIGHT_CRITERIA),
        aggregates=_field(PruneStep, "aggregate"),
        normalizations=_field(PruneStep, "normalize"),
        patterns=["weights", *NOfM.model_fields, *Blocks.model_fields],
        factor_methods=_field(FactorizeStep, "method"),
        ranks=list(Rank.model_fields),
        scopes=_field(PruneStep, "scope"),
        amounts=list(Amount.model_fields),
        targets=list(Target.model_fields),
        curves=_field(Schedule, "curve"),
        losses=_field(FinetuneStep, "loss"),
        optimizers=[name for kind in (AdamW, Sgd) for name in _field(kind, "name")],
        rate_schedules=_field(FinetuneStep, "rate_schedule"),
        precisions=_field(Speed, "precision"),
        penalties=[name for kind in (L1, GroupLasso, BatchNormGamma, Growing) for name in _field(kind, "penalty")],
        schemes=_of_schemes("scheme"),
        methods=_of_schemes("method"),
        tasks=_choices(Task),
        metrics=_choices(Metric),
        model_formats=_field(NetworkInspection, "format"),
        dataset_formats=_field(DatasetInspection, "format"),
        export_formats=_choices(ExportFormat),
        devices=[_device(name, [worker for worker in alive if worker.device_class == name]) for name in classes],
        sandbox=sorted({worker.sandbox for worker in alive}),
        limits=LimitsView(
            model_bytes=settings.max_model_bytes,
            dataset_bytes=settings.max_dataset_bytes,
            spec_bytes=MAX_JSON_BYTES,
            wait_seconds=MAX_WAIT_SECONDS,
            list_items=MAX_ITEMS,
            body_idle_seconds=settings.body_idle_seconds,
            body_minimum_bytes_per_second=settings.body_minimum_bytes_per_second,
            upload_bytes=max_size_bytes(service),
            open_uploads=limits.open_uploads,
            upload_expiry_seconds=settings.upload_expiry_seconds,
            stored_bytes=limits.stored_bytes,
            queued_jobs=limits.queued_jobs,
            running_jobs=limits.running_jobs,
            requests_per_second=limits.requests_per_second,
            request_burst=limits.request_burst,
        ),
        webhooks=_webhooks(settings),
        versions={"modelpress": version("modelpress"), "python": platform.python_version()},
        never_exercised=list(NEVER_EXERCISED),
        never_exercised_here=[
            f"device {name}: no worker is registered" for name in DEVICE_CLASSES if name not in classes
        ],
    )
