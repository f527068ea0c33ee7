"""Who may ask: keys, hosts, origins and sizes."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from scripted import ScriptedEngine
from server_tools import Serve, until
from serving import HERMES, USER

KEY = "0123456789abcdef-secret"
BODY = {"model": "tiny", "messages": USER}
ALL = ("/v1/models", "/metrics", "/live", "/openapi.json", "/v1/nothing")


def post(url: str, **options: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json=BODY, **options)


@pytest.mark.parametrize(
    "headers",
    [{"Authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}, {"authorization": f"bearer {KEY}"}],
)
def test_a_key_opens_the_door_as_both_apis_send_it(serve: Serve, headers: dict[str, str]) -> None:
    url = serve(["hello"], api_keys=("another-key-of-ours", KEY)).url
    assert post(url, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}, {"x-api-key": f"{KEY}x"},
     {"x-api-key": ""}, {"Authorization": "Bearer"}],
)  # fmt: skip
def test_without_it_nothing_is_told(serve: Serve, headers: dict[str, str]) -> None:
    url = serve([], api_keys=(KEY,)).url
    assert post(url, headers=headers).status_code == 401
    for path in ALL:
        refused = httpx.get(url + path, headers=headers)
        assert refused.status_code == 401, path
        assert refused.headers["www-authenticate"] == "Bearer"
        assert refused.json()["error"]["type"] == "authentication_error"
    for path in ("/", "/health"):
        assert httpx.get(url + path, headers=headers).status_code == 200


def test_a_page_that_has_its_name_lead_here_is_refused(serve: Serve) -> None:
    url = serve(["hello", "hello"]).url
    port = url.rpartition(":")[2]
    for host in (f"evil.example:{port}", "evil.example", "", "127.0.0.1.evil.example", "[::2]:80"):
        refused = post(url, headers={"Host": host})
        assert refused.status_code == 403, host
        assert "Host" in refused.json()["error"]["message"]
    for host in (f"localhost:{port}", f"127.0.0.1:{port}"):
        assert post(url, headers={"Host": host}).status_code == 200


def test_with_a_key_the_server_answers_to_any_name(serve: Serve) -> None:
    url = serve(["hello"], api_keys=(KEY,)).url
    assert post(url, headers={"Host": "behind.a.proxy", "x-api-key": KEY}).status_code == 200


def test_pages_of_other_sites_may_not_ask_unless_they_are_allowed(serve: Serve) -> None:
    url = serve(["hello", "hello", "hello"], allow_origins=("https://good.example",)).url
    for origin in ("https://evil.example", "null", "http://good.example", f"{url}0"):
        refused = post(url, headers={"Origin": origin})
        assert refused.status_code == 403
        assert "access-control-allow-origin" not in refused.headers
    own = post(url, headers={"Origin": url})
    assert own.status_code == 200
    assert "access-control-allow-origin" not in own.headers
    good = post(url, headers={"Origin": "https://good.example"})
    assert good.headers["access-control-allow-origin"] == "https://good.example"
    foreign = {"Sec-Fetch-Site": "cross-site"}
    assert httpx.get(f"{url}/live", headers=foreign).status_code == 403
    assert httpx.get(url, headers=foreign).status_code == 200


def test_browsers_may_ask_first_for_allowed_origins_alone(serve: Serve) -> None:
    url = serve([], allow_origins=("https://good.example",), api_keys=(KEY,)).url
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    good = httpx.options(f"{url}/v1/models", headers={"Origin": "https://good.example", **asks})
    assert good.status_code == 204
    assert good.headers["access-control-allow-headers"] == "x-api-key"
    bad = httpx.options(f"{url}/v1/models", headers={"Origin": "https://evil.example", **asks})
    assert bad.status_code == 403


@pytest.mark.parametrize("told", [True, False])
def test_long_requests_are_refused_with_the_numbers(serve: Serve, told: bool) -> None:
    url = serve([], max_request_bytes=1000).url
    body = b"x" * 5000
    content: Any = body if told else iter([body[:600], body[600:1200], body[1200:]])
    for path, kind in (
        ("chat/completions", "invalid_request_error"),
        ("messages", "request_too_large"),
    ):
        refused = httpx.post(f"{url}/v1/{path}", content=content if told else iter([body]))
        assert refused.status_code == 413
        assert refused.json()["error"]["type"] == kind
        assert "at most 1000" in refused.json()["error"]["message"]


def test_requests_together_are_bounded_in_bytes(serve: Serve) -> None:
    halt = threading.Event()
    engine = ScriptedEngine(script=lambda prompt: "ok", chat_template=HERMES, pause=halt)
    served = serve(engine, max_request_bytes=1000)
    body = {**BODY, "metadata": {"filler": "x" * 850}}
    with ThreadPoolExecutor(4) as pool:

        def ask(_: int) -> int:
            return httpx.post(f"{served.api}/chat/completions", json=body, timeout=30).status_code

        asked = [pool.submit(ask, number) for number in range(4)]
        worker = served.service.worker
        until(lambda: worker.is_busy and worker.waiting == 3)
        refused = httpx.post(f"{served.api}/messages", json=body)
        assert refused.status_code == 429
        assert refused.headers["retry-after"]
        assert "at most 4000" in refused.json()["error"]["message"]
        assert httpx.get(f"{served.api}/models").status_code == 200
        halt.set()
        assert [each.result() for each in asked] == [200] * 4
    # Those that are over, and those that were refused, have given their room back.
    assert [ask(number) for number in range(3)] == [200] * 3


def test_neither_keys_nor_words_come_into_the_log(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    def script(prompt: str) -> str:
        if "fail" in prompt:
            raise RuntimeError(f"a failure that quotes: {prompt}")
        return "the SECRET answer"

    with caplog.at_level(logging.DEBUG, "localmoe.server"):
        url = serve(script, api_keys=(KEY,)).url
        headers = {"x-api-key": KEY}
        question = [{"role": "user", "content": "the SECRET question"}]
        assert post(url, headers=headers).status_code == 200
        body = {"model": "tiny", "messages": question}
        assert httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers).is_success
        question[0]["content"] += ": fail"
        failed = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers)
        assert failed.status_code == 500
        assert "RuntimeError" in failed.json()["error"]["message"]
    assert "RuntimeError at" in caplog.text
    assert "16 said" in caplog.text or "said" in caplog.text
    for secret in (KEY, "SECRET"):
        assert secret not in caplog.text
        assert secret not in failed.text


def test_the_routes_that_are_not_there_say_so_in_each_api(serve: Serve) -> None:
    url = serve([]).url
    missing = httpx.get(f"{url}/v1/nothing")
    assert missing.status_code == 404
    assert missing.json()["error"]["type"] == "not_found_error"
    wrong = httpx.get(f"{url}/v1/messages")
    assert wrong.status_code == 405
    assert wrong.json()["type"] == "error"
    assert httpx.get(f"{url}/docs").status_code == 404
