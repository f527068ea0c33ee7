"""Saved contexts on the drive: written whole or not at all, and sealed with a checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from localmoe.errors import EngineError
from localmoe.replacing import replaced_file

_DIGEST_NBYTES = 32
_LEAST_NBYTES = 8
"""Of a file's body: what a safetensors file begins with."""


def unusable(path: Path, reason: object) -> EngineError:
    """Return the error for a file that is no state that could be taken."""
    return EngineError(f"{path} is not a usable state of this model: {reason}")


def write_sealed(path: Path, pieces: Iterable[bytes]) -> None:
    """Write pieces and their checksum. Raises EngineError."""
    digest = hashlib.sha256()
    try:
        with replaced_file(path) as file:
            for piece in pieces:
                digest.update(piece)
                file.write(piece)
            file.write(digest.digest())
    except OSError as error:
        raise EngineError(f"could not write the state to {path}: {error.strerror}") from error


def read_sealed(path: Path) -> bytes:
    """Return what `write_sealed` wrote, without the checksum. Raises EngineError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise unusable(path, error.strerror) from error
    body, digest = data[:-_DIGEST_NBYTES], data[-_DIGEST_NBYTES:]
    if len(body) <= _LEAST_NBYTES:
        raise unusable(path, "it is too short")
    if hashlib.sha256(body).digest() != digest:
        raise unusable(path, "it is damaged or cut off (wrong checksum)")
    return body
