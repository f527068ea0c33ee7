"""Lossless: streamed experts give the same logits as resident ones, to the last bit.

    G1  streamed equals resident, for every generated model and each size of cache
    G2  both equal plain llama.cpp with the same batches
    G3  what the cache holds from before changes nothing
    G4  wrong bytes in a slot do change the logits: the gates above can fail

llama.cpp computes an expert's product in another way when it has 8 rows or more, for many types:
the prefill chunks are long and short enough for both ways in every layout.

Sizes of the cache, in experts: "evicting" holds one layer's choice, so that every layer evicts the
one before and a prefill chunk is computed in passes; "fitting" holds what one token routes to;
"roomy" holds all.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import localmoe
import zoo
from localmoe.backends.base import Logits
from localmoe.backends.llama.engine import LlamaEngine
from localmoe.cache.slots import slot_classes
from localmoe.weights.catalog import Catalog, ExpertKey
from localmoe.weights.gguf import build_catalog
from localmoe.weights.shards import read_shards
from zoo.plain import Batch, plain_logits
from zoo.routing import rows_per_expert

ZooModel = Callable[[str], Path]
FloatArray = npt.NDArray[np.float32]

CONTEXT = 128
CHUNK = 32
"""Tokens that an engine computes at once."""
PREFILL = (1, 7, 40)
"""Tokens of the first calls of `decode`; the last is cut into chunks of 32 and 8."""
DECODE: dict[Logits, int] = {"all": 16, "last": 4}
"""Tokens decoded one by one after that. Both modes do the same there: one shows it."""
MODES: tuple[Logits, ...] = ("all", "last")
"""Where few logits are wanted, the last layer routes those tokens alone, or none at all."""
CACHE_SIZES = ("evicting", "fitting", "roomy")


def token_stream(seed: int = 0) -> list[int]:
    """Return byte tokens: they have no meaning, and neither has the model."""
    count = sum(PREFILL) + max(DECODE.values())
    return [int(t) for t in np.random.default_rng(seed).integers(0, 256, count)]


def steps(tokens: list[int], logits: Logits) -> Iterator[tuple[list[int], Logits]]:
    """Cut the stream into calls of `decode`; `logits` is for the last of prefill and for decode.

    The calls before that ask for no logits, as a long prompt does, unless all are wanted.
    """
    start = 0
    for length in (*PREFILL, *[1] * DECODE[logits]):
        early = start + length < sum(PREFILL)
        yield tokens[start : start + length], "none" if early and logits != "all" else logits
        start += length


def slots_for(catalog: Catalog, cache_size: str) -> int:
    """Return how many slots make a cache of this size."""
    if cache_size == "fitting":
        return catalog.token_demand
    if cache_size == "roomy":
        return catalog.n_experts_total
    widest = max(layer.n_experts_used for layer in catalog.layers)
    classes = slot_classes(catalog.layers, 1)  # each gets its share of the slots
    return max(math.ceil(widest * catalog.n_experts_total / c.n_experts) for c in classes)


def load(
    path: Path, threads: int, slots: int | None = None, *, compiled: bool = True
) -> LlamaEngine:
    settings = localmoe.Settings(
        slots=slots,
        threads=threads,
        prefill_chunk_tokens=CHUNK,
        context_tokens=CONTEXT,
        compiled=compiled,
    )
    engine = localmoe.load(path, settings)
    assert isinstance(engine, LlamaEngine)
    assert engine.plan.prefill_chunk_tokens == CHUNK
    return engine


def run(engine: LlamaEngine, tokens: list[int], logits: Logits = "all") -> FloatArray:
    """Decode the stream from an empty context; return the logits asked for."""
    assert engine.truncate(0) == 0
    return np.concatenate([engine.decode(step, mode) for step, mode in steps(tokens, logits)])


@cache
def catalog_of(path: Path) -> Catalog:
    return build_catalog(read_shards(path))


@cache
def resident_logits(path: Path, threads: int) -> dict[Logits, FloatArray]:
    with load(path, threads) as engine:
        assert not engine.plan.streams
        return {mode: run(engine, token_stream(), mode) for mode in MODES}


def batches(tokens: list[int], logits: Logits) -> list[Batch]:
    """Return the steps, cut into chunks as an engine cuts them."""
    cut: list[Batch] = []
    for step, mode in steps(tokens, logits):
        for i in range(0, len(step), CHUNK):
            piece = step[i : i + CHUNK]
            wanted = [mode == "all"] * len(piece)
            wanted[-1] |= mode == "last" and i + CHUNK >= len(step)
            cut.append((piece, wanted))
    return cut


@cache
def llama_logits(path: Path, threads: int) -> dict[Logits, FloatArray]:
    """Plain llama.cpp's logits, in the batches of an engine."""
    tokens = token_stream()
    return {
        mode: plain_logits(path, batches(tokens, mode), context=CONTEXT, threads=threads)
        for mode in MODES
    }


