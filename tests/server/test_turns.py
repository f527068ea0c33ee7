"""One answer at a time: who waits, who is sent away, and what happens when clients leave."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from scripted import ScriptedEngine
from server_tools import EndlessEngine, Serve, until
from serving import HERMES, USER, Served

PATHS = ("chat/completions", "completions", "responses", "messages")


def body(path: str, *, stream: bool = False, text: str = "hi") -> dict[str, Any]:
    prompt: dict[str, Any] = {"messages": [{"role": "user", "content": text}]}
    if path == "completions":
        prompt = {"prompt": text}
    if path == "responses":
        prompt = {"input": text}
    return {"model": "tiny", "max_tokens": 50, "stream": stream, **prompt}


def halted() -> tuple[ScriptedEngine, threading.Event]:
    """Return an engine that stands still until the event is set."""
    go = threading.Event()
    return ScriptedEngine(script=lambda p: "an answer", chat_template=HERMES, pause=go), go


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as threads:
        yield threads


def is_idle(served: Served) -> bool:
    return not served.service.worker.is_busy and served.service.worker.waiting == 0


def test_past_the_bound_clients_are_sent_away_and_told_when_to_come_back(
    serve: Serve, pool: ThreadPoolExecutor
) -> None:
    engine, go = halted()
    served = serve(engine, max_queue=2)
    worker = served.service.worker

    def ask() -> httpx.Response:
        return httpx.post(f"{served.api}/messages", json=body("messages"), timeout=30)

    waiting = [pool.submit(ask)]
    until(lambda: worker.is_busy)
    for n in (1, 2):
        waiting.append(pool.submit(ask))
        until(lambda n=n: worker.waiting == n)
    refused = ask()
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["type"] == "rate_limit_error"
    with (
        openai.OpenAI(base_url=served.api, api_key="x", max_retries=0) as client,
        pytest.raises(openai.RateLimitError),
    ):
        client.chat.completions.create(model="tiny", messages=USER)  # type: ignore[arg-type]
    go.set()
    assert [each.result().status_code for each in waiting] == [200, 200, 200]
    assert served.service.ledger.rejected == 2


def test_keys_take_turns(serve: Serve, pool: ThreadPoolExecutor) -> None:
    engine, go = halted()
    keys = ("0123456789-first", "0123456789-second")
    served = serve(engine, api_keys=keys)
    worker = served.service.worker

    def ask(key: str, text: str) -> None:
        headers = {"x-api-key": key}
        path = f"{served.api}/completions"
        httpx.post(path, json=body("completions", text=text), headers=headers, timeout=30)

    asked = [pool.submit(ask, keys[0], "first of all")]
    until(lambda: worker.is_busy)
    for n, (key, text) in enumerate([(0, "a1"), (0, "a2"), (0, "a3"), (1, "b1")]):
        asked.append(pool.submit(ask, keys[key], text))
        until(lambda n=n: worker.waiting == n + 1)
    go.set()
    for each in asked:
        each.result()
    assert engine.prompts == ["first of all", "a1", "b1", "a2", "a3"]


@pytest.mark.parametrize("path", PATHS)
def test_an_answer_ends_when_its_client_goes_away(serve: Serve, path: str) -> None:
    engine = EndlessEngine(lambda p: "long " * 500 if "long" in p else "short", "long")
    served = serve(engine)
    wanted = body(path, stream=True, text="long") | {"max_tokens": 2000, "max_output_tokens": 2000}
    with httpx.stream("POST", f"{served.api}/{path}", json=wanted) as response:
        lines = response.iter_lines()  # once it is dropped, so is the connection
        assert len([next(lines) for _ in range(8)]) == 8
        until(engine.stands.is_set)
    until(lambda: is_idle(served))
    assert served.service.ledger.finishes["cancelled"] == 1
    assert httpx.post(f"{served.api}/{path}", json=body(path)).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_clients_may_go_away_while_the_prompt_is_read_and_while_they_wait(
    serve: Serve, pool: ThreadPoolExecutor, stream: bool
) -> None:
    engine, go = halted()
    served = serve(engine)
    worker, path = served.service.worker, "chat/completions"
    clients = [httpx.Client(), httpx.Client()]

    def ask(client: httpx.Client) -> None:
        with client, pytest.raises((httpx.TransportError, RuntimeError, OSError)):
            client.post(
                f"{served.api}/{path}",
                json=body(path, stream=stream),
                timeout=httpx.Timeout(30, read=0.5),
            )

    first = pool.submit(ask, clients[0])
    until(lambda: worker.is_busy)
    second = pool.submit(ask, clients[1])
    until(lambda: worker.waiting == 1)
    first.result()
    second.result()
    until(lambda: is_idle(served))
    assert served.service.ledger.finishes["cancelled"] == 2
    go.set()
    assert httpx.post(f"{served.api}/{path}", json=body(path)).status_code == 200


@pytest.mark.parametrize("path", PATHS)
def test_a_stream_whose_turn_does_not_come_is_begun_and_fails_inside(
    serve: Serve, pool: ThreadPoolExecutor, path: str
) -> None:
    engine, go = halted()
    served = serve(engine, patience_seconds=0.0)
    worker = served.service.worker
    with httpx.stream("POST", f"{served.api}/{path}", json=body(path, stream=True)) as response:
        assert response.status_code == 200
        until(lambda: worker.is_busy)
        long = body(path, stream=True, text="x" * 9000)
        with httpx.stream("POST", f"{served.api}/{path}", json=long) as second:
            assert second.status_code == 200
            go.set()
            response.read()
            second.read()
    assert response.text.count("data: ") > len("an answer")
    assert "context 4096" in second.text
    assert "message_stop" not in second.text
    assert "[DONE]" not in second.text


def test_an_engine_that_fails_serves_the_next_request(serve: Serve) -> None:
    def script(prompt: str) -> str:
        if "fail" in prompt:
            raise RuntimeError("no more")
        return "fine"

    served = serve(script)
    url = f"{served.api}/chat/completions"
    failed = httpx.post(url, json=body("chat/completions", text="fail"))
    assert failed.status_code == 500
    assert failed.json()["error"]["type"] == "server_error"
    assert httpx.post(url, json=body("chat/completions")).status_code == 200
    until(lambda: is_idle(served))
    assert served.service.ledger.finishes == {"error": 1, "stop": 1}


def test_stopping_ends_the_answer_and_tells_who_waits(
    serve: Serve, pool: ThreadPoolExecutor
) -> None:
    engine, _ = halted()
    served = serve(engine)
    worker = served.service.worker

    def ask() -> int:
        path = f"{served.api}/chat/completions"
        return httpx.post(path, json=body("chat/completions"), timeout=30).status_code

    asked = [pool.submit(ask), pool.submit(ask)]
    until(lambda: worker.is_busy and worker.waiting == 1)
    served.server.end()
    assert [each.result() for each in asked] == [503, 503]
    assert worker.join(30)


def test_figures_for_prometheus(serve: Serve) -> None:
    served = serve(["<think>hm</think>one", "two"])
    for text in ("a", "b"):
        httpx.post(f"{served.api}/messages", json=body("messages", text=text))
    httpx.get(f"{served.url}/no/such/path")
    response = httpx.get(f"{served.url}/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    figures = dict(
        line.rsplit(" ", 1) for line in response.text.splitlines() if not line.startswith("#")
    )
    assert float(figures["localmoe_answer_tokens_total"]) == len("<think>hm</think>onetwo")
    assert float(figures["localmoe_reasoning_tokens_total"]) > 0
    assert float(figures["localmoe_cached_tokens_total"]) > 0
    assert float(figures["localmoe_expert_hits_total"]) > 0
    assert float(figures["localmoe_read_bytes_total"]) > 0
    assert float(figures["localmoe_stall_seconds_total"]) > 0
    assert float(figures["localmoe_hit_rate"]) == 0.75
    assert figures['localmoe_answers_total{finish="stop"}'] == "2.0"
    assert figures['localmoe_responses_total{path="/v1/messages",status="200"}'] == "2.0"
    assert figures['localmoe_responses_total{path="other",status="404"}'] == "1.0"
    assert figures["localmoe_waiting"] == figures["localmoe_running"] == "0.0"
