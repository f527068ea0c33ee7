"""Requests made up from the server's own description of what it takes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

MODEL = "tiny"


def try_all(url: str, n_per_route: int, note: Callable[[str, httpx.Response], None]) -> int:
    """Send so many requests to each route; return how many were sent. `note` gets each answer."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    sent = 0
    with httpx.Client(timeout=30) as client:
        for result in schema.get_all_operations():
            operation = result.ok()

            def send(case: Any, label: str = operation.label) -> None:
                note(label, ask(client, url, case))

            for mode in modes:
                sent += each_case(
                    operation.as_strategy(generation_mode=mode), max(n_per_route // 2, 1), send
                )
    return sent


def each_case(strategy: Any, n: int, send: Callable[[Any], None]) -> int:
    """Call a function with so many cases; return how many there were."""
    seen: list[None] = []

    @settings(
        max_examples=n,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def one(case: Any) -> None:
        seen.append(None)
        send(case)

    # A route that takes nothing cannot be asked for anything wrong.
    with contextlib.suppress(Unsatisfiable):
        one()
    return len(seen)


def ask(client: httpx.Client, url: str, case: Any) -> httpx.Response:
    """Send one request as it was made up, but for the model's name and the length of the answer."""
    wanted = case.as_transport_kwargs(base_url=url)
    body = wanted.get("json")
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        body["model"] = MODEL
    content = wanted.get("data")
    headers = dict(wanted.get("headers") or {})
    if "json" in wanted:
        content = json.dumps(body).encode()
        headers["Content-Type"] = "application/json"
    request = client.build_request(
        wanted["method"],
        wanted["url"],
        params=wanted.get("params"),
        content=content if isinstance(content, (bytes, str)) else None,
        headers={k: v for k, v in headers.items() if v.isascii() and v.isprintable()},
    )
    return client.send(request)
