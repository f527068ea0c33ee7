"""Several machines that run one model: who is told of them, and how the others are started.

The file is the one that `mlx.launch --hostfile` reads: a list of hosts, or an object with one.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from localmoe.errors import SettingsError
from localmoe.settings import Ranks

Hosts = Annotated[
    Path | None,
    typer.Option(
        "--hosts",
        metavar="FILE",
        help="Run an MLX checkpoint on all machines of this file (mlx.launch's format), each with "
        "some of the layers. This machine is the first of them. See docs/mlx-machines.md.",
    ),
]
_HERE = ("127.0.0.1", "localhost")
_FIRST_PORT = 32323
"""As mlx.launch has it: where rank n of another machine listens, n added."""
_MEETING_STEP = 512
"""Under mlx.launch the ranks meet at rank 0's port and this."""
_END_SECONDS = 10.0


@dataclass(frozen=True)
class Host:
    """One machine."""

    name: str
    """What ssh is told."""
    ip: str
    """Where the others reach it."""
    python: str

    @property
    def is_here(self) -> bool:
        """Whether it is this machine, by another name."""
        return self.name in _HERE


def launched_ranks() -> Ranks | None:
    """Return what mlx.launch says of this process; None where it was started otherwise.

    Raises SettingsError.
    """
    rank, path = os.environ.get("MLX_RANK"), os.environ.get("MLX_HOSTFILE")
    if rank is None:
        return None
    try:
        nodes = json.loads(Path(path or "").read_bytes())
        ip, _, port = str(nodes[0][0]).rpartition(":")
        return Ranks(int(rank), len(nodes), f"{ip}:{int(port) + _MEETING_STEP}")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SettingsError(
            f"MLX_RANK is set, and MLX_HOSTFILE ({path}) names no ranks of the ring backend: "
            "start this with mlx.launch --backend ring, and two hosts at least; or unset MLX_RANK"
        ) from error


@contextmanager
def ranks_for(path: Path | None) -> Iterator[Ranks | None]:
    """Start what `--hosts` names for as long as this lasts; else yield what mlx.launch says.

    Raises SettingsError.
    """
    launched = launched_ranks()
    if path is None:
        yield launched
        return
    if launched:
        raise SettingsError("--hosts starts the other ranks itself: leave it out under mlx.launch")
    hosts = read_hosts(path)
    nodes = [[f"{host.ip}:{_port(rank, host)}"] for rank, host in enumerate(hosts)]
    processes: list[subprocess.Popen[bytes]] = []
    names = tuple(host.name for host in hosts)

    def ended() -> str | None:
        for rank, process in enumerate(processes, start=1):
            if process.poll() is not None:
                return f"rank {rank} ({names[rank]}) ended with code {process.returncode}"
        return None

    address = f"{hosts[0].ip}:{_free_port(hosts[0].ip)}"
    ranks = Ranks(0, len(hosts), address, secrets.token_hex(16), names, ended)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(json.dumps(nodes))
        file.flush()
        ours = {"MLX_RANK": "0", "MLX_HOSTFILE": file.name}
        os.environ.update(ours)
        try:
            for rank in range(1, len(hosts)):
                processes.append(_start(hosts[rank], ranks, rank, nodes))
            yield ranks
        finally:
            _end(processes)
            for name in ours:
                os.environ.pop(name, None)


def read_hosts(path: Path) -> tuple[Host, ...]:
    """Return the machines of a hosts file, two at least. Raises SettingsError."""
    try:
        said: Any = json.loads(path.read_bytes())
        backend = said.get("backend") if isinstance(said, dict) else None
        hosts = tuple(_host(each) for each in (said["hosts"] if isinstance(said, dict) else said))
    except OSError as error:
        raise SettingsError(f"--hosts {path} cannot be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise SettingsError(
            f"--hosts {path} is no list of machines, such as "
            '[{"ssh": "127.0.0.1", "ips": ["192.168.1.1"]}, {"ssh": "mac2", "ips": '
            '["192.168.1.2"]}]'
        ) from error
    if backend not in (None, "", "ring"):
        raise SettingsError(f"--hosts {path} asks for {backend}: localmoe uses MLX's ring backend")
    if len(hosts) < 2:
        raise SettingsError(f"--hosts {path} names fewer than two machines: leave it out")
    return hosts


def _host(said: Any) -> Host:
    name = str(said["ssh"])
    ips = said.get("ips") or ([name] if name in _HERE else [])
    return Host(name, str(ips[0]), str(said.get("python", sys.executable)))


def _port(rank: int, host: Host) -> int:
    return _free_port(host.ip) if rank == 0 or host.is_here else _FIRST_PORT + rank


def _free_port(ip: str) -> int:
    """Return a port of this machine that nobody uses just now. Raises SettingsError."""
    try:
        with socket.create_server((ip, 0)) as listener:
            return int(listener.getsockname()[1])
    except OSError as error:
        raise SettingsError(
            f"{ip} is no address of this machine ({error.strerror}): the first machine of --hosts "
            "is the one on which the command is given"
        ) from error


def _start(host: Host, ranks: Ranks, rank: int, nodes: list[list[str]]) -> subprocess.Popen[bytes]:
    """Start a rank that learns from its standard input who it is: a command line is public."""
    command = [host.python, "-m", "localmoe", "follow"]
    if not host.is_here:
        command = ["ssh", "-o", "BatchMode=yes", host.name, shlex.join(command)]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for rank 0, which tells the others
        )
    except OSError as error:
        raise SettingsError(f"{command[0]} cannot be started: {error.strerror}") from error
    said = {
        "rank": rank,
        "size": ranks.size,
        "address": ranks.address,
        "token": ranks.token,
        "names": list(ranks.names),
    }
    assert process.stdin
    try:
        process.stdin.write(json.dumps({"ranks": said, "nodes": nodes}).encode() + b"\n")
        process.stdin.close()
    except BrokenPipeError:  # it ended at once: `ended` tells
        process.wait()
    return process


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Wait until the others have ended, as they do when rank 0 has; then make them."""
    for process in processes:
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
