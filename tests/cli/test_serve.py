"""`localmoe serve` as a command: how it begins, how it ends, and what a kill costs."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from localmoe.cli.serve import default_names

SERVE = (sys.executable, "-m", "localmoe", "serve")
SMALL = ("--port", "0", "--context", "1024", "--no-profile", "--seed", "1")
LONG = "Tell me all that you know about the sea, the wind and the stars, one after the other."


class Process:
    """A server that runs as a command."""

    def __init__(self, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [*SERVE, *SMALL, *arguments], stderr=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stderr is not None
        self._lines = self.process.stderr
        found = next(
            found for line in self._lines if (found := re.search(r"at (http://[\d.:]+)", line))
        )
        self.url = found[1]
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def say(self, *texts: str, **options: Any) -> Any:
        """Ask in a conversation of questions and answers."""
        roles = ("user", "assistant")
        messages: Any = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
        given = {"model": "demo", "max_tokens": 12, "temperature": 0, **options}
        return self.client.chat.completions.create(messages=messages, **given)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Return its exit status, and what it has said since it was ready."""
        rest = self._lines.read()
        return self.process.wait(timeout=60), rest


@pytest.fixture
def environment(demo_model_path: Path, tmp_path: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("LOCALMOE_")}
    ours = {
        "LOCALMOE_CACHE": str(demo_model_path.parent),
        "LOCALMOE_STATE": str(tmp_path / "state"),
    }
    return {**kept, **ours, "COLUMNS": "200"}


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Callable[..., Process]]:
    begun: list[Process] = []

    def call(*arguments: str) -> Process:
        begun.append(Process(arguments, environment))
        return begun[-1]

    yield call
    for each in begun:
        each.process.kill()
        each.process.wait()
        each.client.close()
        assert each.process.stderr is not None
        each.process.stderr.close()


def refused(environment: dict[str, str], *arguments: str, **more: str) -> str:
    """Return what a server says that does not begin."""
    done = subprocess.run(
        [*SERVE, *arguments],
        capture_output=True,
        text=True,
        env={**environment, **more},
        timeout=60,
    )
    assert done.returncode not in (0, 130), done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.split())


def test_a_client_talks_to_the_demonstration_model_and_ctrl_c_ends_it(
    start: Callable[..., Process],
) -> None:
    server = start("--memory", "400MiB")
    whole = server.say("What is the sea?")
    text = whole.choices[0].message.content
    assert len(text.split()) > 3
    assert whole.usage.completion_tokens == 12
    chunks = list(server.say("What is the sea?", stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == text
    server.signal(signal.SIGINT)
    status, log = server.end()
    assert status == 130
    assert "Traceback" not in log
    assert log.count("12 said") == 2
    assert "sea" not in log
    assert text not in log


def test_ctrl_c_ends_and_saves_the_answer_that_is_being_given(
    start: Callable[..., Process], tmp_path: Path
) -> None:
    folder = tmp_path / "sessions"
    server = start("--sessions", str(folder))
    stream = server.say(LONG, stream=True, max_tokens=900)
    said = [next(stream) for _ in range(4)]
    server.signal(signal.SIGINT)
    with pytest.raises(openai.APIError, match="being stopped"):
        said.extend(stream)
    status, log = server.end()
    assert status == 130
    assert "Traceback" not in log
    again = start("--sessions", str(folder))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in said)
    usage = again.say(LONG, text, "Go on.").usage
    assert usage.prompt_tokens_details.cached_tokens > 20
    again.signal(signal.SIGTERM)
    assert again.end()[0] == 0


def test_a_second_ctrl_c_does_not_wait(start: Callable[..., Process]) -> None:
    server = start()
    stream = server.say(LONG, stream=True, max_tokens=900)
    next(stream)
    # Both reach it, or the first has ended it already.
    server.signal(signal.SIGINT)
    server.signal(signal.SIGINT)
    assert server.end()[0] == 130


def test_a_kill_in_the_middle_of_an_answer_loses_no_earlier_turn(
    start: Callable[..., Process], tmp_path: Path
) -> None:
    folder = tmp_path / "sessions"
    options = ("--sessions", str(folder), "--memory", "400MiB")
    texts = [LONG]
    known = 0
    for turn in range(3):
        server = start(*options)
        # The turn before, which was broken off by a kill, is asked for again.
        answer = server.say(*texts)
        usage = answer.usage
        assert usage.prompt_tokens_details.cached_tokens >= known
        assert (usage.prompt_tokens_details.cached_tokens > 0) == (turn > 0)
        known = usage.prompt_tokens + usage.completion_tokens - 1
        texts += [answer.choices[0].message.content, f"And what comes {turn + 1} steps after?"]
        stream = server.say(*texts, stream=True, max_tokens=900)
        for _ in range(1 + 3 * turn):
            next(stream)
        server.signal(signal.SIGKILL)
        assert server.end()[0] == -signal.SIGKILL
    (state,) = folder.glob("*.kv")
    assert json.loads(state.with_suffix(".tokens").read_bytes().partition(b"\n")[0])["tokens"]


def test_what_cannot_be_served_is_one_clear_error(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        text = refused(environment, "--port", port)
        assert f"127.0.0.1 port {port} cannot be used" in text
        assert "--port" in text
    open_to_all = refused(environment, "--host", "0.0.0.0")
    assert "a key is needed" in open_to_all
    weak = refused(environment, "--host", "0.0.0.0", LOCALMOE_API_KEY="hunter2")
    assert "at least 16 characters" in weak
    assert "hunter2" not in weak
    assert "API key is empty" in refused(environment, LOCALMOE_API_KEY="")
    assert "API key is empty" in refused(environment, "--api-key", "")
    assert "could not be read" in refused(environment, "--api-key-file", str(tmp_path / "none"))


def test_a_key_from_the_environment_opens_it_to_other_machines(
    start: Callable[..., Process], environment: dict[str, str]
) -> None:
    environment["LOCALMOE_API_KEY"] = "a-key-that-is-long-enough"
    server = start("--host", "0.0.0.0")
    assert httpx.get(f"{server.url}/v1/models").status_code == 401
    headers = {"Authorization": "Bearer a-key-that-is-long-enough", "Host": "box.example:8080"}
    assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 200
    server.signal(signal.SIGTERM)
    status, log = server.end()
    assert status == 0
    assert "long-enough" not in log


def test_a_model_is_named_after_its_file(
    start: Callable[..., Process], demo_model_path: Path
) -> None:
    assert [model.id for model in start(str(demo_model_path)).client.models.list()] == [
        demo_model_path.name.removesuffix(".gguf")
    ]
    named = start(str(demo_model_path), "--name", "*", "--name", "gpt-9")
    assert [model.id for model in named.client.models.list()] == ["gpt-9"]
    assert named.say("Hello!", model="whatever").model == "gpt-9"


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Qwen3-30B-A3B-Q4_K_M.gguf", "Qwen3-30B-A3B-Q4_K_M"),
        ("K2-Q4_K_M-00001-of-00013.gguf", "K2-Q4_K_M"),
        ("Qwen3-1.7B", "Qwen3-1.7B"),
        (None, "demo"),
    ],
)
def test_the_name_has_no_number_of_a_shard(file: str | None, name: str) -> None:
    assert default_names(Path("folder", file) if file else None, ["*"]) == (name, "*")


def test_help_shows_how_to_ask(environment: dict[str, str]) -> None:
    done = subprocess.run([*SERVE, "--help"], capture_output=True, text=True, env=environment)
    for wanted in ("curl http", "from openai import OpenAI", "--sessions", "LOCALMOE_API_KEY"):
        assert wanted in done.stdout
