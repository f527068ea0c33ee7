"""The prompt of every family, with and without earlier thoughts, and what changes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from golden_templates import CASES, GOLDEN, TALK, WEATHER, dialect, golden_file, rendering, request
from localmoe.chat.dialect import Dialect
from localmoe.chat.family import family_of
from localmoe.chat.messages import Message, ToolCall
from localmoe.chat.request import GenerationRequest, Thoughts
from localmoe.chat.templates import ChatTemplate
from localmoe.errors import ChatError

# What docs/chat.md promises: which of the three thoughts the model sees in its tool loop.
SEEN = {
    "trinity-large-thinking": "123",
    "trinity-mini": "123",
    "ministral-3-reasoning": "123",
    "kimi-k2-thinking": "23",
    "kimi-k2.5": "3",
    "qwen3": "3",
    "qwen3.5": "3",
    "glm-4.6": "3",
    "glm-4.7": "3",
    "gpt-oss": "3",
    "deepseek-v3.2": "3",
}


def seen(text: str) -> str:
    return "".join(n for n in "123" if f"THOUGHT-{n}" in text)


@pytest.mark.parametrize("thoughts", [True, False], ids=["thoughts", "plain"])
@pytest.mark.parametrize("name", CASES)
def test_the_prompt_is_as_it_was(name: str, thoughts: bool) -> None:
    expected = golden_file(name, thoughts=thoughts).read_text()
    assert rendering(name, thoughts=thoughts) == expected, (
        "if this is meant to change: python tests/golden_templates.py"
    )


def test_there_is_no_golden_file_that_nothing_is_compared_with() -> None:
    expected = {golden_file(name, thoughts=kept) for name in CASES for kept in (True, False)}
    assert set(GOLDEN.iterdir()) == expected


@pytest.mark.parametrize("name", CASES)
def test_the_prompt_has_what_was_said_and_the_thoughts_that_the_family_wants(name: str) -> None:
    text = rendering(name, thoughts=True)
    for message in TALK:
        assert message.content in text
    assert "get_weather" in text
    assert "Zürich" in text
    assert seen(text) == SEEN.get(name, "")
    assert seen(rendering(name, thoughts=False)) == ""


@pytest.mark.parametrize("name", CASES)
def test_thoughts_can_be_stripped_whatever_the_family(name: str) -> None:
    stripped = dialect(name).prompt(request(name, thoughts="strip"))
    assert stripped == golden_file(name, thoughts=False).read_text()


@pytest.mark.parametrize(
    ("name", "thoughts", "expected"),
    [
        ("trinity-large-thinking", "tool-loop", "3"),
        ("trinity-mini", "tool-loop", "3"),
        ("glm-4.7", "keep", "123"),
        ("kimi-k2-thinking", "tool-loop", "3"),
        ("qwen3", "keep", "3"),
    ],
)
def test_the_policy_can_be_overridden_as_far_as_the_template_goes(
    name: str, thoughts: Thoughts, expected: str
) -> None:
    assert seen(dialect(name).prompt(request(name, thoughts=thoughts))) == expected


@pytest.mark.parametrize("name", CASES)
def test_thinking_is_turned_off_or_that_it_cannot_be_is_said(name: str) -> None:
    known = dialect(name)
    if known.family.no_thinking is None:
        with pytest.raises(ChatError, match="cannot be turned off"):
            known.thinking_options(False)
        return
    talk = (Message("user", "Hello!"),)
    on = known.prompt(GenerationRequest(talk, template_options={"enable_thinking": True}))
    off = known.prompt(GenerationRequest(talk, template_options=known.thinking_options(False)))
    assert on != off
    assert not off.rstrip().endswith("<think>")


def test_template_options_never_replace_what_a_request_says() -> None:
    options = {
        "messages": [],
        "tools": None,
        "bos_token": "X",
        "add_generation_prompt": False,
        "an unknown one": 1,
    }
    changed = dialect("qwen3").prompt(request("qwen3", template_options=options))
    assert changed == rendering("qwen3", thoughts=True)


def test_arguments_are_given_as_the_template_reads_them() -> None:
    for name in CASES:
        text = rendering(name, thoughts=False)
        assert "{'city'" not in text
        assert '"{\\"city' not in text


def test_arguments_that_a_client_made_up_are_shown_nonetheless() -> None:
    call = ToolCall("x", "get_weather", "{no json")
    talk = (Message("user", "a"), Message("assistant", "", tool_calls=(call,)))
    for name in ("qwen3", "qwen3.5", "glm-4.7", "deepseek-v3.2"):
        assert "{no json" in dialect(name).prompt(GenerationRequest(talk, tools=(WEATHER,)))


def test_several_calls_at_once_become_one_after_the_other_for_gpt_oss() -> None:
    calls = tuple(ToolCall(f"c{i}", "get_weather", json.dumps({"city": f"C{i}"})) for i in range(2))
    talk = (
        Message("user", "a"),
        Message("assistant", "", reasoning="both", tool_calls=calls),
        *(Message("tool", f"R{i}", tool_call_id=f"c{i}") for i in range(2)),
    )
    text = dialect("gpt-oss").prompt(GenerationRequest(talk, tools=(WEATHER,)))
    places = [text.index(part) for part in ("both", '"C0"', '"R0"', '"C1"', '"R1"')]
    assert places == sorted(places)


def test_words_beside_thoughts_and_a_call_are_not_refused_by_gpt_oss() -> None:
    call = ToolCall("c", "get_weather", "{}")
    talk = (
        Message("user", "a"),
        Message("assistant", "I look.", reasoning="A tool.", tool_calls=(call,)),
        Message("tool", "r", tool_call_id="c"),
    )
    assert "A tool.\n\nI look." in dialect("gpt-oss").prompt(GenerationRequest(talk))


def test_system_and_developer_messages_are_one_where_they_begin_the_conversation() -> None:
    talk = (Message("system", "S"), Message("developer", "D"), Message("user", "U"))
    assert "S\n\nD" in dialect("qwen3.5").prompt(GenerationRequest(talk))


def test_ids_are_short_for_mistral_and_the_same_for_call_and_result() -> None:
    call = ToolCall("call_with_a_long_id", "get_weather", "{}")
    talk = (
        Message("user", "a"),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "r", tool_call_id=call.id),
    )
    source = (
        "{{ '[TOOL_CALLS]' }}{% for m in messages %}{{ m.tool_call_id }}"
        "{% for c in m.tool_calls %}{{ c.id }},{% endfor %}{% endfor %}"
    )
    text = Dialect(ChatTemplate(source), family_of(source, "")).prompt(GenerationRequest(talk))
    first, _, second = text.removeprefix("[TOOL_CALLS]").partition(",")
    assert first == second
    assert len(first) == 9
    assert first.isalnum()


def test_every_family_is_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "chat.md").read_text()
    rows = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    assert rows == set(CASES)
