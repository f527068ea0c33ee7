"""What a server is told at its start."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from localmoe.errors import SettingsError

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_MIN_KEY_CHARACTERS = 16


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class ServerOptions:
    """Raises SettingsError for what must not be served, and says why."""

    host: str = "127.0.0.1"
    port: int = 8080
    """0: any free one."""
    names: tuple[str, ...] = ("model",)
    """What requests may call the model; the first is its name. "*" stands for any."""
    api_keys: tuple[str, ...] = ()
    """Any of these opens the door; none: everybody on this machine may ask."""
    allow_origins: tuple[str, ...] = ()
    """Web pages of these origins (https://example.com) may ask, too."""
    max_request_bytes: int = 32 << 20
    max_queue: int = 32
    """Requests that may wait for their turn; those beyond are told to come back later."""
    max_tokens: int | None = None
    """Longest answer where a request does not say; None: as long as there is room."""
    sampling: Mapping[str, float | None] = field(default_factory=dict)
    """temperature, top_k, top_p, min_p, seed where a request does not say."""
    sessions: Path | None = None
    """Folder for the state of conversations; None: kept in memory alone."""
    max_session_bytes: int = 8 << 30
    max_sessions: int = 64
    patience_seconds: float = 10.0
    """A stream whose turn has not come by then is begun, so that its client does not give up."""

    def __post_init__(self) -> None:
        for name in ("max_request_bytes", "max_queue", "max_session_bytes", "max_sessions"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.names or not all(self.names):
            raise SettingsError("the model needs a name that is not empty")
        for key in self.api_keys:
            _check_key(key)
        for origin in self.allow_origins:
            _check_origin(origin)
        if not self.api_keys and not is_loopback(self.host):
            raise SettingsError(
                f"--host {self.host} can be reached from other machines, and then a key is needed: "
                "give --api-key-file FILE (or LOCALMOE_API_KEY), or leave out --host"
            )


def _check_key(key: str) -> None:
    if len(key) < _MIN_KEY_CHARACTERS or not key.isascii() or not key.isprintable() or " " in key:
        raise SettingsError(
            f"an API key must have at least {_MIN_KEY_CHARACTERS} characters, all of them "
            f"printable ASCII and none a space; this one has {len(key)}. A good one: "
            "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )


def _check_origin(origin: str) -> None:
    scheme, _, rest = origin.partition("://")
    if scheme not in ("http", "https") or not rest or "/" in rest:
        raise SettingsError(
            f"--allow-origin {origin} is no origin: write it like https://example.com, "
            "without a path"
        )


def read_keys(path: Path) -> tuple[str, ...]:
    """Return the keys in a file, one a line; # begins a comment. Raises SettingsError."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SettingsError(f"--api-key-file {path} could not be read: {reason}") from error
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise SettingsError(f"--api-key-file {path} holds no key: write one on a line of its own")
    return keys
