"""From options to a server that answers until Ctrl-C: bind, load, serve, say what happens."""

from __future__ import annotations

import logging
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import psutil

from localmoe.backends.base import WatchedEngine
from localmoe.backends.opening import Open
from localmoe.chat.dialect import dialect_for
from localmoe.cli.run_options import RunOptions
from localmoe.cli.runner import DEFAULT_ANSWER_TOKENS, drive_rate, open_engine
from localmoe.cli.terminal import dim_line, without_controls
from localmoe.errors import LostRankError
from localmoe.server.options import ServerOptions
from localmoe.server.running import EXIT_INTERRUPTED, Server, bind, url_of
from localmoe.server.service import Service


def execute(model: Path | None, server: ServerOptions, options: RunOptions, open_it: Open) -> None:
    """Serve until a signal. Raises LocalMoeError; KeyboardInterrupt after Ctrl-C."""
    if model is None and server.max_tokens is None:
        server = replace(server, max_tokens=DEFAULT_ANSWER_TOKENS)
    _log_to_standard_error()
    loss = _Loss()
    if options.settings.ranks:
        options = options.with_ranks(replace(options.settings.ranks, on_lost=loss.note))
    # Before the model is loaded: a port that is taken should not be news after minutes.
    with bind(server) as listener, open_engine(model, options, open_it) as engine:
        dialect, note = dialect_for(engine)
        if note:
            dim_line(note)
        rate = drive_rate(engine) if isinstance(engine, WatchedEngine) else None
        service = Service(engine, dialect, server, lambda: psutil.Process().memory_info().rss, rate)
        url = url_of(listener)

        def ready() -> None:
            lock = ", with a key" if server.api_keys else ""
            loss.ends_server = True
            dim_line(f"{server.names[0]} is served at {url} (API: {url}/v1{lock}). Ctrl-C ends it.")

        running = Server(service, ready)
        running.run_on(listener)
    if loss.noted:
        raise LostRankError("another rank is gone, and the server has ended: start it again")
    if running.signal is not None and running.signal == EXIT_INTERRUPTED - 128:
        raise KeyboardInterrupt


class _Loss:
    """Whether one of several ranks is gone: then there is nothing left to serve."""

    ends_server = False
    noted = False

    def note(self) -> None:
        """End the server as a signal does: what is whole is saved."""
        self.noted = True
        if self.ends_server:
            os.kill(os.getpid(), signal.SIGTERM)


class _Lines(logging.Handler):
    """Writes each record as one dim line."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write; see logging.Handler."""
        text = without_controls(record.getMessage())
        if sys.stderr.isatty():
            dim_line(text)
        else:
            print(text, file=sys.stderr, flush=True)


def _log_to_standard_error() -> None:
    logger = logging.getLogger("localmoe.server")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(_Lines())
