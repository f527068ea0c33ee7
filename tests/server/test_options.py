"""What a server refuses to be started with."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from localmoe.errors import SettingsError
from localmoe.server.options import ServerOptions, is_loopback, read_keys
from localmoe.server.running import bind, url_of

KEY = "0123456789abcdef"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.1", "::1", "[::1]"])
def test_this_machine_needs_no_key(host: str) -> None:
    assert is_loopback(host)
    ServerOptions(host=host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.com", ""])
def test_any_other_address_needs_one(host: str) -> None:
    with pytest.raises(SettingsError, match="a key is needed"):
        ServerOptions(host=host)
    ServerOptions(host=host, api_keys=(KEY,))


@pytest.mark.parametrize("key", ["short", "with a space in it", "nötascii-nötascii", "x" * 15])
def test_weak_keys_are_refused_without_being_told(key: str) -> None:
    with pytest.raises(SettingsError, match="at least 16") as refusal:
        ServerOptions(api_keys=(key,))
    assert key not in str(refusal.value)


@pytest.mark.parametrize("origin", ["example.com", "https://example.com/", "*", "file://x"])
def test_an_origin_is_a_scheme_and_a_host(origin: str) -> None:
    with pytest.raises(SettingsError, match="no origin"):
        ServerOptions(allow_origins=(origin,))


def test_keys_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# of the office\n{KEY}\n\n{KEY}2\n")
    assert read_keys(path) == (KEY, f"{KEY}2")
    path.write_text("# nothing\n")
    with pytest.raises(SettingsError, match="holds no key"):
        read_keys(path)
    with pytest.raises(SettingsError, match="could not be read"):
        read_keys(tmp_path / "none")


def test_a_port_that_is_taken_is_one_clear_error() -> None:
    with bind(ServerOptions(port=0)) as first:
        port = first.getsockname()[1]
        assert url_of(first) == f"http://127.0.0.1:{port}"
        with pytest.raises(SettingsError, match=f"port {port} cannot be used.*--port"):
            bind(ServerOptions(port=port))


def test_an_address_that_is_not_ours_is_one_clear_error() -> None:
    with pytest.raises(SettingsError, match="cannot be used|no address"):
        bind(ServerOptions(host="192.0.2.1", port=0, api_keys=(KEY,)))
    with pytest.raises(SettingsError, match="no address"):
        bind(ServerOptions(host="no such name", port=0, api_keys=(KEY,)))


def test_the_address_of_all_interfaces_is_shown_as_one_that_works() -> None:
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        assert url_of(listener).startswith("http://127.0.0.1:")
