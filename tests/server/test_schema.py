"""Whatever a request looks like, it is answered or refused: the server does not fail."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from server_schema import try_all
from server_tools import Serve

PATHS = ("chat/completions", "completions", "responses", "messages", "messages/count_tokens")


def test_requests_made_up_from_the_description_never_fail(serve: Serve) -> None:
    served = serve(lambda prompt: "ok")
    failed: list[str] = []

    def note(label: str, response: httpx.Response) -> None:
        assert "content-type" in response.headers
        if response.status_code >= 500:
            failed.append(f"{label}: {response.request.content!r}")

    assert try_all(served.url, 8, note) > 40
    assert failed == []


BODIES: dict[str, Any] = {
    "nothing": b"",
    "no JSON": b"{",
    "no object": b"[]",
    "a number": b"1",
    "not UTF-8": b'{"model": "\xff"}',
    "half a character": b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}],'
    b' "prompt": "\\ud800", "input": "\\ud800", "max_tokens": 5}',
    "not a number": b'{"model": "tiny", "temperature": NaN, "messages": [], "max_tokens": 5}',
    "infinite": b'{"model": "tiny", "temperature": 1e999, "messages": [], "max_tokens": 5}',
    "a long number": b'{"model": "tiny", "max_tokens": ' + b"9" * 5000 + b"}",
    "deep": b'{"model": "tiny", "tools": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "deep inside": json.dumps(
        {"model": "tiny", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}],
         "tools": [{"name": "f", "input_schema": json.loads('{"a":' * 80 + "1" + "}" * 80)}]}
    ).encode(),
    "nulls": b'{"model": null, "messages": null, "prompt": null, "input": null}',
    "zero bytes": b'{"model": "tiny\\u0000", "messages": [{"role": "user", "content": "\\u0000"}]}',
}  # fmt: skip


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_hostile_bodies_are_refused(serve: Serve, body: bytes) -> None:
    url = serve(lambda prompt: "ok").api
    for path in PATHS:
        for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded", ""):
            response = httpx.post(f"{url}/{path}", content=body, headers={"Content-Type": kind})
            assert 400 <= response.status_code < 500, (path, kind, response.text)
            assert response.json()["error"]["message"]


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}},
        {"type": "string", "pattern": "(" * 500},
        {"type": "string", "minLength": 1 << 40},
        {"enum": []},
        {"type": ["nonsense"]},
        {"allOf": [{"type": "string"}, {"type": "object"}]},
    ],
)
def test_hostile_schemas_are_refused_or_held_to(serve: Serve, schema: dict[str, Any]) -> None:
    served = serve(lambda prompt: "ok")
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    messages = [{"role": "user", "content": "x"}]
    body = {"model": "tiny", "max_tokens": 3, "messages": messages, "response_format": form}
    assert httpx.post(f"{served.api}/chat/completions", json=body).status_code in (200, 400)
    again = {"model": "tiny", "max_tokens": 3, "messages": messages}
    assert httpx.post(f"{served.api}/chat/completions", json=again).status_code == 200
