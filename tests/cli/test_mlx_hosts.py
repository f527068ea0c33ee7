"""Commands over several ranks: the same answers, and no process that outlives them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import zoo_mlx
from localmoe.backends.ranks.wire import Wire
from localmoe.cli.hosts import launched_ranks, read_hosts
from localmoe.errors import SettingsError
from zoo_torch.tokenizer import write_tokenizer

pytestmark = pytest.mark.slow

SHORT = ("--max-tokens", "6", "--temperature", "0", "--context", "128", "--no-profile", "--raw")
# Greedy: what is sampled may come to an end before a test has looked at it.
LONG = ("--max-tokens", "100000", "--temperature", "0", "--context", "8k", "--no-profile", "--raw")
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a quantized checkpoint with tokenizer, and a hosts file in it."""
    path = zoo_mlx.write(tmp_path_factory.mktemp("deepseek"), "deepseek_v3", "affine", n_layers=4)
    write_tokenizer(path)
    config = json.loads((path / "config.json").read_bytes())
    config["max_position_embeddings"] = 1 << 20
    (path / "config.json").write_text(json.dumps(config))
    (path / "hosts.json").write_text(json.dumps([{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}] * 2))
    return path


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a program with this Python."""
    own = {"LOCALMOE_STATE": str(tmp_path), "COLUMNS": "100", "MLX_DISABLE_COMPILE": "1"}
    started: list[subprocess.Popen[str]] = []

    def call(*args: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("LOCALMOE_")}
        process = subprocess.Popen(
            [sys.executable, *args],
            env={**kept, **own},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()
        process.communicate()


def other_rank(process: subprocess.Popen[str]) -> psutil.Process:
    """Return the rank that a command has started, when it has computed for a while."""
    assert process.stdout
    process.stdout.read(16)
    (other,) = psutil.Process(process.pid).children()
    return other


def ends(process: psutil.Process) -> bool:
    """Whether a process ends soon."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
        process.wait(30)
    return not process.is_running()


def test_both_ways_of_starting_ranks_answer_alike(start: Start, folder: Path) -> None:
    hosts = str(folder / "hosts.json")
    command = ("-m", "localmoe", "run", str(folder), "Hello", *SHORT)
    several = start(*command, "--hosts", hosts)
    answer, said = several.communicate(timeout=120)
    assert (several.returncode, said) == (0, "")
    assert answer
    port = str(20000 + os.getpid() % 20000)
    launcher = str(Path(sys.executable).with_name("mlx.launch"))
    ring = ("--backend", "ring", "--hostfile", hosts, "--starting-port", port)
    # At the end of its standard input mlx.launch spins.
    own = (sys.executable, *command)
    launched = start(launcher, *ring, "--", *own, stdin=subprocess.PIPE)
    assert launched.communicate(timeout=120) == (answer, "")


def test_ctrl_c_leaves_no_process(start: Start, folder: Path) -> None:
    hosts = str(folder / "hosts.json")
    process = start("-m", "localmoe", "run", str(folder), "Hello", *LONG, "--hosts", hosts)
    other = other_rank(process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "")
    assert ends(other)


def test_a_rank_that_is_killed_ends_the_command(
    start: Start, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That rank is on another machine, as far as ssh is concerned."""
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text('#!/bin/sh\n[ "$1 $2 $3" = "-o BatchMode=yes mac2" ] && exec sh -c "exec $4"\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}:{os.environ['PATH']}")
    (tmp_path / "hosts.json").write_text(
        '[{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}, {"ssh": "mac2", "ips": ["127.0.0.1"]}]'
    )
    hosts = str(tmp_path / "hosts.json")
    process = start("-m", "localmoe", "run", str(folder), "Hello", *LONG, "--hosts", hosts)
    other_rank(process).kill()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.count("localmoe: ") == 1  # the other lines are MLX's own
    assert "localmoe: rank 1 (mac2) is gone" in said


def test_no_rank_outlives_the_first(start: Start) -> None:
    """Rank 0 is this test, which goes without a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        ranks = {"rank": 1, "size": 2, "address": address, "token": "t", "names": ["one", "two"]}
        process = start("-m", "localmoe", "follow", stdin=subprocess.PIPE)
        assert process.stdin
        process.stdin.write(json.dumps({"ranks": ranks, "nodes": []}) + "\n")
        process.stdin.flush()
        listener.settimeout(60)
        with Wire(listener.accept()[0]) as wire:
            assert wire.receive().head["rank"] == 1
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.startswith("localmoe: rank 0 (one) is gone")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[", "no list of machines"),
        ('[{"ssh": "mac2"}, {"ssh": "mac3"}]', "no list of machines"),
        ('[{"ssh": "127.0.0.1"}]', "fewer than two machines"),
        ('{"backend": "jaccl", "hosts": []}', "asks for jaccl"),
    ],
)
def test_a_wrong_hosts_file_is_told(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "hosts.json"
    path.write_text(text)
    with pytest.raises(SettingsError, match=told):
        read_hosts(path)


def test_what_mlx_launch_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "nodes.json"
    path.write_text('[["10.0.0.1:32323"], ["10.0.0.2:32324"]]')
    assert launched_ranks() is None
    monkeypatch.setenv("MLX_RANK", "1")
    with pytest.raises(SettingsError, match="MLX_HOSTFILE"):
        launched_ranks()
    monkeypatch.setenv("MLX_HOSTFILE", str(path))
    found = launched_ranks()
    assert found
    assert (found.rank, found.size, found.address) == (1, 2, "10.0.0.1:32835")
