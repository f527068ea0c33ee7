"""The llama.cpp engine beyond its logits: faults, rewinding, states, budgets, loading."""

from __future__ import annotations

import ctypes
import errno
import importlib.metadata
import mmap
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

import localmoe
import zoo
from localmoe.backends.llama import bindings, dry_run, parameters
from localmoe.backends.llama.engine import LlamaEngine
from localmoe.cache.lease import Lease
from localmoe.errors import (
    BudgetError,
    ContextFullError,
    EngineError,
    EngineVersionError,
    ExpertReadError,
    InterruptedDecodeError,
    ModelFormatError,
    SettingsError,
    UnsupportedModelError,
)

ZooModel = Callable[[str], Path]
TOKENS = [int(t) for t in np.random.default_rng(7).integers(0, 256, 24)]


def load(path: Path, **settings: int) -> LlamaEngine:
    engine = localmoe.load(path, localmoe.Settings(threads=1, context_tokens=64, **settings))
    assert isinstance(engine, LlamaEngine)
    return engine


@pytest.fixture
def engine(zoo_model: ZooModel) -> Iterator[LlamaEngine]:
    """An engine that misses on almost every layer."""
    with load(zoo_model("qwen3moe"), slots=8, prefill_chunk_tokens=2) as made:
        assert made.plan.streams
        yield made


class FaultyPreadv:
    """Stands in for os.preadv: the reads of expert bytes fail while `fault` is set."""

    def __init__(self) -> None:
        self.fault: Callable[[], int] | None = None

    def __call__(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        return self.fault() if self.fault else os.preadv(fd, buffers, offset)


def break_reads(engine: LlamaEngine) -> FaultyPreadv:
    preadv = FaultyPreadv()
    for file in engine._source.files.values():
        file._preadv = preadv
    return preadv


def decode_each(engine: LlamaEngine, tokens: list[int]) -> None:
    for token in tokens:
        engine.decode([token])


def input_output_error() -> int:
    raise OSError(errno.EIO, "Input/output error")


def end_of_file() -> int:
    return 0


@pytest.mark.usefixtures("reads_by_workers")
@pytest.mark.parametrize(("fault", "number"), [(input_output_error, errno.EIO), (end_of_file, 0)])
def test_failing_read_ends_that_decode_and_the_next_one_works(
    engine: LlamaEngine, fault: Callable[[], int], number: int
) -> None:
    wanted = [engine.decode([t]) for t in TOKENS]
    engine.truncate(0)
    preadv = break_reads(engine)
    decode_each(engine, TOKENS[:8])
    preadv.fault = fault
    with pytest.raises(ExpertReadError, match="could not read") as caught:
        decode_each(engine, TOKENS[8:])
    assert caught.value.errno == number
    assert caught.value.path == engine.catalog.paths[0]
    broken_at = engine.position
    assert 8 <= broken_at < len(TOKENS)
    preadv.fault = None
    for i in range(broken_at, len(TOKENS)):
        assert np.array_equal(engine.decode([TOKENS[i]]), wanted[i])


def test_a_file_that_ends_early_ends_that_decode_and_no_other(
    zoo_model: ZooModel, tmp_path: Path
) -> None:
    """Read by whatever reads where nothing is replaced: compiled code, if it was built."""
    path = tmp_path / "model.gguf"
    whole = zoo_model("qwen3moe").read_bytes()
    path.write_bytes(whole)
    with load(path, slots=8, prefill_chunk_tokens=2) as engine:
        wanted = [engine.decode([t]) for t in TOKENS]
        engine.truncate(0)
        decode_each(engine, TOKENS[:8])
        os.truncate(path, len(whole) // 4)
        with pytest.raises(ExpertReadError, match="the file ended before") as caught:
            decode_each(engine, TOKENS[8:])
        assert (caught.value.path, caught.value.errno) == (str(path), 0)
        broken_at = engine.position
        assert 8 <= broken_at < len(TOKENS)
        path.write_bytes(whole)
        for i in range(broken_at, len(TOKENS)):
            assert np.array_equal(engine.decode([TOKENS[i]]), wanted[i])


@pytest.mark.usefixtures("reads_by_workers")
def test_failing_read_in_prefill_leaves_the_position_where_it_was(engine: LlamaEngine) -> None:
    engine.decode(TOKENS[:3])
    preadv = break_reads(engine)
    preadv.fault = input_output_error
    with pytest.raises(ExpertReadError):
        engine.decode(TOKENS[3:])
    assert engine.position == 3
    preadv.fault = None
    found = engine.decode(TOKENS[3:])
    engine.truncate(3)
    assert np.array_equal(engine.decode(TOKENS[3:]), found)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError("no"), ZeroDivisionError()])
