"""Tools for models whose template does not tell of them: it is done in words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from localmoe.chat.messages import Message, Tool, ToolCall

_INTRODUCTION = """\
You can call tools. Each line below is one of them, as JSON:
{tools}

To call a tool, answer with nothing but this, the name and the arguments filled in:
{example}"""
_HERMES = """\
<tool_call>
{"name": "...", "arguments": {...}}
</tool_call>
The result comes in the next message, between <tool_response> and </tool_response>."""

_EXAMPLES = {
    "deepseek": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{...}"  # noqa: RUF001
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",  # noqa: RUF001
}


def told_in_words(
    messages: Sequence[Message], tools: Sequence[Tool], calls: str | None
) -> list[Message]:
    """Return messages that tell of tools, calls and results in their text.

    `calls`: the syntax in which the template can write calls and results, if not tools, by name;
    None: it knows nothing of them, so they become hermes JSON in what user and assistant say.
    """
    turns: list[Message] = [_introduction(tools, calls)] if tools else []
    if calls is not None:
        return [*turns, *messages]
    for each in messages:
        if each.role == "tool":
            text = f"<tool_response>\n{each.content}\n</tool_response>"
            last = turns[-1] if turns else None
            if last and last.role == "user" and last.content.endswith("</tool_response>"):
                turns[-1] = replace(last, content=f"{last.content}\n{text}")
            else:
                turns.append(Message("user", text))
        elif each.tool_calls:
            parts = [each.content] if each.content else []
            content = "\n".join(parts + [_call_text(call) for call in each.tool_calls])
            turns.append(replace(each, content=content, tool_calls=()))
        else:
            turns.append(each)
    return turns


def _introduction(tools: Sequence[Tool], calls: str | None) -> Message:
    lines = (
        json.dumps(
            {
                "name": tool.name,
                "description": tool.description,
                "parameters": dict(tool.parameters),
            },
            ensure_ascii=False,
        )
        for tool in tools
    )
    example = _EXAMPLES.get(calls or "", _HERMES)
    return Message("system", _INTRODUCTION.format(tools="\n".join(lines), example=example))


def _call_text(call: ToolCall) -> str:
    name = json.dumps(call.name, ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {call.arguments or "{}"}}}\n</tool_call>'
