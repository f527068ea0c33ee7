"""A server from its start to its end: the socket, the signals, and what Ctrl-C means."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from localmoe.errors import SettingsError
from localmoe.server.app import create_app
from localmoe.server.options import ServerOptions
from localmoe.server.service import Service

EXIT_INTERRUPTED = 128 + signal.SIGINT
_BACKLOG = 256
_GOODBYE_SECONDS = 5
"""Connections that are not over by then, once the engine is idle, are closed."""


def bind(options: ServerOptions) -> socket.socket:
    """Return a socket that listens. Raises SettingsError where the address cannot be used."""
    host = options.host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise SettingsError(
            f"--host {options.host} is no address of this machine: {error}"
        ) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"{options.host} port {options.port} cannot be used: {error.strerror}. "
            "Another server may have it: give --port another number, or 0 for any that is free"
        ) from error
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket) -> str:
    """Return where a listening socket can be reached from this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """Serves until it is asked to end. The first signal ends the current answer and saves it; the
    second ends the process at once."""

    def __init__(self, service: Service, ready: Callable[[], None] | None = None) -> None:
        """`ready` is called when requests are served."""
        config = uvicorn.Config(
            create_app(service),
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_GOODBYE_SECONDS,
            ws="none",
        )
        super().__init__(config)
        self._service, self._ready = service, ready
        self.signal: int | None = None
        """What ended it."""

    def run_on(self, listener: socket.socket) -> None:
        """Serve on a socket, in this thread, until a signal or `end`; then close the service."""
        self._service.worker.start()
        try:
            asyncio.run(self.serve(sockets=[listener]))
        finally:
            self._service.close()

    def end(self) -> None:
        """End as after a signal; safe from any thread."""
        self._service.stop()
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve."""
        await super().startup(sockets)
        if self._ready:
            self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let signals end the server, in the main thread; in another one they are not ours."""
        try:
            before = {
                number: signal.signal(number, self.handle_exit)
                for number in (signal.SIGINT, signal.SIGTERM)
            }
        except ValueError:  # not the main thread
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End soon; when asked again, at once."""
        if self.signal is not None:
            # What is being written is written beside what is there: nothing is lost.
            os._exit(EXIT_INTERRUPTED)
        self.signal = sig
        self.end()
