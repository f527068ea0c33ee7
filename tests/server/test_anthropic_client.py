"""Anthropic's own client, as it comes, against the server."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import httpx
import pytest

from scripted import ScriptedEngine
from server_tools import Serve
from serving import HERMES, USER, Served

CALL = '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>'
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
TOOLS: Any = [{"name": "add", "description": "Adds.", "input_schema": SCHEMA}]


def client_of(served: Served, key: str = "none") -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=served.url, api_key=key, max_retries=0)


def create(served: Served, **options: Any) -> Any:
    given = {"model": "tiny", "messages": USER, "max_tokens": 500, **options}
    with client_of(served) as client:
        return client.messages.create(**given)


def test_a_whole_answer_with_thoughts_and_a_call(serve: Serve) -> None:
    message = create(serve([f"<think>hm</think>Adding.{CALL}"]), tools=TOOLS)
    thinking, text, call = message.content
    assert (thinking.type, thinking.thinking) == ("thinking", "hm")
    assert text.text.strip() == "Adding."
    assert (call.name, call.input) == ("add", {"a": 2, "b": 3})
    assert (message.stop_reason, message.role, message.model) == ("tool_use", "assistant", "tiny")
    assert message.usage.output_tokens > 10


def test_a_stream_says_the_same(serve: Serve) -> None:
    served = serve([f"<think>hm</think>Adding.{CALL}{CALL}"])
    with (
        client_of(served) as client,
        client.messages.stream(
            model="tiny",
            max_tokens=500,
            messages=USER,
            tools=TOOLS,  # type: ignore[arg-type]
        ) as stream,
    ):
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 4
    assert [block.type for block in final.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert final.content[2].input == {"a": 2, "b": 3}  # type: ignore[union-attr]
    assert final.stop_reason == "tool_use"
    assert final.usage.output_tokens > 10


def test_the_model_sees_the_whole_conversation(serve: Serve) -> None:
    engine = ScriptedEngine(script=["Five."], chat_template=HERMES)
    messages = [
        {"role": "user", "content": "2 + 3?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "text", "text": "Adding."},
                {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 2}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "c1",
                    "content": [{"type": "text", "text": "5"}],
                },
                {"type": "text", "text": "So?"},
            ],
        },
    ]
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    answer = create(serve(engine), messages=messages, system=system, tools=TOOLS)
    assert answer.content[0].text == "Five."
    prompt = engine.prompts[0]
    order = [
        prompt.index(t) for t in ("Be brief.", "2 + 3?", "<think>hm", "Adding.", "tool\n5", "So?")
    ]
    assert order == sorted(order)


def test_ends_are_told(serve: Serve) -> None:
    served = serve(lambda prompt: "one two three")
    cut = create(served, max_tokens=3)
    assert (cut.content[0].text, cut.stop_reason) == ("one", "max_tokens")
    stopped = create(served, stop_sequences=["two"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "two")
    sampling = {"temperature": 0.5, "top_k": 3, "top_p": 0.9}
    whole = create(served, extra_body=sampling, metadata={"user_id": "x"})
    assert (whole.stop_reason, whole.stop_sequence) == ("end_turn", None)
    assert whole.usage.cache_read_input_tokens > 0


def test_tools_can_be_asked_for(serve: Serve) -> None:
    served = serve(lambda prompt: CALL * 2)
    for choice in ({"type": "any"}, {"type": "tool", "name": "add"}):
        forced = create(served, tools=TOOLS, tool_choice=choice)
        assert forced.content[0].type == "tool_use"
        assert {type(value) for value in forced.content[0].input.values()} <= {int}
    single = {"type": "auto", "disable_parallel_tool_use": True}
    assert len(create(served, tools=TOOLS, tool_choice=single).content) == 1
    none = create(served, tools=TOOLS, tool_choice={"type": "none"})
    assert [block.type for block in none.content] == ["text"]


def test_an_answer_can_be_held_to_a_schema(serve: Serve) -> None:
    served = serve(lambda prompt: "no JSON at all")
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    config = {"format": {"type": "json_schema", "schema": schema}, "effort": "low"}
    answer = create(served, output_config=config)
    assert json.loads(answer.content[0].text)["a"] in ("x", "y")
    with pytest.raises(anthropic.BadRequestError, match="cannot constrain"):
        create(served, output_config={"format": {**config["format"], "schema": {"type": "no"}}})  # type: ignore[dict-item]


def test_models_are_listed(serve: Serve) -> None:
    with client_of(serve([], names=("tiny", "other"))) as client:
        (first, second) = client.models.list()
        assert (first.id, first.type, first.display_name) == ("tiny", "model", "tiny")
        assert second.created_at.year >= 2024
        assert client.models.retrieve("other").id == "other"


def test_thinking_can_be_turned_off(serve: Serve) -> None:
    engine = ScriptedEngine(script=lambda prompt: "ok", chat_template=HERMES)
    served = serve(engine)
    create(served, thinking={"type": "disabled"})
    create(served, thinking={"type": "enabled", "budget_tokens": 1024}, max_tokens=2000)
    assert [p.endswith("<think></think>") for p in engine.prompts] == [True, False]


def test_tokens_are_counted_without_an_answer(serve: Serve) -> None:
    engine = ScriptedEngine(script=["x"], chat_template=HERMES)
    served = serve(engine)
    with client_of(served) as client:
        counted = client.messages.count_tokens(model="tiny", messages=USER)  # type: ignore[arg-type]
    assert engine.prompts == []
    assert counted.input_tokens == create(served).usage.input_tokens


def test_errors_are_those_of_the_client(serve: Serve) -> None:
    served = serve(lambda prompt: "x", api_keys=("0123456789abcdef",))
    with client_of(served) as stranger, pytest.raises(anthropic.AuthenticationError):
        stranger.messages.create(model="tiny", max_tokens=5, messages=USER)  # type: ignore[arg-type]
    for options, kind, words in (
        ({"model": "claude-9"}, anthropic.NotFoundError, "this server has 'tiny'"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]},
         anthropic.BadRequestError, "image"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
         anthropic.BadRequestError, "web_search"),
        ({"messages": [{"role": "user", "content": "x" * 9000}]},
         anthropic.BadRequestError, "context 4096"),
        ({"tool_choice": {"type": "tool"}}, anthropic.BadRequestError, "needs a name"),
    ):  # fmt: skip
        given: Any = {"model": "tiny", "max_tokens": 5, "messages": USER, **options}
        for stream in (False, True):
            with (
                client_of(served, "0123456789abcdef") as client,
                pytest.raises(kind, match=words) as refusal,
            ):
                client.messages.create(**given, stream=stream)
            body: Any = refusal.value.body
            assert body["type"] == "error"


def test_a_failure_in_the_middle_of_a_stream_is_an_event(serve: Serve) -> None:
    def fail(engine: Any, tokens: list[int]) -> None:
        if len(tokens) == 1 and engine.n_decodes > 5:
            raise RuntimeError("no more")

    engine = ScriptedEngine(script=["a long answer"], before_decode=fail)
    body = {"model": "tiny", "max_tokens": 50, "messages": USER, "stream": True}
    url = serve(engine).url
    text = httpx.post(f"{url}/v1/messages", json=body).text
    assert "event: error" in text
    assert "message_stop" not in text
    with client_of(serve(ScriptedEngine(script=["a long answer"], before_decode=fail))) as client:
        stream = client.messages.stream(model="tiny", max_tokens=50, messages=USER)  # type: ignore[arg-type]
        with pytest.raises(anthropic.APIStatusError), stream as events:
            list(events)