def assert_same_bits(found: FloatArray, wanted: FloatArray) -> None:
    """Compare bytes: unlike `==` they tell zero from minus zero."""
    assert found.shape == wanted.shape
    assert np.isfinite(wanted).all()
    differing = np.flatnonzero((found.view(np.int32) != wanted.view(np.int32)).any(axis=1))
    # Not in the assert: in CI pytest would write out the difference of a megabyte, for minutes.
    same = found.tobytes() == wanted.tobytes()
    assert same, f"logits of tokens {differing.tolist()} differ"


@pytest.mark.parametrize("cache_size", CACHE_SIZES)
@pytest.mark.parametrize("name", zoo.MODELS)
def test_g1_g2_streamed_equals_resident_equals_plain_llama(
    name: str, cache_size: str, zoo_model: ZooModel
) -> None:
    path, tokens = zoo_model(name), token_stream()
    slots = slots_for(catalog_of(path), cache_size)
    for threads, compiled in ((1, True), (2, True), (2, False)):
        with load(path, threads, slots, compiled=compiled) as engine:
            streamed = {mode: run(engine, tokens, mode) for mode in MODES}
            stats, cached = engine.stats(), engine.plan.slots
        assert cached <= slots
        assert stats.misses > cached or cache_size == "roomy"
        assert stats.split_layers > 0 or cache_size != "evicting"

        for mode in MODES:
            assert_same_bits(streamed[mode], resident_logits(path, threads)[mode])
            assert_same_bits(streamed[mode], llama_logits(path, threads)[mode])


@pytest.mark.parametrize("name", zoo.MODELS)
def test_g3_what_the_cache_holds_from_before_changes_nothing(
    name: str, zoo_model: ZooModel
) -> None:
    path = zoo_model(name)
    catalog = catalog_of(path)
    slots = (slots_for(catalog, "fitting") + slots_for(catalog, "roomy")) // 2
    with load(path, 1, slots) as engine:
        cold = run(engine, token_stream())
        before = engine.stats()
        run(engine, token_stream(seed=1))
        warm = run(engine, token_stream())
        spent = engine.stats() - before
    assert spent.hits > 0, "nothing was in the cache: this tests nothing"
    assert_same_bits(warm, cold)


@pytest.mark.parametrize("name", zoo.MODELS)
def test_g4_wrong_bytes_in_a_slot_change_the_logits(name: str, zoo_model: ZooModel) -> None:
    path, tokens = zoo_model(name), token_stream()
    with load(path, 1, slots_for(catalog_of(path), "roomy")) as engine:
        right = run(engine, tokens)
        used = experts_held(engine)[0]
        for part in range(len(engine.catalog.layers[0].parts)):
            flip_bits(engine, used, part)
            wrong = run(engine, tokens)
            flip_bits(engine, used, part)
            with pytest.raises(AssertionError, match=r"logits of tokens .* differ"):
                assert_same_bits(wrong, right)
        assert_same_bits(run(engine, tokens), right)
        # Wrong results route to other experts, too: each was read once.
        assert engine.stats().misses == len(experts_held(engine)), "wrong bytes were read again"


def experts_held(engine: LlamaEngine) -> list[ExpertKey]:
    """Return the experts that are in slots."""
    assert engine.cache is not None
    layers = engine.catalog.layers
    keys = [ExpertKey(layer.layer, e) for layer in layers for e in range(layer.n_experts)]
    return [key for key in keys if key in engine.cache]


@pytest.mark.parametrize("name", zoo.LAYOUTS)
def test_prefill_gives_experts_fewer_than_eight_rows_and_more(
    name: str, zoo_model: ZooModel
) -> None:
    prefill = batches(token_stream(), "all")[: len(PREFILL)]
    for tensor, counters in rows_per_expert(zoo_model(name), prefill, context=CONTEXT).items():
        rows = {count for counter in counters for count in counter.values()}
        assert min(rows) < 8 <= max(rows), f"{tensor}: {sorted(rows)}"
        assert len(rows & set(range(2, 8))) > 1, f"{tensor}: {sorted(rows)}"


def flip_bits(engine: LlamaEngine, key: ExpertKey, part: int) -> None:
    """Change, or change back, one part of an expert of the first MoE layer that is in a slot."""
    experts, pool = engine.cache, engine.slot_pool
    assert experts is not None
    assert pool is not None
    layer = engine.catalog.layers[0]
    with experts.acquire(layer.layer, [key.expert]) as lease:
        slot = lease.slots[key.expert]
    start = experts.placement.start(layer.layer, slot, part)
    nbytes = layer.part_nbytes[part]
    memory = (ctypes.c_ubyte * nbytes).from_address(pool.memory.address + start)
    for i in range(2, nbytes, 16):
        memory[i] ^= 0x40
