"""What each route asks of a key, and the name in the audit trail of what it does. A route that is not here is closed.

Routes are named as their operation in OpenAPI is, which is the name of their function.
"""

from __future__ import annotations

from typing import NamedTuple

from models.audit import Action
from models.scopes import Scope


class Rule(NamedTuple):
    scope: Scope | None
    """`None`: any key will do."""
    action: Action | None = None
    """`None`: looking leaves no trace."""


RULES: dict[str, Rule] = {
    "list_models": Rule(Scope.READ),
    "get_model": Rule(Scope.READ),
    "create_model": Rule(Scope.UPLOAD, Action.NETWORK_UPLOADED),
    "delete_model": Rule(Scope.DELETE, Action.NETWORK_DELETED),
    "list_datasets": Rule(Scope.READ),
    "get_dataset": Rule(Scope.READ),
    "create_dataset": Rule(Scope.UPLOAD, Action.DATASET_UPLOADED),
    "delete_dataset": Rule(Scope.DELETE, Action.DATASET_DELETED),
    "discover_uploads": Rule(None),
    "create_upload": Rule(Scope.UPLOAD, Action.UPLOAD_CREATED),
    "get_upload_offset": Rule(Scope.UPLOAD),
    "append_to_upload": Rule(Scope.UPLOAD),
    "delete_upload": Rule(Scope.UPLOAD, Action.UPLOAD_DELETED),  # part of sending: what an upload became stays
    "list_jobs": Rule(Scope.READ),
    "get_job": Rule(Scope.READ),
    "create_job": Rule(Scope.SUBMIT, Action.JOB_SUBMITTED),
    "cancel_job": Rule(Scope.SUBMIT, Action.JOB_CANCELLED),
    "clone_job": Rule(Scope.SUBMIT, Action.JOB_CLONED),
    "delete_job": Rule(Scope.DELETE, Action.JOB_DELETED),
    "list_events": Rule(Scope.READ),
    "get_log": Rule(Scope.READ),
    "list_artifacts": Rule(Scope.READ),
    "download_artifact": Rule(Scope.READ, Action.ARTIFACT_DOWNLOADED),
    "download_bundle": Rule(Scope.READ, Action.BUNDLE_DOWNLOADED),
    "get_report": Rule(Scope.READ),
    "get_job_webhook": Rule(Scope.READ),
    "redeliver_job_webhook": Rule(Scope.SUBMIT, Action.WEBHOOK_REDELIVERED),
    "list_webhook_messages": Rule(Scope.READ),
    "list_webhook_secrets": Rule(Scope.SUBMIT),  # who knows them can sign
    "rotate_webhook_secret": Rule(Scope.SUBMIT, Action.WEBHOOK_SECRET_ROTATED),
    "list_presets": Rule(None),
    "get_job_schema": Rule(None),
    "get_capabilities": Rule(None),
}
