"""Whether this process has been connected to others."""

from __future__ import annotations

_joined = False


def note_joined() -> None:
    """Remember that it is."""
    global _joined
    _joined = True


def has_joined() -> bool:
    """Whether it is or was.

    At the end of such a process MLX's ring aborts it now and then, when its threads are taken down
    ("terminate called without an active exception"): a program that is done should end itself with
    `os._exit`.
    """
    return _joined
