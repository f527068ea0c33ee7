"""Checksums of files as the hub tells them: SHA-256, or git's own for what is stored in git."""

from __future__ import annotations

import hashlib
from typing import Any

from localmoe.weights.quantized_files import HubFile


def digest_of(file: HubFile) -> str:
    """Return the name of a file's blob in the cache."""
    return file.digest.partition(":")[2]


def hash_for(file: HubFile) -> Any:
    """Return a hash that has seen nothing of the file yet, of the kind that the hub tells."""
    if file.digest.startswith("sha256:"):
        return hashlib.sha256()
    hashed = hashlib.sha1(usedforsecurity=False)
    hashed.update(f"blob {file.nbytes}\0".encode())
    return hashed
