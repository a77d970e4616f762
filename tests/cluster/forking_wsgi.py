"""An application for a prefork server, with a client that is made, and used, before the workers are
forked."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

import holdfast

client = holdfast.connect_blocking(os.environ["GATEWAY"], timeout=30)
counter = client.get("Counter", os.environ["KEY"])
counter.increment()


def app(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    told = {"pid": os.getpid(), "n": counter.increment()}
    start("200 OK", [("content-type", "application/json")])
    return [json.dumps(told).encode()]
