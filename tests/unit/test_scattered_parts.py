"""Experts put together from runs of bytes: what their parts say, and how they are read."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from localmoe.cache.bounce import BOUNCE_NBYTES, Bounce, BounceBuffers, buffers_needed
from localmoe.cache.compiled import CompiledExperts
from localmoe.cache.direct_file import DirectFile
from localmoe.cache.expert_cache import ExpertCache
from localmoe.cache.memory import HostMemory
from localmoe.cache.mirrors import MirroredFile
from localmoe.cache.placement import Placement
from localmoe.cache.reader import PIECE_NBYTES, Job, Load, RingReads, announce, split
from localmoe.cache.ring import open_ring
from localmoe.cache.slots import SlotPool, slot_classes
from localmoe.cache.supply import FileSupply
from localmoe.cache.warm_start import WarmStart
from localmoe.errors import ExpertReadError
from localmoe.native.library import Library
from localmoe.weights.catalog import (
    Catalog,
    ExpertKey,
    ExpertPart,
    Extent,
    MoeLayer,
    Part,
    ScatteredPart,
)
from storage import PARTS, CacheRig, Disk, ExpertFiles, LayerShape

CONTENT = random.Random(1).randbytes(11 * 4096 + 777)
SHAPES = (
    LayerShape(8, PARTS, scattered=True),
    LayerShape(8, PARTS),
    LayerShape(4, (1300,), shard=1, scattered=True),
)
ROOM, FILL = 16 * 4096, 0xA5


def scattered(*pieces: tuple[Extent, ...]) -> ScatteredPart:
    return ScatteredPart("m", pieces, sum(run.nbytes for run in pieces[0]))


def layer(*parts: Part, n_experts: int = 2) -> MoeLayer:
    return MoeLayer(0, n_experts, 1, parts)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[CacheRig]:
    made = CacheRig(tmp_path, (4, 2), 2, shapes=SHAPES)
    yield made
    made.close()


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "weights").write_bytes(CONTENT)
    return str(tmp_path / "weights")


@pytest.fixture
def memory() -> Iterator[HostMemory]:
    made = HostMemory(ROOM)
    yield made
    made.close()


@pytest.fixture
def bounce() -> Iterator[Bounce]:
    """Return a buffer of two pages that lies somewhere in memory."""
    made = HostMemory(4 * 4096)
    yield Bounce(made, 4096, 8192)
    made.close()


def test_both_kinds_of_parts_answer_alike() -> None:
    whole = ExpertPart("m", Extent("f", 4096, 2048), 1024)
    runs = scattered((Extent("f", 4096, 1024),), (Extent("g", 5120, 1024),))
    for part in (whole, runs):
        assert part.nbytes == 2048
        assert part.expert_pieces(0) == (Extent("f", 4096, 1024),)
        assert (part.is_aligned(512), part.is_aligned(1024), part.is_aligned(4096)) == (1, 1, 0)
        assert (part.remainder(512), part.remainder(1024)) == (0, 0)
    assert whole.expert_pieces(1) == (Extent("f", 5120, 1024),)
    catalog = Catalog("a", ("f", "g"), (), (layer(whole, runs),))
    assert (catalog.expert_nbytes, catalog.layers[0].expert_nbytes) == (4096, 2048)


def test_what_lies_in_two_runs_is_not_aligned() -> None:
    two = scattered((Extent("f", 0, 512), Extent("f", 512, 512)))
    odd = scattered((Extent("f", 40, 1024),), (Extent("g", 552, 1024),))
    assert not two.is_aligned(512)
    assert not odd.is_aligned(512)
    assert odd.remainder(512) == 40
    assert scattered((Extent("f", 40, 9),), (Extent("f", 49, 9),)).remainder(512) == 0


@pytest.mark.parametrize("nbytes", [(3, 0), (2, 2), (4,), (5, -2), ()])
def test_experts_of_different_sizes_are_none(nbytes: tuple[int, ...]) -> None:
    runs = tuple(Extent("f", 0, n) for n in nbytes)
    with pytest.raises(ValueError, match="not 3"):
        ScatteredPart("m", ((Extent("f", 0, 3),), runs), 3)


def test_slack_is_where_reads_need_it() -> None:
    aligned = scattered((Extent("f", 0, 1024),), (Extent("g", 8192, 1024),))
    odd = scattered((Extent("f", 0, 1024),), (Extent("g", 8200, 1024),))
    assert slot_classes([layer(aligned)], 512)[0].stride_nbytes == 1024
    assert slot_classes([layer(odd)], 512)[0].stride_nbytes == 1536
    whole = ExpertPart("m", Extent("f", 0, 2048), 1024)
    assert slot_classes([layer(whole), layer(odd)], 512)[0].stride_nbytes == 1536
    assert slot_classes([layer(odd)], 1)[0].stride_nbytes == 1024


@pytest.mark.parametrize("block", [1, 512, 4096])
def test_a_read_apart_writes_nothing_around_it(
    path: str, memory: HostMemory, bounce: Bounce, block: int
) -> None:
    disk = Disk()
    file = disk.open(path, block)
    places = (0, 1, 511, 512, 4095)
    for start, offset, nbytes in itertools.product(places, places, (1, 512, 8191, 8192, 20_000)):
        memory.view[:] = bytes([FILL]) * ROOM
        file.read_apart(memory, 4096 + start, 4096 + offset, nbytes, bounce)
        room = memory.view[4096 + start :][:nbytes]
        assert room == CONTENT[4096 + offset :][:nbytes]
        assert memory.view[: 4096 + start] == bytes([FILL]) * (4096 + start)
        rest = ROOM - 4096 - start - nbytes
        assert memory.view[ROOM - rest :] == bytes([FILL]) * rest
    file.close()
    disk.close()


def test_a_read_apart_of_a_mirrored_file(path: str, memory: HostMemory, bounce: Bounce) -> None:
    file = MirroredFile([DirectFile(path), DirectFile(path)])
    file.read_apart(memory, 5, 33, 30_000, bounce)
    assert memory.view[5:30_005] == CONTENT[33:30_033]
    file.close()


def test_a_read_apart_behind_the_end_is_an_error(
    path: str, memory: HostMemory, bounce: Bounce
) -> None:
    file = DirectFile(path)
    with pytest.raises(ExpertReadError, match="the file ended before"):
        file.read_apart(memory, 5, len(CONTENT) - 10_000, 10_001, bounce)
    file.close()


@pytest.mark.parametrize("nbytes", [1, PIECE_NBYTES, PIECE_NBYTES + 1, 3 * PIECE_NBYTES])
def test_long_reads_apart_are_shared_wherever_they_lie(nbytes: int) -> None:
    load = Load(ExpertKey(0, 0), 0, [nbytes])
    cut = split(Job(Extent("f", 8199, nbytes), 77, load, 0, apart=True), 512)
    at = 0
    for job in cut:
        assert job.apart
        assert (job.start, job.extent.offset) == (77 + at, 8199 + at)
        assert 0 < job.extent.nbytes <= PIECE_NBYTES
        assert at == 0 or job.extent.offset % 512 == 0
        at += job.extent.nbytes
    assert at == nbytes


def test_a_part_is_ready_with_the_last_of_its_pieces() -> None:
    load = Load(ExpertKey(0, 0), 0, [30, 5])
    jobs = [Job(Extent("f", 0, 10), 0, load, part) for part in (0, 1, 0, 0)]
    announce(jobs)
    assert load.n_remaining == 4
    for _ in range(3):
        assert not load.ready(0)
        load.arrived(0, None)
    assert load.ready(0)
    assert not load.ready(1)


def test_all_pieces_are_announced_before_the_first_is_read(rig: CacheRig) -> None:
    rig.disk.hold()
    n_before = len(rig.disk.began)
    with rig.cache.acquire(0, [0, 1]) as lease:
        wanted = sum(
            len(part.expert_pieces(e)) for part in rig.experts.layers[0].parts for e in (0, 1)
        )
        assert sum(load.n_remaining for load in lease.pending) == wanted > 6
        rig.disk.wait_for_reads(n_before + 2)
        assert not lease.ready(2)
        rig.disk.resume()
        rig.check(lease)


def test_an_error_of_one_piece_is_the_parts(rig: CacheRig) -> None:
    rig.break_part(0, 3, 1)
    with rig.cache.acquire(0, [3]) as lease, pytest.raises(ExpertReadError) as caught:
        lease.wait(1)
    assert caught.value.path in rig.files
    rig.disk.faults.clear()
    rig.use(0, 3)


def test_a_start_with_earlier_experts(rig: CacheRig) -> None:
    rates = {0: np.array([0.9, 0.5, *[0.0] * 6]), 2: np.array([0, 0.3, 0, 0])}
    assert rig.cache.warm_up(rates) == 3
    rig.use(0, 0, 1)
    rig.use(2, 1)
    assert rig.cache.stats().prefetched == 3


def test_a_start_that_is_broken_off_ends_every_piece(rig: CacheRig) -> None:
    placement = Placement(rig.experts.layers, rig.pool, 512)
    warm = WarmStart(placement.jobs, lambda job: job.load.arrived(job.part, None))
    loads = [Load(ExpertKey(0, e), e % 4, PARTS) for e in range(8)]
    warm.hold_off()
    warm.begin(loads)
    warm.close()
    assert [load.n_remaining for load in loads] == [0] * 8


def test_real_files_and_the_ring_where_there_is_one(tmp_path: Path) -> None:
    experts = ExpertFiles(tmp_path, SHAPES)
    files = {path: DirectFile(path) for path in experts.paths.values()}
    block = max(file.block for file in files.values())
    pool = SlotPool(slot_classes(experts.layers, block), (3, 2))
    cache = ExpertCache(experts.layers, pool, FileSupply(experts.layers, pool, files))
    for number, expert in itertools.product((0, 1, 2), range(4)):
        with cache.acquire(number, [expert]) as lease:
            for part, wanted in enumerate(experts.expert(number, expert)):
                lease.wait(part)
                start = cache.placement.start(number, lease.slots[expert], part)
                assert pool.memory.view[start:][: len(wanted)] == wanted
    cache.close()
    pool.close()
    for file in files.values():
        file.close()


def test_compiled_code_is_left_out(rig: CacheRig) -> None:
    layers = rig.experts.layers
    library = cast(Library, object())  # not touched
    for some in (layers, layers[:1]):
        arguments = (some, rig.supply, lambda: None, [True, True])
        assert CompiledExperts.make(library, *arguments) is None


def test_the_ring_takes_no_reads_apart(path: str, memory: HostMemory) -> None:
    ring, file = open_ring(4), DirectFile(path)
    if ring is None or file.descriptor is None:
        pytest.skip("no io_uring, or no direct reads, here: nothing but threads is used")
    reads = RingReads(ring, {path: file}, memory)
    job = Job(Extent(path, 4096, 100), 8192, Load(ExpertKey(0, 0), 0, [100]), 0)
    assert reads.takes([job, job])
    assert not reads.takes([job, job._replace(apart=True)])
    reads.close()
    file.close()


def test_buffers_are_counted_and_come_back(rig: CacheRig) -> None:
    assert buffers_needed(rig.experts.layers[1:2], 3) == 0
    assert buffers_needed(rig.experts.layers, 3) == 5
    buffers = BounceBuffers(2)
    with buffers.lend() as first, buffers.lend() as second:
        assert {first.start, second.start} == {0, BOUNCE_NBYTES}
    with pytest.raises(ValueError, match="stop"), buffers.lend():
        raise ValueError("stop")
    with buffers.lend(), buffers.lend():
        pass
    buffers.close()
    none = BounceBuffers(0)
    with pytest.raises(RuntimeError, match="no buffers"), none.lend():
        pass
    none.close()
