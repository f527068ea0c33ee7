"""What one rank does of what all ranks do together."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from localmoe.backends.base import FloatArray, Logits, Stats
from localmoe.backends.mlx.engine import MlxEngine
from localmoe.backends.mlx.load import load
from localmoe.errors import EngineError
from localmoe.settings import Progress, Settings


class Rank:
    """One rank's engine, from before it is loaded until it is closed. For one thread."""

    def __init__(self) -> None:
        self._engine: MlxEngine | None = None
        self._loaded: Any = None

    @property
    def engine(self) -> MlxEngine:
        """The engine. Raises EngineError where there is none."""
        if self._engine is None:
            raise EngineError("this rank has loaded no model")
        return self._engine

    @property
    def layers(self) -> range:
        """The numbers of the layers that this rank has."""
        return self.engine.stage.layers

    def load(self, path: Path, settings: Settings, progress: Progress | None = None) -> int:
        """Load this rank's layers; return how many tokens its plan reads at once."""
        self.close()
        self._engine = load(path, settings, progress)
        return self._engine.plan.prefill_chunk_tokens

    def join(self, chunk_tokens: int) -> None:
        """Connect to the others, and cut prompts as they do."""
        self.engine.join(chunk_tokens)

    def decode(self, tokens: list[int], logits: Logits) -> FloatArray:
        """See Engine.decode."""
        return self.engine.decode(tokens, logits)

    def truncate(self, n: int) -> int:
        """See Engine.truncate; fewer than other ranks may keep."""
        return self.engine.truncate(n)

    def mark(self) -> None:
        """See Engine.mark."""
        self.engine.mark()

    def saved(self) -> bytes:
        """Return what `Engine.save` would write of this rank's layers."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "state"
            self.engine.save(path)
            return path.read_bytes()

    def read(self, data: bytes) -> None:
        """Check a state, and keep it for `take`. Raises EngineError."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "state"
            path.write_bytes(data)
            self._loaded = self.engine.read_state(path)

    def take(self) -> None:
        """Have the state that was read in place of what the context holds."""
        self.engine.take_state(self._loaded)
        self._loaded = None

    def drop(self) -> None:
        """Forget the state that was read."""
        self._loaded = None

    def close(self) -> None:
        """Free everything. May be called twice."""
        if self._engine:
            self._engine.close()


def settings_to_json(settings: Settings) -> dict[str, Any]:
    """Return what the other ranks need of settings; `profile_dir` is each machine's own."""
    plain = replace(settings, ranks=None, profile_dir=None)
    return {**asdict(plain), "keeps_profile": settings.profile_dir is not None}


def settings_from_json(values: dict[str, Any], own: Settings) -> Settings:
    """Return settings of another rank; its `ranks` and `profile_dir` are those of `own`."""
    given = dict(values)
    keeps_profile = given.pop("keeps_profile")
    given["mirrors"] = tuple(given["mirrors"])
    folder = own.profile_dir if keeps_profile else None
    return Settings(**{**given, "ranks": own.ranks, "profile_dir": folder})


def stats_to_json(stats: Stats) -> dict[str, Any]:
    """Return counters as JSON has them."""
    return asdict(stats)