def test_any_exception_in_the_callback_surfaces_as_itself(
    engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    wanted = engine.decode(TOKENS)
    engine.truncate(0)
    assert engine.cache
    with monkeypatch.context() as patch:

        def acquire(layer: int, ids: list[int]) -> None:
            raise error

        patch.setattr(engine.cache, "acquire", acquire)
        with pytest.raises(type(error)) as caught:
            engine.decode(TOKENS)
        assert caught.value is error
    assert engine.position == 0
    assert np.array_equal(engine.decode(TOKENS), wanted)


def test_interrupted_decode_ends_and_the_next_one_works(
    engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = engine.decode(TOKENS)
    engine.truncate(0)
    engine.interrupt()  # nothing is under way: nothing happens
    assert np.array_equal(engine.decode(TOKENS), wanted)
    engine.truncate(4)
    assert engine.cache
    acquire, calls = engine.cache.acquire, 0

    def interrupting(layer: int, ids: list[int]) -> Lease:
        nonlocal calls
        calls += 1
        engine.interrupt()
        return acquire(layer, ids)

    with monkeypatch.context() as patch:
        patch.setattr(engine.cache, "acquire", interrupting)
        with pytest.raises(InterruptedDecodeError):
            engine.decode(TOKENS[4:])
    assert calls == 1
    assert engine.position == 4
    assert np.array_equal(engine.decode(TOKENS[4:]), wanted)


@pytest.mark.usefixtures("python_handler")
def test_ctrl_c_in_mid_layer_is_raised_when_the_engine_is_whole_again(
    engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = engine.decode(TOKENS)
    engine.truncate(4)
    assert engine.cache
    acquire = engine.cache.acquire

    def pressing(layer: int, ids: list[int]) -> Lease:
        lease = acquire(layer, ids)
        signal.raise_signal(signal.SIGINT)
        return lease

    with monkeypatch.context() as patch:
        patch.setattr(engine.cache, "acquire", pressing)
        with pytest.raises(KeyboardInterrupt):
            engine.decode(TOKENS[4:])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert engine.position == 4
    assert np.array_equal(engine.decode(TOKENS[4:]), wanted)


@pytest.mark.parametrize("name", ["qwen3moe", "afmoe", "deepseek2"])
def test_truncated_tokens_leave_no_trace(zoo_model: ZooModel, name: str) -> None:
    with load(zoo_model(name)) as engine:
        engine.decode(TOKENS[:6])
        wanted = engine.decode([TOKENS[6]])
        for token in TOKENS[::-1][:5]:
            engine.decode([token])
        kept = engine.truncate(6)
        assert kept == engine.position
        assert kept in (0, 6)
        if kept == 0:
            engine.decode(TOKENS[:6])
        assert np.array_equal(engine.decode([TOKENS[6]]), wanted)


def test_window_that_has_moved_on_cannot_be_rewound_silently(zoo_model: ZooModel) -> None:
    with load(zoo_model("afmoe"), prefill_chunk_tokens=1) as engine:
        tokens = TOKENS + TOKENS
        wanted = [engine.decode([t]) for t in tokens]
        kept = engine.truncate(3)
        for i in range(kept, len(tokens)):
            assert np.array_equal(engine.decode([tokens[i]]), wanted[i])


def test_truncate_beyond_the_end_keeps_everything(engine: LlamaEngine) -> None:
    engine.decode(TOKENS[:4])
    assert engine.truncate(99) == 4
    assert engine.truncate(-1) == 0


def test_saved_state_continues_with_the_same_bits(engine: LlamaEngine, tmp_path: Path) -> None:
    engine.decode(TOKENS[:9])
    engine.save(tmp_path / "state")
    wanted = engine.decode([TOKENS[9]])
    engine.truncate(0)
    engine.decode(TOKENS[::-1][:5])
    engine.restore(tmp_path / "state")
    assert engine.position == 9
    assert np.array_equal(engine.decode([TOKENS[9]]), wanted)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_state_of_another_model_is_refused(zoo_model: ZooModel, tmp_path: Path) -> None:
    with load(zoo_model("afmoe")) as other:
        other.decode(TOKENS[:4])
        other.save(tmp_path / "state")
    with load(zoo_model("qwen3moe")) as engine:
        with pytest.raises(EngineError, match="not a usable state"):
            engine.restore(tmp_path / "state")
        assert np.isfinite(engine.decode(TOKENS[:2])).all()


def test_truncated_state_is_refused(engine: LlamaEngine, tmp_path: Path) -> None:
    engine.decode(TOKENS[:4])
    engine.save(tmp_path / "state")
    data = (tmp_path / "state").read_bytes()
    for damaged in (b"", data[:40], data[: len(data) // 2], data[:-1], data[:99] + data[100:]):
        (tmp_path / "state").write_bytes(damaged)
        with pytest.raises(EngineError, match="not a usable state"):
            engine.restore(tmp_path / "state")
    with pytest.raises(EngineError, match="No such file"):
        engine.restore(tmp_path / "nothing")
    assert engine.position == 4


def test_a_state_that_cannot_be_written_is_an_error_and_leaves_nothing(
    engine: LlamaEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.decode(TOKENS[:4])
    with pytest.raises(EngineError, match="could not write the state"):
        engine.save(tmp_path / "no folder" / "state")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(EngineError, match="could not write .*: No space left"):
            engine.save(tmp_path / "state")
    assert list(tmp_path.iterdir()) == []
    assert engine.position == 4


def test_an_empty_context_is_a_state_too(engine: LlamaEngine, tmp_path: Path) -> None:
    engine.save(tmp_path / "state")
    wanted = engine.decode(TOKENS)
    engine.restore(tmp_path / "state")
    assert engine.position == 0
    assert np.array_equal(engine.decode(TOKENS), wanted)


def test_experts_that_the_graph_does_not_use_are_refused_with_the_first_logits(
    engine: LlamaEngine,
) -> None:
    assert engine._streaming
    layers = {layer.layer for layer in engine.catalog.layers}
    hook = engine._streaming.callback._hook
    assert hook.unrouted == layers
    engine.decode(TOKENS[:4])
    assert hook.unrouted == set()
    hook.unrouted.add(99)
    engine.decode(TOKENS[4:6], "none")
    with pytest.raises(UnsupportedModelError, match="experts of layer 99"):
        engine.decode(TOKENS[6:8])
    assert engine.position == 6


def test_all_logits_of_several_steps_are_those_of_each(engine: LlamaEngine) -> None:
    found = engine.decode(TOKENS[:7], "all")
    engine.truncate(0)
    rows = [engine.decode(TOKENS[i : min(i + 2, 7)], "all") for i in range(0, 7, 2)]
    assert found.tobytes() == np.concatenate(rows).tobytes()


def test_full_context_says_how_many_tokens_are_free(engine: LlamaEngine) -> None:
    context = engine.plan.context_tokens
    for _ in range(context // 16):
        engine.decode([1] * 16)
    with pytest.raises(ContextFullError, match="0 are free"):
        engine.decode([1])
    assert engine.position == context


@pytest.mark.parametrize("tokens", [[], [-1], [10**6]])
def test_impossible_tokens_are_refused(engine: LlamaEngine, tokens: list[int]) -> None:
    with pytest.raises(EngineError):
        engine.decode(tokens)


def test_closed_engine_is_refused_and_closes_twice(zoo_model: ZooModel, tmp_path: Path) -> None:
    engine = load(zoo_model("qwen3moe"), slots=8)
    engine.decode([1])
    engine.save(tmp_path / "state")
    engine.close()
    engine.close()
    uses: list[Callable[[], object]] = [
        lambda: engine.decode([1]),
        lambda: engine.truncate(0),
        engine.mark,
        lambda: engine.save(tmp_path / "state"),
        lambda: engine.restore(tmp_path / "state"),
        lambda: engine.tokenizer.encode("text"),
        lambda: engine.tokenizer.token_bytes(1),
        lambda: engine.tokenizer.is_end(1),
        lambda: engine.tokenizer.bos,
    ]
    for use in uses:
        with pytest.raises(EngineError, match="closed"):
            use()
    assert (engine.position, engine.can_rewind, engine.stats().tokens) == (1, True, 1)


def test_engines_leave_no_threads_and_no_files(zoo_model: ZooModel) -> None:
    path = zoo_model("qwen3moe")
    load(path, slots=8).close()
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(3):
        load(path, slots=8).close()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


def test_smallest_budget_that_an_error_names_works(zoo_model: ZooModel) -> None:
    path = zoo_model("qwen3moe")
    with pytest.raises(BudgetError, match="too small") as caught:
        load(path, memory_bytes=1 << 20)
    named = re.search(r"--memory (\d+)MiB", str(caught.value))
    assert named
    with load(path, memory_bytes=int(named[1]) + 8 << 20) as engine:
        assert engine.plan.total_bytes <= engine.plan.budget_bytes
        assert np.isfinite(engine.decode(TOKENS)).all()


def test_more_active_experts_than_there_are_is_refused(zoo_model: ZooModel) -> None:
    with pytest.raises(SettingsError, match="experts_used"):
        load(zoo_model("qwen3moe"), experts_used=1000)


def test_untested_version_names_the_one_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.2.1")
    with pytest.raises(EngineVersionError, match=r"pip install llama-cpp-python==0\.3\.36"):
        bindings._import_llama_cpp()


def test_reasons_are_heard_after_somebody_else_took_the_log(tmp_path: Path) -> None:
    """As llama-cpp-python's own engine does when it is imported."""
    elsewhere: list[bytes] = []
    listener = bindings.L.llama_log_callback(lambda _level, text, _user: elsewhere.append(text))
    bindings.L.llama_log_set(listener, None)
    with pytest.raises(ModelFormatError, match="failed to open"):
        parameters.open_model([str(tmp_path / "missing.gguf")])
    assert not elsewhere


def test_other_layout_of_structures_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shifted(ctypes.Structure):
        _fields_ = [("unknown", ctypes.c_int64), *bindings.Tensor._fields_]

    monkeypatch.setattr(bindings, "Tensor", Shifted)
    with pytest.raises(EngineVersionError, match="does not have the layout"):
        bindings._prove()


def test_death_of_the_dry_run_is_an_error_of_the_file(
    zoo_model: ZooModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run, "_ENTRY", "import os; os.abort()")
    with pytest.raises(ModelFormatError, match="signal 6"):
        load(zoo_model("qwen3moe"))


def pages_in_cache(path: Path, offset: int, nbytes: int) -> int:
    """Count the pages of a file's range that the page cache holds."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        array = np.frombuffer(mapped, np.uint8)
        first = offset // mmap.PAGESIZE * mmap.PAGESIZE
        pages = -(-(offset + nbytes - first) // mmap.PAGESIZE)
        found = (ctypes.c_ubyte * pages)()
        address = ctypes.c_void_p(array.ctypes.data + first)
        assert libc.mincore(address, ctypes.c_size_t(offset + nbytes - first), found) == 0
        del array
    return sum(page & 1 for page in found)


def test_loading_reads_no_expert(tmp_path: Path) -> None:
    # Longer than what the kernel reads ahead with the header.
    path = zoo.write(tmp_path, "qwen3moe", layers=24, experts=32)
    part = load_catalog_part(path)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if pages_in_cache(path, *part):
        pytest.skip("this file system keeps its pages")
    with load(path, slots=200) as engine:
        assert pages_in_cache(path, *part) == 0
        assert engine.stats().read_bytes == 0


def load_catalog_part(path: Path) -> tuple[int, int]:
    """Return the last MoE layer's last part without its first and last page: offset and length."""
    from localmoe.weights.gguf import read_catalog

    extent = read_catalog(path).layers[-1].parts[-1].extent
    assert extent.nbytes > 4 * mmap.PAGESIZE
    return extent.offset + mmap.PAGESIZE, extent.nbytes - 2 * mmap.PAGESIZE


def test_a_long_step_of_a_resident_model_can_be_interrupted(
    zoo_model: ZooModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = list(range(64))
    with load(zoo_model("qwen3moe")) as engine:
        assert not engine.plan.streams
        wanted = engine.decode(tokens)
        engine.truncate(0)
        decode = bindings.L.llama_decode

        def press(*arguments: object) -> int:
            engine.interrupt()
            return int(decode(*arguments))

        with monkeypatch.context() as patch:
            patch.setattr(bindings.L, "llama_decode", press)
            with pytest.raises(InterruptedDecodeError):
                engine.decode(tokens)
        assert engine.position == 0
        assert engine.decode(tokens).tobytes() == wanted.tobytes()
