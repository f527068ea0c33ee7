"""Whether a request may be served: keys, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping


class Keys:
    """The keys that open the door. Only their digests are kept."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def owner(self, headers: Mapping[str, str]) -> str | None:
        """Return a name for whose key a request brings, None where it brings none of ours.

        Both APIs' headers are read: `Authorization: Bearer KEY` and `x-api-key: KEY`.
        """
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = headers.get("x-api-key") or (bearer if scheme.lower() == "bearer" else "")
        digest, found = _digest(given.strip()), None
        # All are compared, so that the time does not say which one was nearly right.
        for index, known in enumerate(self._digests):
            if hmac.compare_digest(digest, known):
                found = f"key {index}"
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", errors="surrogateescape")).digest()
