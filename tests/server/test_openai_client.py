"""OpenAI's own client, as it comes, against the server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from scripted import ScriptedEngine
from server_tools import Serve, serving
from serving import HERMES, USER, Served

CALL = '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>'
PARAMETERS = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
TOOLS: Any = [{"type": "function", "function": {"name": "add", "parameters": PARAMETERS}}]


@pytest.fixture(scope="module")
def silent() -> Iterator[Served]:
    """Return a server that has nothing to say."""
    with serving() as start:
        yield start([])


def client_of(served: Served, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=served.api, api_key=key, max_retries=0)


def chat(served: Served, **options: Any) -> Any:
    given = {"model": "tiny", "messages": USER, **options}
    with client_of(served) as client:
        answer = client.chat.completions.create(**given)
        return list(answer) if options.get("stream") else answer


def test_a_whole_answer_with_thoughts_and_what_it_cost(serve: Serve) -> None:
    served = serve(["<think>hm</think>Hello.", "<think>hm</think>Hello."])
    first = chat(served)
    message = first.choices[0].message
    assert (message.content, message.reasoning_content) == ("Hello.", "hm")
    assert (first.choices[0].finish_reason, first.model, first.object) == (
        "stop",
        "tiny",
        "chat.completion",
    )
    usage = first.usage
    assert usage.prompt_tokens > 10
    assert usage.completion_tokens == len("<think>hm</think>Hello.")
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens == 0
    again = chat(served)
    assert again.usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1


def test_a_stream_says_the_same_piece_by_piece(serve: Serve) -> None:
    served = serve(["<think>hm</think>Grüße."])
    chunks = list(chat(served, stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == "Grüße."
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "hm"
    assert len({chunk.id for chunk in chunks}) == 1
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 5
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert all(chunk.usage is None for chunk in chat(serve(["x"]), stream=True))


def test_calls_of_tools_whole_and_as_a_stream(serve: Serve) -> None:
    served = serve([f"Adding.{CALL}{CALL}", f"Adding.{CALL}{CALL}"])
    whole = chat(served, tools=TOOLS).choices[0]
    assert whole.finish_reason == "tool_calls"
    assert whole.message.content.strip() == "Adding."
    assert len({call.id for call in whole.message.tool_calls}) == 2
    for call in whole.message.tool_calls:
        assert (call.type, call.function.name) == ("function", "add")
        assert json.loads(call.function.arguments) == {"a": 2, "b": 3}
    with (
        client_of(served) as client,
        client.chat.completions.stream(model="tiny", messages=USER, tools=TOOLS) as stream,
    ):
        kinds = {event.type for event in stream}
        final = stream.get_final_completion().choices[0]
    assert {"tool_calls.function.arguments.delta", "content.delta"} <= kinds
    assert final.finish_reason == "tool_calls"
    assert [call.function.arguments for call in final.message.tool_calls or ()] == [
        call.function.arguments for call in whole.message.tool_calls
    ]


def test_one_call_at_a_time_where_that_is_asked_for(serve: Serve) -> None:
    served = serve([CALL * 3, CALL * 3])
    whole = chat(served, tools=TOOLS, parallel_tool_calls=False).choices[0]
    assert (len(whole.message.tool_calls), whole.finish_reason) == (1, "tool_calls")
    chunks = list(chat(served, tools=TOOLS, parallel_tool_calls=False, stream=True))
    indices = {c.index for chunk in chunks for c in chunk.choices[0].delta.tool_calls or ()}
    assert indices == {0}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_the_model_sees_tools_calls_results_and_thoughts(serve: Serve) -> None:
    engine = ScriptedEngine(script=["Five."], chat_template=HERMES)
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "2 + 3?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "c1", "content": "5"},
    ]
    assert chat(serve(engine), messages=messages, tools=TOOLS).choices[0].message.content == "Five."
    prompt = engine.prompts[0]
    for text in ("Be brief.", "2 + 3?", '"add"', '{"a": 2}', "<think>hm</think>", "tool\n5"):
        assert text in prompt, text


def test_an_answer_can_be_held_to_a_schema(serve: Serve) -> None:
    class Point(BaseModel):
        x: int
        y: int

    served = serve(lambda prompt: '{"x": 1, "y": 22}')
    with client_of(served) as client:
        parsed = client.chat.completions.parse(
            model="tiny",
            messages=USER,
            response_format=Point,  # type: ignore[arg-type]
        )
    assert parsed.choices[0].message.parsed == Point(x=1, y=22)
    held = chat(serve(["no JSON at all"]), response_format={"type": "json_object"}, max_tokens=40)
    assert held.choices[0].message.content.lstrip().startswith("{")


def test_a_tool_that_has_to_be_called_is_called(serve: Serve) -> None:
    served = serve(lambda prompt: CALL)
    for choice in ("required", {"type": "function", "function": {"name": "add"}}):
        answer = chat(served, tools=TOOLS, tool_choice=choice).choices[0].message
        arguments = json.loads(answer.tool_calls[0].function.arguments)
        assert {name: type(value) for name, value in arguments.items()} == {"a": int, "b": int}
    none = chat(serve([CALL]), tools=TOOLS, tool_choice="none").choices[0].message
    assert none.tool_calls is None


def test_probabilities_belong_to_their_tokens(serve: Serve) -> None:
    served = serve(["<think>x</think>ab", "ab"])
    logprobs = chat(served, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert [each.token for each in logprobs] == ["a", "b"]
    assert [each.bytes for each in logprobs] == [[97], [98]]
    assert all(len(each.top_logprobs) == 3 for each in logprobs)
    assert all(each.top_logprobs[0].token == each.token for each in logprobs)
    assert all(-0.01 < each.logprob <= 0 for each in logprobs)
    chunks = list(chat(served, stream=True, logprobs=True))
    streamed = [
        t.token for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content
    ]
    assert streamed == ["a", "b"]


def test_ends_are_told(serve: Serve) -> None:
    served = serve(lambda prompt: "one two three")
    cut = chat(served, max_completion_tokens=3, max_tokens=9).choices[0]
    assert (cut.message.content, cut.finish_reason) == ("one", "length")
    stopped = chat(served, stop=["two"]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == ("one ", "stop")
    full = chat(serve(ScriptedEngine(script=["x" * 99], context_tokens=64))).choices[0]
    assert full.finish_reason == "length"


def test_thinking_can_be_turned_off_and_options_reach_the_template(serve: Serve) -> None:
    engine = ScriptedEngine(script=lambda prompt: "ok", chat_template=HERMES)
    served = serve(engine)
    chat(served, reasoning_effort="none")
    chat(served, extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    chat(served, reasoning_effort="high")
    assert [p.endswith("<think></think>") for p in engine.prompts] == [True, True, False]


def test_plain_text_goes_on(serve: Serve) -> None:
    engine = ScriptedEngine(script=lambda prompt: " time")
    served = serve(engine)
    with client_of(served) as client:
        whole = client.completions.create(model="tiny", prompt="Once upon a", logprobs=2)
        assert whole.choices[0].text == " time"
        assert engine.prompts == ["Once upon a"]
        logprobs = whole.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.tokens == [" ", "t", "i", "m", "e"]
        assert logprobs.text_offset == [0, 1, 2, 3, 4]
        given: Any = {"model": "tiny", "prompt": list(b"Twice upon a"), "stream": True}
        chunks = list(client.completions.create(**given))
        assert "".join(chunk.choices[0].text for chunk in chunks) == " time"
        assert chunks[-1].choices[0].finish_reason == "stop"
        with pytest.raises(openai.BadRequestError, match="single one"):
            client.completions.create(model="tiny", prompt=["a", "b"])


def test_responses_whole_and_as_a_stream(serve: Serve) -> None:
    served = serve(lambda prompt: f"<think>hm</think>Adding.{CALL}")
    tools: Any = [{"type": "function", "name": "add", "parameters": PARAMETERS, "strict": True}]
    with client_of(served) as client:
        whole = client.responses.create(model="tiny", input="2 + 3?", tools=tools)
        with client.responses.stream(model="tiny", input="2 + 3?", tools=tools) as stream:
            events = list(stream)
            final = stream.get_final_response()
    for response in (whole, final):
        assert response.status == "completed"
        assert [item.type for item in response.output] == ["reasoning", "message", "function_call"]
        assert response.output_text.strip() == "Adding."
        thoughts: Any = response.output[0]
        assert thoughts.content[0].text == "hm"
        call: Any = response.output[2]
        assert (call.name, json.loads(call.arguments)) == ("add", {"a": 2, "b": 3})
        assert response.usage is not None
        assert response.usage.output_tokens_details.reasoning_tokens > 0
    kinds = [event.type for event in events]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert {"response.reasoning_text.delta", "response.output_text.delta"} <= set(kinds)
    assert "response.function_call_arguments.done" in kinds
    assert [event.sequence_number for event in events] == sorted(
        event.sequence_number for event in events
    )


def test_responses_are_held_to_a_schema_and_say_so(serve: Serve) -> None:
    schema: Any = {"type": "object", "properties": {"a": {"enum": ["x"]}}, "required": ["a"]}
    form: Any = {"type": "json_schema", "name": "one", "schema": schema, "strict": True}
    with client_of(serve(lambda prompt: "no JSON at all")) as client:
        answer = client.responses.create(model="tiny", input="x", text={"format": form})
        assert json.loads(answer.output_text)["a"] == "x"
        assert answer.text is not None
        assert answer.text.model_dump(by_alias=True, exclude_none=True) == {"format": form}
        for more in ({"top_logprobs": 2}, {"include": ["message.output_text.logprobs"]}):
            with pytest.raises(openai.BadRequestError, match="logprobs"):
                client.responses.create(model="tiny", input="x", **more)  # type: ignore[call-overload]


def test_responses_take_back_what_they_gave(serve: Serve) -> None:
    engine = ScriptedEngine(script=[f"<think>hm</think>{CALL}", "Five."], chat_template=HERMES)
    tools: Any = [{"type": "function", "name": "add", "parameters": PARAMETERS, "strict": True}]
    with client_of(serve(engine)) as client:
        first = client.responses.create(
            model="tiny", input="2 + 3?", instructions="Be brief.", tools=tools
        )
        history: Any = [{"role": "user", "content": "2 + 3?"}]
        history += [item.model_dump(exclude_none=True) for item in first.output]
        call: Any = first.output[-1]
        history.append({"type": "function_call_output", "call_id": call.call_id, "output": "5"})
        second = client.responses.create(
            model="tiny", input=history, instructions="Be brief.", tools=tools
        )
    assert second.output_text == "Five."
    for text in ("Be brief.", "<think>hm</think>", "<tool_call>", "tool\n5"):
        assert text in engine.prompts[1], text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n": 2}, "must be 1"),
        ({"frequency_penalty": 0.5}, "frequency_penalty is not supported"),
        ({"logit_bias": {"1": 1}}, "logit_bias"),
        ({"temperature": -1}, "temperature"),
        ({"top_logprobs": 2}, "needs logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "only text"),
        ({"messages": [{"role": "user", "content": "x" * 9000}]}, "context 4096"),
        ({"tool_choice": "required"}, "no tools"),
        ({"tools": TOOLS * 2}, "same name"),
        ({"response_format": {"type": "json_schema"}}, "needs a schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema":
            {"type": "nonsense"}}}}, "cannot constrain"),
        ({"stop": ""}, "must not be empty"),
        ({"seed": 1 << 70}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_done_is_refused_with_words(
    silent: Served, options: dict[str, Any], words: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        chat(silent, stream=stream, **options)


def test_errors_are_those_of_the_client(serve: Serve) -> None:
    served = serve([], api_keys=("0123456789abcdef",))
    with client_of(served) as stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    with client_of(served, "0123456789abcdef") as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        assert client.models.retrieve("tiny").id == "tiny"
        for ask in (
            lambda: client.models.retrieve("gpt-9"),
            lambda: client.chat.completions.create(model="gpt-9", messages=USER),  # type: ignore[arg-type]
            lambda: client.responses.create(model="gpt-9", input="x"),
        ):
            with pytest.raises(openai.NotFoundError, match="this server has 'tiny'"):
                ask()


def test_a_model_may_have_many_names(serve: Serve) -> None:
    served = serve(["a", "b"], names=("tiny", "gpt-9", "*"))
    assert chat(served, model="anything").model == "tiny"
    with client_of(served) as client:
        assert [model.id for model in client.models.list()] == ["tiny", "gpt-9"]
