"""States of conversations on disk, so that neither another client nor a restart costs a prompt.

A state is two files: NAME.kv, which the engine writes, and NAME.tokens, which says what it holds.
NAME is made from the tokens, so a name never stands for two contents; each file is written beside
and renamed, the tokens last. Whatever moment a process ends at, what was whole before still is.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from localmoe.chat.generator import Generator
from localmoe.errors import EngineError, SettingsError
from localmoe.replacing import replaced_file

logger = logging.getLogger("localmoe.server")
_WORTH_TOKENS = 32
"""A state is read back if it spares at least so many tokens."""
_MAX_HEAD_NBYTES = 4096


@dataclass(frozen=True)
class Saved:
    """One state."""

    path: Path
    """Of the tokens; the engine's file has the suffix .kv."""
    tokens: tuple[int, ...]
    session: str
    """A digest of what the client calls the conversation; "" where it has no name."""

    @property
    def state(self) -> Path:
        """The engine's file."""
        return self.path.with_suffix(".kv")


class SessionStore:
    """The states of one model in a folder, bounded in number and bytes. For the engine's thread."""

    def __init__(self, folder: Path, model: str, *, max_count: int, max_nbytes: int) -> None:
        """`model` tells models apart that share the folder. Raises SettingsError."""
        self._folder, self._max_count, self._max_nbytes = folder, max_count, max_nbytes
        self._prefix = hashlib.sha256(model.encode()).hexdigest()[:8]
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise SettingsError(f"--sessions {folder} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise SettingsError(
                f"--sessions {folder} is in use by another server: give each one its own folder"
            ) from error
        self._sweep()
        found = (_read(path) for path in folder.glob(f"{self._prefix}-*.tokens"))
        self._saved = [each for each in found if each]

    def close(self) -> None:
        """Let another server use the folder. May be called twice."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def bring(self, generator: Generator, tokens: list[int], session: str | None) -> None:
        """Read back the state that spares most of a prompt, if one spares more than is there."""
        known = _common(generator.tokens, tokens)
        can_rewind = generator.engine.can_rewind
        best, spared = None, known + _WORTH_TOKENS - 1
        for saved in self._saved:
            common = _common(saved.tokens, tokens)
            whole = common == len(saved.tokens) and common < len(tokens)
            if common > spared and (can_rewind or whole):
                best, spared = saved, common
        if best is None:
            return
        try:
            generator.restore(best.state, best.tokens)
            os.utime(best.path)
        except (EngineError, OSError) as error:
            logger.warning("a saved conversation is not usable and was deleted: %s", error)
            self._delete(best)

    def save(self, generator: Generator, session: str | None) -> None:
        """Write what the engine holds, in place of earlier states of the same conversation.

        Raises EngineError, OSError.
        """
        tokens = generator.tokens
        if not tokens:
            return
        packed = np.asarray(tokens, np.int32).tobytes()
        name = f"{self._prefix}-{hashlib.sha256(packed).hexdigest()[:24]}"
        path = self._folder / f"{name}.tokens"
        key = hashlib.sha256(session.encode(errors="replace")).hexdigest()[:24] if session else ""
        new = Saved(path, tokens, key)
        if any(old.path == path for old in self._saved):
            os.utime(path)
            return
        generator.save(new.state)
        os.chmod(new.state, 0o600)
        head = {"tokens": len(tokens), "session": key, "sha256": hashlib.sha256(packed).hexdigest()}
        with replaced_file(path) as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(json.dumps(head).encode() + b"\n" + packed)
        self._flush()
        for old in [old for old in self._saved if self._is_replaced(generator, old, new)]:
            self._delete(old)
        self._saved.append(new)
        self._bound(keep=new)

    def _is_replaced(self, generator: Generator, old: Saved, new: Saved) -> bool:
        if old.session and old.session == new.session:
            return True
        # What cannot be rewound may be needed as it was.
        whole = _common(old.tokens, new.tokens) == len(old.tokens)
        return whole and old.session == new.session and generator.engine.can_rewind

    def _bound(self, keep: Saved) -> None:
        """Delete the states that were not used for longest, of any model, until all fit."""
        paths = sorted(self._folder.glob("*.tokens"), key=lambda path: path.stat().st_mtime_ns)
        sizes = {path: _nbytes(path) + _nbytes(path.with_suffix(".kv")) for path in paths}
        ours = {saved.path: saved for saved in self._saved}
        for path in paths:
            if len(sizes) <= self._max_count and sum(sizes.values()) <= self._max_nbytes:
                return
            if path == keep.path and len(sizes) > 1:
                continue
            del sizes[path]
            self._delete(ours.get(path, Saved(path, (), "")))

    def _delete(self, saved: Saved) -> None:
        # The tokens first: a state without them is swept up, the other way round would be trusted.
        saved.path.unlink(missing_ok=True)
        saved.state.unlink(missing_ok=True)
        self._saved = [each for each in self._saved if each.path != saved.path]

    def _flush(self) -> None:
        """Make names durable, too."""
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _sweep(self) -> None:
        """Delete what a process left that was killed while it wrote."""
        for path in self._folder.iterdir():
            name = path.name.removeprefix(".")
            half = path.name.startswith(".") and (".kv." in name or ".tokens." in name)
            alone = path.suffix == ".kv" and not path.with_suffix(".tokens").exists()
            if half or alone:
                path.unlink(missing_ok=True)


def _read(path: Path) -> Saved | None:
    """Return a state; None where its files do not belong together."""
    try:
        with path.open("rb") as file:
            head: Any = json.loads(file.readline(_MAX_HEAD_NBYTES))
            packed = file.read()
        if head["sha256"] != hashlib.sha256(packed).hexdigest():
            raise ValueError("the checksum is wrong")
        tokens = tuple(np.frombuffer(packed, np.int32).tolist())
        saved = Saved(path, tokens, str(head["session"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s is damaged and is not used: %s", path, error)
        return None
    return saved if saved.state.exists() else None


def _common(known: tuple[int, ...], wanted: list[int] | tuple[int, ...]) -> int:
    """Return the length of the longest common prefix."""
    n = min(len(known), len(wanted))
    if known[:n] == tuple(wanted[:n]):
        return n
    pairs = zip(known, wanted, strict=False)
    return next(i for i, (a, b) in enumerate(pairs) if a != b)


def _nbytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
