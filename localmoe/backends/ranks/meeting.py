"""How ranks find each other: rank 0 listens, the others come and say who they are."""

from __future__ import annotations

import hmac
import socket
import time
from contextlib import ExitStack, closing

from localmoe.backends.ranks.wire import Wire
from localmoe.errors import LostRankError, SettingsError
from localmoe.settings import Ranks

PROTOCOL = 1
_MEET_SECONDS = 60.0
_LOOK_SECONDS = 0.2
_HELLO_SECONDS = 5.0


def wait_for_others(ranks: Ranks, seconds: float = _MEET_SECONDS) -> dict[int, Wire]:
    """Return the connections to all other ranks, by rank. Raises LostRankError, SettingsError."""
    until = time.monotonic() + seconds
    found: dict[int, Wire] = {}
    with ExitStack() as undo, closing(_listener(ranks)) as listener:
        listener.settimeout(_LOOK_SECONDS)
        while len(found) < ranks.size - 1:
            missing = [n for n in range(1, ranks.size) if n not in found]
            ended = ranks.ended() if ranks.ended else None
            if ended:
                raise LostRankError(ended)
            if time.monotonic() > until:
                raise LostRankError(
                    f"{ranks.name(missing[0])} did not come within {seconds:.0f} seconds: is "
                    f"localmoe installed there, and can it reach {ranks.address}?"
                )
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            wire = undo.enter_context(Wire(connection))
            rank = _rank_of(connection, wire, ranks)
            if rank in missing:
                found[rank] = wire
            else:
                wire.close()
        undo.pop_all()
    return found


def go_to_first(ranks: Ranks, seconds: float = _MEET_SECONDS) -> Wire:
    """Return the connection to rank 0. Raises LostRankError."""
    until = time.monotonic() + seconds
    while True:
        try:
            connection = socket.create_connection(_parts(ranks.address), timeout=_HELLO_SECONDS)
        except OSError as error:
            if time.monotonic() > until:
                raise LostRankError(
                    f"{ranks.name(0)} cannot be reached at {ranks.address}: {error}"
                ) from error
            time.sleep(_LOOK_SECONDS)
            continue
        connection.settimeout(None)
        wire = Wire(connection)
        wire.send({"rank": ranks.rank, "token": ranks.token, "protocol": PROTOCOL})
        return wire


def _listener(ranks: Ranks) -> socket.socket:
    try:
        return socket.create_server(_parts(ranks.address), backlog=ranks.size)
    except OSError as error:
        raise SettingsError(
            f"rank 0 cannot listen at {ranks.address}: {error.strerror}. The first machine of the "
            "hosts file must be this one, by an address that it has"
        ) from error


def _rank_of(connection: socket.socket, wire: Wire, ranks: Ranks) -> int | None:
    """Return who has come; None for strangers."""
    connection.settimeout(_HELLO_SECONDS)
    try:
        head = wire.receive().head
    except (EOFError, ValueError):
        return None
    connection.settimeout(None)
    is_known = hmac.compare_digest(str(head.get("token")), ranks.token)
    rank = head.get("rank")
    return rank if is_known and isinstance(rank, int) and head.get("protocol") == PROTOCOL else None


def _parts(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)
