"""Celery: a blocking client at module level. Each forked worker connects it for itself.

celery --app examples.web.celery_app worker --pool prefork --concurrency 2
"""

from __future__ import annotations

import os
from typing import Any

import holdfast
from celery import Celery

from examples.web.counter import Counter

folder = os.environ["CELERY_FOLDER"]
tasks = Celery(
    broker="filesystem://",
    backend=f"file://{folder}",
    broker_transport_options={
        "data_folder_in": folder,
        "data_folder_out": folder,
        "control_folder": folder,
    },
)
client = holdfast.connect_blocking(os.environ["HOLDFAST_GATEWAY"])


@tasks.task(bind=True, autoretry_for=(holdfast.Unavailable,), retry_backoff=True)
def increment(self: Any, key: str) -> int:
    # Celery may run a task twice. The task's id names the effect, so the increment happens once.
    return client.get(Counter, key, idempotency_key=self.request.id).increment()
