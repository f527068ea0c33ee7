"""The chat on a real pseudo-terminal, with the demonstration model."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CTRL_C, CTRL_D = "\x03", "\x04"


class Terminal:
    """A process on a terminal of 24 lines; `expect` reads on until a text has appeared."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._fd, child = pty.openpty()
        self._process = subprocess.Popen(
            command,
            stdin=child,
            stdout=child,
            stderr=child,
            env=environment,
            start_new_session=True,
            preexec_fn=_own_this_terminal,
        )
        os.close(child)
        self._unread = ""

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def answer_prompt(self, text: str) -> None:
        """Type once the prompt is open: what comes before may be meant for the answer."""
        self.expect(r"\n>")
        self.type(text)

    def expect(self, pattern: str, seconds: float = 60) -> str:
        """Return what came up to the pattern, without control sequences."""
        deadline = time.monotonic() + seconds
        while True:
            plain = re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|[=>])|\r", "", self._unread)
            match = re.search(pattern, plain)
            if match:
                self._unread = plain[match.end() :]
                return plain[: match.end()]
            left = deadline - time.monotonic()
            is_over = left <= 0 or self._process.poll() is not None
            assert not is_over, f"waited for {pattern!r}, saw {plain!r}"
            if select.select([self._fd], [], [], left)[0]:
                self._read()

    def wait(self) -> int:
        deadline = time.monotonic() + 30
        while self._process.poll() is None and time.monotonic() < deadline:
            if select.select([self._fd], [], [], 0.05)[0]:
                self._read()
        return self._process.wait(timeout=1)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._fd)

    def _read(self) -> None:
        try:
            self._unread += os.read(self._fd, 65536).decode(errors="replace")
        except OSError:  # Linux says EIO when the other side is closed
            self._process.wait(5)


def _own_this_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


Open = Callable[..., Terminal]


@pytest.fixture
def chat(demo_model_path: Path) -> Iterator[Open]:
    kept = {k: v for k, v in os.environ.items() if k not in ("LOCALMOE_MEMORY", "NO_COLOR")}
    own = {
        "LOCALMOE_CACHE": str(demo_model_path.parent),
        "TERM": "xterm",
        "PROMPT_TOOLKIT_NO_CPR": "1",
    }
    opened: list[Terminal] = []

    def open_chat(*args: str) -> Terminal:
        command = [sys.executable, "-m", "localmoe", "run", "--context", "1024", *args]
        opened.append(Terminal(command, {**kept, **own, "LINES": "24", "COLUMNS": "80"}))
        return opened[-1]

    yield open_chat
    for terminal in opened:
        terminal.close()


def test_a_chat_from_hello_to_goodbye(chat: Open) -> None:
    terminal = chat("--max-tokens", "20", "--seed", "1")
    assert "demonstration" in terminal.expect("/help lists the commands")
    terminal.answer_prompt("/system Answer briefly.\r")
    terminal.expect("System message: Answer briefly")
    terminal.answer_prompt("Say hello.\r")
    terminal.expect(r"\d+ tokens, [\d.]+ tok/s")
    terminal.answer_prompt(CTRL_C)
    terminal.expect("leaves the chat")
    terminal.answer_prompt("/stats\r")
    terminal.expect(r"memory .*at most, of a budget of")
    terminal.answer_prompt(CTRL_D)
    assert terminal.wait() == 0


def test_ctrl_c_stops_the_answer_and_the_next_question_is_answered(chat: Open) -> None:
    # Plain text that goes on for as long as there is room.
    terminal = chat("--raw", "--temperature", "0")
    terminal.expect("/help lists the commands")
    terminal.answer_prompt("Counting from one: 1, 2, 3, 4, 5, 6,\r")
    terminal.expect(r"\s7, 8, 9")
    terminal.type(CTRL_C)
    terminal.expect(r"\d+ tokens, [\d.]+ tok/s.* stopped")
    terminal.answer_prompt("And once more: 1, 2, 3, 4, 5, 6,\r")
    terminal.expect(r"\s7, 8, 9")
    terminal.type(CTRL_C)
    terminal.expect("stopped")
    terminal.answer_prompt("/exit\r")
    assert terminal.wait() == 0
