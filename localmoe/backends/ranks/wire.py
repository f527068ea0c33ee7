"""Messages between two ranks: a head in JSON and bytes after it, over TCP."""

from __future__ import annotations

import json
import socket
import struct
import threading
from typing import Any, NamedTuple

from localmoe.closing import Closing

Head = dict[str, Any]
_LENGTHS = struct.Struct("<IQ")
_MOST_HEAD_NBYTES = 1 << 28
_MOST_BLOB_NBYTES = 1 << 40
_PIECE_NBYTES = 1 << 20
_IDLE_SECONDS, _PROBES = 5, 3
"""A machine that went without a word is noticed after a silence and so many tries, each so long."""


class Message(NamedTuple):
    """What one rank says."""

    head: Head
    blob: bytes


class Wire(Closing):
    """One end of a connection. Any thread may send; one receives."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._sending = threading.Lock()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", _IDLE_SECONDS),
            ("TCP_KEEPALIVE", _IDLE_SECONDS),  # how macOS calls it
            ("TCP_KEEPINTVL", _IDLE_SECONDS),
            ("TCP_KEEPCNT", _PROBES),
        ):
            option = getattr(socket, name, None)
            if option is not None:
                connection.setsockopt(socket.IPPROTO_TCP, option, value)

    def send(self, head: Head, blob: bytes = b"") -> None:
        """Send a message. Raises OSError where nobody is there any more."""
        text = json.dumps(head).encode()
        with self._sending:
            self._socket.sendall(_LENGTHS.pack(len(text), len(blob)) + text)
            if blob:
                self._socket.sendall(blob)

    def receive(self) -> Message:
        """Wait for a message. Raises EOFError at the end, ValueError for what is no message."""
        n_head, n_blob = _LENGTHS.unpack(self._bytes(_LENGTHS.size))
        if n_head > _MOST_HEAD_NBYTES or n_blob > _MOST_BLOB_NBYTES:
            raise ValueError("the other end is no rank of localmoe")
        head = json.loads(self._bytes(n_head))
        if not isinstance(head, dict):
            raise ValueError("the other end is no rank of localmoe")
        return Message(head, self._bytes(n_blob))

    def close(self) -> None:
        """End the connection, whoever waits for a message included. May be called twice."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:  # the other end was faster
            self._socket.close()
        else:
            self._socket.close()

    def _bytes(self, count: int) -> bytes:
        found = bytearray()
        while len(found) < count:
            try:
                piece = self._socket.recv(min(count - len(found), _PIECE_NBYTES))
            except OSError as error:
                raise EOFError from error
            if not piece:
                raise EOFError
            found += piece
        return bytes(found)
