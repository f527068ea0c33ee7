"""What compiled code reads by itself, and what it leaves to Python."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from localmoe.cache.direct_file import DirectFile
from localmoe.cache.expert_cache import ExpertCache
from localmoe.cache.slots import SlotPool, slot_classes
from localmoe.cache.supply import FileSupply
from localmoe.errors import EngineVersionError
from localmoe.native.library import PATH, Library, library
from localmoe.weights.catalog import ExpertKey
from storage import CompiledUser, ExpertFiles, LayerShape

pytestmark = pytest.mark.skipif(library() is None, reason="nothing is compiled here")
MIB = 1 << 20


class Rig:
    def __init__(self, directory: Path, shapes: list[LayerShape], n_slots: int) -> None:
        self.experts = ExpertFiles(directory, shapes)
        self.files = {path: DirectFile(path) for path in self.experts.paths.values()}
        if not all(file.direct for file in self.files.values()):
            pytest.skip("this file system has no direct reads")
        block = max(file.block for file in self.files.values())
        classes = slot_classes(self.experts.layers, block)
        self.pool = SlotPool(classes, [n_slots] * len(classes))
        compiled = library()
        supply = FileSupply(self.experts.layers, self.pool, self.files)
        self.cache = ExpertCache(self.experts.layers, self.pool, supply, library=compiled)
        assert compiled
        assert self.cache.compiled
        if not self.cache.compiled.reads:
            pytest.skip("there is no io_uring for this process")
        self.user = CompiledUser(compiled, self.cache)

    def bytes_of(self, layer: int, expert: int) -> list[bytes]:
        slot = self.user.slots[expert]
        found = []
        for part in self.experts.layers[layer].parts:
            at = self.cache.placement.start(layer, slot, len(found))
            found.append(bytes(self.pool.memory.view[at : at + part.expert_nbytes]))
        return found

    def close(self) -> None:
        self.cache.close()
        self.pool.close()
        for file in self.files.values():
            file.close()


@contextmanager
def rig(directory: Path, *shapes: LayerShape, n_slots: int = 3) -> Iterator[Rig]:
    made = Rig(directory, list(shapes), n_slots)
    try:
        yield made
    finally:
        made.close()


def test_misses_are_read_and_hits_found(tmp_path: Path) -> None:
    with rig(tmp_path, LayerShape(4, (4096, 512, 700))) as r:
        assert r.user.acquire(0, [2, 0])
        assert r.user.n_missing == 2
        assert all(r.user.wait(part) for part in range(3))
        assert r.bytes_of(0, 2) == r.experts.expert(0, 2)
        assert r.bytes_of(0, 0) == r.experts.expert(0, 0)
        r.user.release()
        assert r.user.acquire(0, [0, 2])
        assert r.user.n_missing == 0
        r.user.release()
        stats = r.cache.stats()
    assert (stats.hits, stats.misses, stats.read_bytes) == (2, 2, 2 * (4096 + 512 + 700))


def test_long_parts_come_in_pieces(tmp_path: Path) -> None:
    with rig(tmp_path, LayerShape(2, (9 * MIB, 4 * MIB))) as r:
        assert r.user.acquire(0, [1])
        assert r.user.wait(0)
        assert r.user.wait(1)
        assert r.bytes_of(0, 1) == r.experts.expert(0, 1)
        r.user.release()


def test_large_parts_that_would_have_to_be_moved_are_left_to_python(tmp_path: Path) -> None:
    with rig(tmp_path, LayerShape(3, (MIB + 100,))) as r:
        assert not r.user.acquire(0, [1])
        r.cache.acquire(0, [1]).close()
        assert r.user.acquire(0, [1])  # it is there now
        r.user.release()


def test_experts_that_python_holds_are_not_evicted(tmp_path: Path) -> None:
    with rig(tmp_path, LayerShape(6, (512,)), n_slots=2) as r:
        lease = r.cache.acquire(0, [3])
        lease.wait(0)
        for expert in (0, 1, 2):
            assert r.user.acquire(0, [expert])
            r.user.release()
        assert ExpertKey(0, 3) in r.cache
        assert not r.user.acquire(0, [4, 5])  # one slot is left
        lease.close()
        assert r.user.acquire(0, [4, 5])
        r.user.release()
        assert ExpertKey(0, 3) not in r.cache


def test_what_is_on_its_way_elsewhere_is_left_to_python(tmp_path: Path) -> None:
    with rig(tmp_path, LayerShape(4, (512,))) as r:
        lease = r.cache.acquire(0, [1])
        assert not r.user.acquire(0, [1])
        lease.close()
        assert r.user.acquire(0, [1])
        r.user.release()


@pytest.mark.parametrize("ids", [[0, 0], [4], [-1], list(range(4)) * 17])
def test_numbers_that_cannot_be_are_left_to_python(tmp_path: Path, ids: list[int]) -> None:
    with rig(tmp_path, LayerShape(4, (512,))) as r:
        assert not r.user.acquire(0, ids)


def test_an_error_of_python_is_kept_for_the_hook(tmp_path: Path) -> None:
    with rig(tmp_path, LayerShape(4, (512,)), n_slots=1) as r:

        def fail() -> None:
            raise ValueError("of the policy")

        assert r.cache.compiled
        r.cache.compiled._settle_cache = fail
        assert not r.user.acquire(0, [0])  # it asks for slots, and gets none
        assert str(r.user.take_error()) == "of the policy"


def test_a_library_of_other_sources_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Library._layout

    def other(self: Library) -> dict[str, int]:
        return {**right(self), "layer": 8}

    monkeypatch.setattr(Library, "_layout", other)
    with pytest.raises(EngineVersionError, match="other sources"):
        Library(PATH)
