"""Gates load the same tiny models many times over: each is planned once."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from typing import Any

import pytest

from localmoe.backends.llama import planned
from localmoe.backends.llama.dry_run import (
    CHUNK_CANDIDATES,
    DryRun,
    DryRunChild,
    Footprint,
    dry_run,
)


class RememberedDryRuns:
    """Answers as `dry_run` does, and starts its child only for what was not asked before.

    The child takes longer than everything that a gate does with the model. What it finds depends
    on the files, the context and each chunk length for itself.
    """

    def __init__(self) -> None:
        self._footprints: dict[Hashable, dict[int, Footprint]] = {}
        self._model_bytes: dict[Hashable, int] = {}

    def __call__(
        self,
        paths: Sequence[str],
        *,
        chunks: Sequence[int] = CHUNK_CANDIDATES,
        child: DryRunChild | None = None,
        **others: Any,
    ) -> DryRun:
        """Return what `dry_run` returns for these arguments."""
        key = (*((path, *_version(path)) for path in paths), *sorted(others.items()))
        found = self._footprints.setdefault(key, {})
        if not found.keys() >= set(chunks):
            run = dry_run(paths, chunks=chunks, **others)
            found.update((footprint.chunk_tokens, footprint) for footprint in run.footprints)
            self._model_bytes[key] = run.model_bytes
        return DryRun(tuple(found[chunk] for chunk in chunks), self._model_bytes[key])


def _version(path: str) -> tuple[int, int, int]:
    """Tell a file from another one of the same name."""
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns


@pytest.fixture(scope="session")
def remembered_dry_runs() -> RememberedDryRuns:
    return RememberedDryRuns()


@pytest.fixture(autouse=True)
def plan_each_model_once(
    monkeypatch: pytest.MonkeyPatch, remembered_dry_runs: RememberedDryRuns
) -> None:
    monkeypatch.setattr(planned, "dry_run", remembered_dry_runs)
