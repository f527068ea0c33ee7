"""Whatever happens to a valid header, it gives a catalog or one of our errors, in little memory."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from localmoe.errors import ModelError
from localmoe.weights.gguf import build_catalog
from localmoe.weights.hparams import check_hparams
from localmoe.weights.shards import read_shards
from raw_gguf import tiny

WHOLE = tiny().encode()
HEADER_NBYTES = len(tiny().header())
PLACES = st.integers(0, HEADER_NBYTES - 1)
NUMBERS = st.sampled_from([0, 1, 2, 255, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1])
QUICK = settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def survives(path: Path, encoded: bytes) -> bool:
    """Return whether a file passed all checks; anything but a ModelError is a failure."""
    path.write_bytes(encoded)
    try:
        headers = read_shards(path)
        catalog = build_catalog(headers)
        check_hparams(headers)
    except ModelError:
        return False
    assert catalog.layers
    for layer in catalog.layers:
        for part in layer.parts:
            last = part.expert_extent(layer.n_experts - 1)
            assert 0 < last.offset + last.nbytes <= len(encoded)
    return True


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def test_the_unchanged_file_passes(path: Path) -> None:
    assert survives(path, WHOLE)


@QUICK
@given(
    edits=st.lists(st.tuples(st.integers(0, HEADER_NBYTES - 1), st.integers(0, 255)), max_size=8)
)
def test_bytes_changed(path: Path, edits: list[tuple[int, int]]) -> None:
    encoded = bytearray(WHOLE)
    for at, byte in edits:
        encoded[at] = byte
    survives(path, bytes(encoded))


@QUICK
@given(at=st.integers(0, HEADER_NBYTES - 8), number=NUMBERS)
def test_numbers_planted(path: Path, at: int, number: int) -> None:
    survives(path, WHOLE[:at] + number.to_bytes(8, "little") + WHOLE[at + 8 :])


@QUICK
@given(start=st.integers(0, len(WHOLE)), nbytes=st.integers(1, 200), copy=st.booleans())
def test_pieces_cut_out_or_doubled(path: Path, start: int, nbytes: int, copy: bool) -> None:
    rest = start if copy else start + nbytes
    survives(path, WHOLE[: start + nbytes * copy] + WHOLE[rest:])


@QUICK
@given(nbytes=st.integers(0, len(WHOLE) - 1))
def test_truncated(path: Path, nbytes: int) -> None:
    assert not survives(path, WHOLE[:nbytes])


@QUICK
@given(noise=st.binary(max_size=300))
def test_noise_behind_the_magic(path: Path, noise: bytes) -> None:
    assert not survives(path, b"GGUF\x03\0\0\0" + noise)


def test_no_mutation_takes_much_memory(path: Path) -> None:
    rng = random.Random(1)
    tracemalloc.start()
    for _ in range(300):
        at = rng.randrange(HEADER_NBYTES)
        survives(path, WHOLE[:at] + rng.randbytes(rng.choice((1, 4, 8))) + WHOLE[at + 4 :])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
