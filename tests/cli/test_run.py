"""`localmoe run` as a command: what goes in, what comes out, how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
COMMAND = (sys.executable, "-m", "localmoe")
SHORT = ("--max-tokens", "12", "--seed", "1", "--context", "512")


@pytest.fixture
def environment(demo_model_path: Path, tmp_path: Path) -> dict[str, str]:
    """Return an environment in which the demonstration model is built already."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("LOCALMOE_")}
    ours = {
        "LOCALMOE_CACHE": str(demo_model_path.parent),
        "LOCALMOE_STATE": str(tmp_path / "state"),
    }
    return {**kept, **ours, "COLUMNS": "100"}


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    def call(
        *args: str, stdin: str = "", env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *args],
            input=stdin,
            env={**environment, **(env or {})},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return call


def test_a_prompt_is_answered_the_same_from_an_argument_and_from_a_pipe(
    run: Run, demo_model_path: Path
) -> None:
    first = run("run", str(demo_model_path), "Say hello.", *SHORT)
    assert (first.returncode, first.stderr) == (0, "")
    assert len(first.stdout.split()) > 2
    assert first.stdout.endswith("\n")
    assert "\x1b" not in first.stdout
    second = run("run", str(demo_model_path), *SHORT, stdin="Say hello.\n")
    assert second.stdout == first.stdout


def test_without_a_model_and_a_prompt_the_demonstration_answers_and_says_what_it_is(
    run: Run, tmp_path: Path, unexplained: Callable[[Any], list[str]]
) -> None:
    stats = tmp_path / "stats.json"
    done = run("run", *SHORT, "--stats", str(stats), "--memory", "2GiB")
    assert done.returncode == 0
    assert len(done.stdout.split()) > 2
    note, question = done.stderr.splitlines()
    assert "demonstration" in note
    assert "localmoe run FILE.gguf" in note
    assert "mixture of experts" in question
    figures = json.loads(stats.read_text())
    assert set(figures) == {
        "tokens", "tokens_per_second", "hit_rate", "bytes_read_per_token",
        "stall_seconds_per_token", "peak_rss_bytes", "budget_bytes", "load_seconds", "prefill",
    }  # fmt: skip
    assert unexplained(figures) == []
    assert set(figures["tokens_per_second"]) == {"prefill", "decode"}
    assert figures["tokens"] == 12
    assert figures["budget_bytes"] == 2 << 30
    assert 100 << 20 < figures["peak_rss_bytes"] < 2 << 30
    assert figures["hit_rate"] == 1
    assert min(figures["tokens_per_second"].values()) > 0
    assert list(tmp_path.iterdir()) == [stats]


def test_raw_sends_the_prompt_alone(run: Run, demo_model_path: Path) -> None:
    done = run(
        "run", str(demo_model_path), "One, two, three,", "--raw", "--temperature", "0", *SHORT
    )
    assert done.returncode == 0
    assert "four" in done.stdout


def test_an_answer_is_json_of_a_schema(run: Run, demo_model_path: Path, tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "big": {"type": "boolean"}},
        "required": ["city", "big"],
        "additionalProperties": False,
    }
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    args = ("run", str(demo_model_path), "Name a city.", "--temperature", "0")
    done = run(*args, "--schema", str(tmp_path / "schema.json"), "--context", "512")
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert isinstance(answer["city"], str)
    assert isinstance(answer["big"], bool)
    (tmp_path / "g.lark").write_text('start: "It is " /[A-Z][a-z]{3,8}/ "."')
    done = run(*args, "--grammar", str(tmp_path / "g.lark"), "--context", "512")
    assert re.fullmatch(r"It is [A-Z][a-z]{3,8}\.\n", done.stdout)


