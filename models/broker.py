"""How every process talks to the broker: measured Celery settings, the same for who sends and who receives.

The broker holds nudges and no state. Nothing here waits long: a publish to a broker that hangs gives up in seconds, and
the sweep sends again what was lost.
"""

from __future__ import annotations

from typing import Any

from models.messages import CONTROL_QUEUE, TASK_DELIVER, TASK_INSPECT, TASK_SWEEP

SOCKET_SECONDS = 5


def celery_settings(broker_url: str) -> dict[str, Any]:
    """Configuration of a Celery app. Messages are JSON, acknowledged early, never stored as results.

    A device nudge goes by `queue=queue_of(device_class)`; the others are routed here.
    """
    return {
        "broker_url": broker_url,
        "broker_transport_options": {
            # Without it a publish to a stopped Redis never returns.
            "socket_timeout": SOCKET_SECONDS,
            "socket_connect_timeout": SOCKET_SECONDS,
            "socket_keepalive": True,
            "health_check_interval": 10,
            # A nudge is gone once it is taken: the sweep sends another. kombu would keep a copy until it is
            # acknowledged, and doing that over a connection that has gone meanwhile now and then ended the worker.
            "ack_emulation": False,
            "max_retries": 1,
            "interval_start": 0,
            "interval_step": 0.2,
            "interval_max": 0.2,
        },
        "broker_connection_timeout": SOCKET_SECONDS,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_pool_limit": 4,
        "broker_pool_acquire_timeout": SOCKET_SECONDS,
        "task_publish_retry": True,
        "task_publish_retry_policy": {"max_retries": 1, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.2},
        "task_serializer": "json",
        "accept_content": ["json"],
        "event_serializer": "json",
        "result_backend": None,
        "task_ignore_result": True,
        "task_acks_late": False,
        "task_create_missing_queues": True,
        "task_default_queue": CONTROL_QUEUE,
        "task_routes": {task: {"queue": CONTROL_QUEUE} for task in (TASK_INSPECT, TASK_DELIVER, TASK_SWEEP)},
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        "worker_send_task_events": False,
        "worker_enable_remote_control": True,
        "worker_hijack_root_logger": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "enable_utc": True,
        "timezone": "UTC",
    }
