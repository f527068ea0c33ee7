"""A real model with a real vocabulary: held to a schema, made to call a tool, cancelled."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import localmoe
from localmoe.backends.base import Engine
from localmoe.chat.constraint import Vocabulary
from localmoe.chat.dialect import dialect_for
from localmoe.chat.events import ToolCallDelta, ToolCallStart, merged
from localmoe.chat.generator import Generator
from localmoe.chat.messages import Message, Tool
from localmoe.chat.request import GenerationRequest, JsonSchema
from localmoe.chat.sampling import SamplingOptions


@pytest.fixture(scope="module")
def engine(demo_model_path: Path) -> Iterator[Engine]:
    settings = localmoe.Settings(context_tokens=512, threads=1)
    with localmoe.load(demo_model_path, settings) as engine:
        yield engine


@pytest.fixture(scope="module")
def generator(engine: Engine) -> Generator:
    return Generator(engine, dialect_for(engine)[0])


def asking(text: str, **options: Any) -> GenerationRequest:
    sampling = SamplingOptions(temperature=0)
    return GenerationRequest((Message("user", text),), sampling=sampling, **options)


def test_the_vocabulary_is_that_of_the_tokenizer(engine: Engine) -> None:
    words = Vocabulary(engine.tokenizer)
    text = 'né 🙂 {"a": [1, 2]}\n\t'
    assert b"".join(words.tokens[token] for token in words(text)) == text.encode()
    assert b"<|im_end|>" in [words.tokens[token] for token in words.ends]


def test_an_answer_is_json_of_a_schema_and_has_its_probabilities(generator: Generator) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "big": {"type": "boolean"}},
        "required": ["city", "big"],
        "additionalProperties": False,
    }
    request = asking("Name a city, as JSON.", response_format=JsonSchema(schema), logprobs=3)
    pieces = list(generator.generate(request))
    answer = json.loads("".join(piece.event.text for piece in pieces))  # type: ignore[union-attr]
    assert set(answer) == {"city", "big"}
    chosen = [each.chosen for piece in pieces for each in piece.logprobs]
    assert json.loads(b"".join(chance.data for chance in chosen)) == answer
    assert all(chance.logprob <= 0 for chance in chosen)


def test_a_model_without_tools_in_its_template_calls_one(generator: Generator) -> None:
    # A small model finds no end of a number.
    days = {"type": "integer", "minimum": 1, "maximum": 9}
    properties = {"city": {"type": "string", "maxLength": 20}, "days": days}
    schema = {"type": "object", "properties": properties, "required": ["city"]}
    tool = Tool("get_weather", "The weather of some days.", schema)
    request = asking("Weather in Paris?", tools=(tool,), tool_choice="required", max_tokens=80)
    generation = generator.generate(request)
    start, delta = merged(piece.event for piece in generation)
    assert isinstance(start, ToolCallStart)
    assert isinstance(delta, ToolCallDelta)
    assert start.name == "get_weather"
    arguments = json.loads(delta.arguments)
    assert "Paris" in arguments["city"]
    assert arguments.keys() <= properties.keys()
    assert generation.finish == "tool_calls"


def test_another_thread_cancels_and_the_next_answer_is_as_ever(generator: Generator) -> None:
    whole = [piece.event for piece in generator.generate(asking("Count to five.", max_tokens=12))]
    generation = generator.generate(asking("Tell me a long story."))
    next(generation)
    canceller = threading.Thread(target=generation.cancel)
    canceller.start()
    canceller.join()
    rest = list(generation)
    assert (len(rest), generation.finish) == (0, "cancelled")
    again = generator.generate(asking("Count to five.", max_tokens=12))
    assert [piece.event for piece in again] == whole
    assert again.usage.cached_tokens > 0
