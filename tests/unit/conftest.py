"""An expert cache on a disk that does as it is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import CacheRig, MakeCacheRig


@pytest.fixture
def make_cache_rig(tmp_path: Path) -> Iterator[MakeCacheRig]:
    """Return a function from numbers of slots (by default 4 and 2) to a rig, closed at the end."""
    rigs: list[CacheRig] = []

    def make(*counts: int, workers: int = 2) -> CacheRig:
        rigs.append(CacheRig(tmp_path, counts or (4, 2), workers))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()
