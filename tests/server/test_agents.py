"""Programs that call tools until they are done, through the clients that they use."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from scripted import ScriptedEngine
from server_tools import Serve
from serving import HERMES

FILES = {"a.txt": "six", "b.txt": "seven"}
QUESTION = "What is the product of the numbers in the files?"
SCHEMAS: dict[str, Any] = {
    "list_files": {"type": "object", "properties": {}},
    "read_file": {
        "type": "object",
        "properties": {"name": {"type": "string"}},
        "required": ["name"],
    },
}


def list_files() -> str:
    return ", ".join(FILES)


def read_file(name: str) -> str:
    return FILES[name]


FUNCTIONS: dict[str, Callable[..., str]] = {"list_files": list_files, "read_file": read_file}


def call(name: str, /, **arguments: str) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def agent(prompt: str) -> str:
    """Look, read both files, answer: what to do next follows from what the prompt holds."""
    said = prompt[prompt.index(QUESTION) :]
    if "a.txt, b.txt" not in said:
        return f"<think>which files?</think>{call('list_files')}"
    if "six" not in said:
        return "Reading." + call("read_file", name="a.txt") + call("read_file", name="b.txt")
    assert said.index("six") < said.index("seven"), "results lie in the order of their calls"
    return "<think>6 * 7</think>It is 42."


def engine() -> ScriptedEngine:
    return ScriptedEngine(script=agent, chat_template=HERMES)


@pytest.mark.parametrize("stream", [False, True])
def test_an_agent_on_the_openai_client(serve: Serve, stream: bool) -> None:
    tools: Any = [
        {"type": "function", "function": {"name": name, "parameters": schema, "strict": False}}
        for name, schema in SCHEMAS.items()
    ]
    messages: Any = [{"role": "user", "content": QUESTION}]
    with openai.OpenAI(base_url=serve(engine()).api, api_key="x") as client:
        for _ in range(4):
            given: Any = {"model": "tiny", "messages": messages, "tools": tools}
            if stream:
                with client.chat.completions.stream(**given) as events:
                    message = events.get_final_completion().choices[0].message
            else:
                message = client.chat.completions.create(**given).choices[0].message
            messages.append(message.model_dump(exclude_none=True))
            for each in message.tool_calls or ():
                function: Any = each.function  # type: ignore[union-attr]
                result = FUNCTIONS[function.name](**json.loads(function.arguments))
                messages.append({"role": "tool", "tool_call_id": each.id, "content": result})
    assert messages[-1]["content"] == "It is 42."
    assert [m["role"] for m in messages if m["role"] != "assistant"] == ["user", *["tool"] * 3]


def test_an_agent_on_the_responses(serve: Serve) -> None:
    tools: Any = [
        {"type": "function", "name": name, "parameters": schema, "strict": False}
        for name, schema in SCHEMAS.items()
    ]
    items: Any = [{"role": "user", "content": QUESTION}]
    with openai.OpenAI(base_url=serve(engine()).api, api_key="x") as client:
        for _ in range(4):
            response = client.responses.create(model="tiny", input=items, tools=tools)
            items += [item.model_dump(exclude_none=True) for item in response.output]
            for item in response.output:
                if item.type == "function_call":
                    result = FUNCTIONS[item.name](**json.loads(item.arguments))
                    output = {"call_id": item.call_id, "output": result}
                    items.append({"type": "function_call_output", **output})
    assert response.output_text == "It is 42."


@pytest.mark.parametrize("stream", [False, True])
def test_an_agent_on_the_anthropic_client(serve: Serve, stream: bool) -> None:
    tools: Any = [{"name": name, "input_schema": schema} for name, schema in SCHEMAS.items()]
    messages: Any = [{"role": "user", "content": QUESTION}]
    with anthropic.Anthropic(base_url=serve(engine()).url, api_key="x") as client:
        while True:
            given: Any = {"model": "tiny", "max_tokens": 500, "messages": messages, "tools": tools}
            if stream:
                with client.messages.stream(**given) as events:
                    message = events.get_final_message()
            else:
                message = client.messages.create(**given)
            content = [block.model_dump(exclude_none=True) for block in message.content]
            messages.append({"role": "assistant", "content": content})
            if message.stop_reason != "tool_use":
                break
            results = [
                {
                    "type": "tool_result",
                    "tool_use_id": block.id,
                    "content": FUNCTIONS[block.name](**block.input),  # type: ignore[arg-type]
                }
                for block in message.content
                if block.type == "tool_use"
            ]
            messages.append({"role": "user", "content": results})
    assert message.content[-1].text == "It is 42."  # type: ignore[union-attr]
    assert len(messages) == 6


def test_litellm_calls_tools_and_streams(serve: Serve) -> None:
    """In a process of its own: it keeps connections and an event loop open until that ends."""
    tools = [
        {"type": "function", "function": {"name": name, "parameters": schema}}
        for name, schema in SCHEMAS.items()
    ]
    given = {"messages": [{"role": "user", "content": QUESTION}], "tools": tools}
    client = Path(__file__).with_name("litellm_client.py")
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", str(client), serve(engine()).url],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    answer = json.loads(ended.stdout.splitlines()[-1])
    assert answer.pop("unknown model") == "NotFoundError"
    assert answer == dict.fromkeys(
        ("openai/tiny", "anthropic/tiny"),
        {"tools": ["list_files"], "reasoning": "which files?", "streamed tools": ["list_files"]},
    )
