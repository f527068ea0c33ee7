"""Sizes, the cache folder, and telling model from prompt."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
import typer

from localmoe.cli.options import cache_dir, profile_dir
from localmoe.cli.request import DEFAULT_PROMPT, Request, looks_like_model, read_request
from localmoe.cli.runner import read_workers
from localmoe.errors import SettingsError
from localmoe.planning.figures import Figures, figures_path
from localmoe.planning.read_rates import ReadPoint
from localmoe.planning.sizes import parse_size
from localmoe.settings import Settings


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("3GiB", 3 << 30),
        ("3072MB", 3_072_000_000),
        ("500M", 500 << 20),
        ("1.5G", 3 << 29),
        (" 64 kib ", 64 << 10),
        ("2tb", 2 * 10**12),
        ("1024b", 1024),
        (".5k", 512),
    ],
)
def test_a_size_is_read(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("3", "no unit"),
        ("", "not a size"),
        ("GiB", "not a size"),
        ("-3GiB", "not a size"),
        ("3 apples", "not a size"),
        ("1e9B", "not a size"),
        ("nanG", "not a size"),
        ("٣G", "not a size"),
        ("3GiBs", "not a size"),
        ("0GiB", "no usable size"),
        ("0.1b", "no usable size"),
        ("9" * 400 + "T", "no usable size"),
    ],
)
def test_what_is_no_size_is_refused_with_an_example(text: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        parse_size(text)


def test_the_cache_folder_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("LOCALMOE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == tmp_path / ".cache" / "localmoe"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_dir() == tmp_path / "Library" / "Caches" / "localmoe"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == tmp_path / "Library" / "Caches" / "localmoe"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_dir() == Path("/xdg/localmoe")
    monkeypatch.setenv("LOCALMOE_CACHE", "/own")
    assert cache_dir() == Path("/own")


def test_the_folder_of_profiles_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("LOCALMOE_STATE", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert profile_dir() == tmp_path / ".local" / "state" / "localmoe" / "profiles"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert profile_dir() == (tmp_path / "Library" / "Application Support" / "localmoe" / "profiles")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert profile_dir().is_relative_to(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", "/xdg")
    assert profile_dir() == Path("/xdg/localmoe/profiles")
    monkeypatch.setenv("LOCALMOE_STATE", "/own")
    assert profile_dir() == Path("/own/profiles")


def test_a_model_is_an_existing_path_or_a_gguf_name(tmp_path: Path) -> None:
    (tmp_path / "weights").touch()
    assert looks_like_model(str(tmp_path / "weights"))
    assert looks_like_model("missing.gguf")
    assert looks_like_model("MISSING.GGUF")
    assert looks_like_model("models/big.gguf.part1")
    assert not looks_like_model("What is a big.gguf file?")
    assert not looks_like_model("What is in /models/big.gguf now?")
    assert not looks_like_model("")
    assert not looks_like_model("why? " * 5000)
    assert not looks_like_model("nul \0 byte")


class Stdin(io.TextIOWrapper):
    """Standard input that holds these bytes, or a terminal."""

    def __init__(self, data: bytes = b"", *, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(data))
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def request_with(
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
    stdin: Stdin | None,
    *,
    screen: bool = False,
) -> Request:
    stdout = Stdin(terminal=screen)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", stdin)
        patch.setattr(sys, "stdout", stdout)
        return read_request(*args, *(None,) * (2 - len(args)))


@pytest.mark.parametrize(
    ("args", "piped", "expected"),
    [
        (("Hello there",), b"", Request(None, "Hello there")),
        (("m.gguf", "Hello"), b"", Request(Path("m.gguf"), "Hello")),
        (("m.gguf",), b"Hello\n", Request(Path("m.gguf"), "Hello")),
        (("Sum up:",), b"\n a\n b\n", Request(None, "Sum up:\n\n a\n b")),
        ((), "é".encode(), Request(None, "é")),
        ((), b" \n", Request(None, DEFAULT_PROMPT, asks_default=True)),
        (("m.gguf",), b"", Request(Path("m.gguf"), DEFAULT_PROMPT, asks_default=True)),
    ],
)
def test_a_request_from_arguments_and_a_pipe(
    monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], piped: bytes, expected: Request
) -> None:
    assert request_with(monkeypatch, args, Stdin(piped)) == expected


def test_a_closed_standard_input_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert request_with(monkeypatch, (), None).asks_default


def test_on_a_terminal_nothing_to_answer_is_a_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    keyboard = Stdin(terminal=True)
    assert request_with(monkeypatch, (), keyboard, screen=True) == Request(None, None)
    assert request_with(monkeypatch, ("Hi",), keyboard, screen=True) == Request(None, "Hi")


@pytest.mark.parametrize(
    ("args", "stdin", "reason"),
    [
        (("What", "is"), Stdin(), r'quotes: localmoe run "What is"'),
        (("",), Stdin(), "empty"),
        (("m.gguf", "  "), Stdin(), "empty"),
        ((), Stdin(b"\xff\xfe"), "UTF-8"),
        ((), Stdin(terminal=True), "needs a terminal"),
    ],
)
def test_a_request_that_makes_no_sense_is_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], stdin: Stdin, reason: str
) -> None:
    with pytest.raises(typer.BadParameter, match=reason):
        request_with(monkeypatch, args, stdin)


def test_the_engine_keeps_as_many_reads_under_way_as_was_measured_to_be_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCALMOE_STATE", str(tmp_path))
    model = tmp_path / "model.gguf"
    assert read_workers(model) == Settings.read_workers
    points = tuple(
        ReadPoint(1 << 20, depth, rate) for depth, rate in ((2, 1e9), (8, 3e9), (16, 3e9))
    )
    figures = Figures(
        cpu="cpu",
        cores=2,
        memory_bytes=1 << 30,
        measured_at="2026-01-01T00:00:00",
        version="1",
        drive="/",
        is_direct=True,
        reads=points,
    )
    path = figures_path(tmp_path / "figures", model)
    figures.write(path)
    assert read_workers(model) == 8
    path.write_text("{}")
    assert read_workers(model) == Settings.read_workers
    assert "localmoe bench measure" in capsys.readouterr().err