def test_what_the_template_cannot_do_with_thoughts_is_said(
    run: Run, demo_model_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.lark").write_text("start: (")
    for options, reason in (
        (("--no-think",), "cannot be turned off"),
        (("--effort", "low"), "no reasoning effort"),
        (("--grammar", str(tmp_path / "bad.lark")), "grammar cannot constrain"),
    ):
        done = run("run", str(demo_model_path), "Hi", *options, *SHORT)
        assert (done.returncode, done.stdout) == (1, "")
        assert reason in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("args", "status", "reason"),
    [
        (("missing.gguf", "Hi"), 1, "missing.gguf"),
        (("FOLDER", "Hi"), 1, "FOLDER"),
        (("TEXT", "Hi"), 1, "GGUF"),
        (("MODEL", "Hi", "--memory", "100MiB"), 1, "Use --memory"),
        (("MODEL", "word " * 600, "--context", "256"), 1, "--context"),
        (("MODEL", "Hi", "--raw", "--system", "x"), 1, "--raw"),
        (("MODEL", "Hi", "--stats", "/nowhere/x.json"), 1, "--stats"),
        (("MODEL", "Hi", "--raw", "--no-think"), 1, "--raw"),
        (("MODEL", "Hi", "--schema", "/nowhere.json"), 1, "--schema"),
        (("MODEL", "Hi", "--schema", "TEXT"), 1, "no JSON"),
        (("MODEL", "Hi", "--grammar", "a", "--schema", "b"), 1, "one of them"),
        (("MODEL", "Hi", "--thoughts", "all"), 2, "--thoughts"),
        (("MODEL", "Hi", "--top-p", "0"), 1, "top-p"),
        (("MODEL", "Hi", "--memory", "3"), 2, "no unit"),
        (("MODEL", "Hi", "--memory", "much"), 2, "not a size"),
        (("MODEL", "Hi", "--temperature", "-1"), 2, "--temperature"),
        (("MODEL", "Hi", "--threads", "0"), 2, "--threads"),
        (("MODEL", "Hi", "--top-k", "many"), 2, "--top-k"),
        (("MODEL", "Hi", "--kv-type", "q5_1"), 2, "--kv-type"),
        (("MODEL", "Hi", "--nonsense"), 2, "--nonsense"),
        (("What", "is"), 2, "quotes"),
        (("MODEL", "Hi", "more"), 2, "more"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    run: Run, demo_model_path: Path, tmp_path: Path, args: tuple[str, ...], status: int, reason: str
) -> None:
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "TEXT").write_text("not a model" * 100)
    names = {"MODEL": str(demo_model_path)}
    names |= {name: str(tmp_path / name) for name in ("FOLDER", "TEXT")}
    done = run("run", *(names.get(arg, arg) for arg in args))
    assert done.returncode == status
    assert done.stdout == ""
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    if status == 1:
        assert done.stderr.startswith("localmoe: ")
        assert done.stderr.count("\n") == 1


def test_the_environment_gives_defaults_and_flags_win(run: Run, demo_model_path: Path) -> None:
    low = {"LOCALMOE_MEMORY": "100MiB"}
    assert run("run", str(demo_model_path), "Hi", env=low).returncode == 1
    assert (
        run("run", str(demo_model_path), "Hi", *SHORT, "--memory", "2GiB", env=low).returncode == 0
    )


def test_a_reader_that_goes_away_is_no_error_to_talk_about(
    environment: dict[str, str], demo_model_path: Path
) -> None:
    command = [*COMMAND, "run", str(demo_model_path), "Tell me a story.", "--context", "512"]
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=30) == 1


def test_ctrl_c_ends_an_answer_with_130_and_without_a_traceback(
    environment: dict[str, str], demo_model_path: Path, tmp_path: Path
) -> None:
    stats = tmp_path / "stats.json"
    command = [
        *COMMAND,
        "run",
        str(demo_model_path),
        "Tell me a long story.",
        "--stats",
        str(stats),
    ]
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        assert process.stdout.read().endswith(b"\n")
        assert process.stderr.read() == b""
        assert process.wait(timeout=30) == 130
    assert json.loads(stats.read_text())["tokens"] >= 1


@pytest.mark.parametrize("command", [(), ("run",)])
def test_help_is_plain_text_in_a_pipe_and_has_examples(run: Run, command: tuple[str, ...]) -> None:
    done = run(*command, "--help")
    assert done.returncode == 0
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout
    assert "run" in done.stdout
    if command:
        assert 'localmoe run "Why is the sky blue?"' in done.stdout
        assert "LOCALMOE_MEMORY" in done.stdout


def test_the_version_is_the_packages(run: Run) -> None:
    import localmoe

    assert run("--version").stdout == f"localmoe {localmoe.__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    heavy = {"numpy", "llama_cpp", "jinja2", "prompt_toolkit", "markdown_it", "psutil"}
    code = f"import sys, localmoe.cli.app; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_what_a_streamed_model_used_is_remembered_unless_told_otherwise(
    run: Run, tmp_path: Path
) -> None:
    streamed = ("--experts-used", "6", "--memory", "330MiB", *SHORT, "Hello")
    profiles = tmp_path / "state" / "profiles"
    assert run("run", "--no-profile", *streamed).returncode == 0
    assert not profiles.exists()
    first = run("run", *streamed)
    (profile,) = profiles.iterdir()
    before = profile.read_bytes()
    assert json.loads(before)["format"] == 1
    again = run("run", *streamed)
    assert (again.stdout, again.stderr) == (first.stdout, first.stderr)
    assert profile.read_bytes() != before
    profile.write_bytes(b"damaged")
    damaged = run("run", *streamed)
    assert damaged.stdout == first.stdout
    assert f"the profile {profile} is no usable one" in damaged.stderr
