"""A conversation as the templates of its model's family expect it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from localmoe.chat.family import Family
from localmoe.chat.messages import Message, Role, Tool, ToolCall
from localmoe.chat.request import Thoughts
from localmoe.errors import ChatError


def template_tools(tools: Sequence[Tool]) -> list[dict[str, Any]] | None:
    """Return tools as templates read them; None for none."""
    functions = [
        {
            "name": tool.name,
            "description": tool.description,
            "parameters": _copied(tool) or {"type": "object", "properties": {}},
        }
        for tool in tools
    ]
    return [{"type": "function", "function": function} for function in functions] or None


def _copied(tool: Tool) -> Any:
    """Return a tool's schema; a template must not reach the caller's own."""
    try:
        return json.loads(json.dumps(dict(tool.parameters)))
    except (TypeError, ValueError, RecursionError) as error:
        raise ChatError(
            f"the parameters of the tool {tool.name!r} are not JSON: {error}"
        ) from error


def template_messages(
    messages: Sequence[Message], family: Family, thoughts: Thoughts, *, text_arguments: bool
) -> list[dict[str, Any]]:
    """Return messages as a family's template reads them.

    `text_arguments`: it wants the arguments of calls as JSON text, not as objects.
    """
    turns = with_thoughts(joined_system(messages, family), thoughts)
    if family.is_harmony:
        turns = _one_call_each(turns)
    return [_values(each, family, text_arguments) for each in turns]


def joined_system(messages: Sequence[Message], family: Family) -> list[Message]:
    """Join the system and developer messages at the beginning; name the rest of them system.

    Some templates take one such message, and only there.
    """
    first = next(
        (i for i, each in enumerate(messages) if each.role not in ("system", "developer")),
        len(messages),
    )
    text = "\n\n".join(each.content for each in messages[:first] if each.content)
    joined = [Message("system", text)] if text else []
    role: Role = "developer" if family.knows_developer else "system"
    return joined + [
        replace(each, role=role) if each.role == "developer" else each for each in messages[first:]
    ]


def with_thoughts(messages: Sequence[Message], thoughts: Thoughts) -> list[Message]:
    """Leave out the thoughts that a policy does not keep."""
    if thoughts == "keep":
        return list(messages)
    last = max((i for i, each in enumerate(messages) if each.role == "user"), default=-1)
    return [
        each
        if each.reasoning is None or (thoughts == "tool-loop" and index > last)
        else replace(each, reasoning=None)
        for index, each in enumerate(messages)
    ]


def _one_call_each(messages: Sequence[Message]) -> list[Message]:
    """Give each call a message of its own, its result behind it: the template knows but one."""
    results = {each.tool_call_id: each for each in messages if each.role == "tool"}
    moved: set[str] = set()
    turns: list[Message] = []
    for each in messages:
        if len(each.tool_calls) < 2:
            if each.role != "tool" or each.tool_call_id not in moved:
                turns.append(each)
            continue
        for index, call in enumerate(each.tool_calls):
            kept = each if index == 0 else replace(each, content="", reasoning=None)
            turns.append(replace(kept, tool_calls=(call,)))
            if call.id in results:
                turns.append(results[call.id])
                moved.add(call.id)
    return turns


def _values(message: Message, family: Family, text_arguments: bool) -> dict[str, Any]:
    values: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name:
        values["name"] = message.name
    if message.role == "tool":
        values["tool_call_id"] = _id(message.tool_call_id or "", family)
    if message.tool_calls:
        values["tool_calls"] = [
            _call_values(call, family, text_arguments) for call in message.tool_calls
        ]
    if message.reasoning:
        _add_thoughts(values, message, family)
    return values


def _add_thoughts(values: dict[str, Any], message: Message, family: Family) -> None:
    thoughts = message.reasoning or ""
    if family.place == "thinking":
        # This template refuses words beside thoughts where a tool is called.
        joined = f"{thoughts}\n\n{message.content}" if message.content else thoughts
        values["thinking"] = joined if message.tool_calls else thoughts
        values["content"] = "" if message.tool_calls else message.content
    elif family.place == "blocks":
        said = [{"type": "text", "text": message.content}] if message.content else []
        values["content"] = [{"type": "thinking", "thinking": thoughts}, *said]
    elif family.place != "tags":
        values[family.place] = thoughts
    elif family.tags:
        opening, closing = family.tags.opening, family.tags.closing
        values["content"] = f"{opening}\n{thoughts}\n{closing}\n\n{message.content}"


def _call_values(call: ToolCall, family: Family, text_arguments: bool) -> dict[str, Any]:
    arguments: Any = call.arguments
    if not text_arguments:
        from localmoe.chat.tools.arguments import read_json

        try:
            arguments = read_json(call.arguments or "{}")
        except ValueError:
            # A client may send back what a model once wrote.
            arguments = {"arguments": call.arguments}
    function = {"name": call.name, "arguments": arguments}
    return {"id": _id(call.id, family), "type": "function", "function": function}


def _id(number: str, family: Family) -> str:
    """Return a call's id in the form that the template wants."""
    is_short = len(number) == 9 and number.isalnum() and number.isascii()
    if not family.short_ids or is_short:
        return number
    import hashlib

    return hashlib.sha256(number.encode(errors="replace")).hexdigest()[:9]
