"""Whatever happens to a valid header, it gives tensors inside the file, or one of our errors."""

from __future__ import annotations

import contextlib
import json
import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from localmoe.errors import ModelError
from localmoe.weights.safetensors import read_tensors
from localmoe.weights.safetensors_header import DTYPE_BITS
from raw_safetensors import DATA, ENTRIES, raw

WHOLE = raw(ENTRIES)
HEADER_NBYTES = len(WHOLE) - len(DATA)
INDEX = json.dumps({"metadata": {"total_size": 16}, "weight_map": {"a": "m.safetensors"}}).encode()
QUICK = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
EDITS = st.lists(
    st.tuples(st.integers(0, HEADER_NBYTES - 1), st.sampled_from(b'0129{}[]":,\\ tn\xff\0')),
    max_size=6,
)
NUMBERS = st.integers(-1, 20) | st.sampled_from([1 << 31, 1 << 62, 1 << 63, 1 << 64])
TENSORS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "F4", "BF16", "F6_E2M3", "C64"]),
        "shape": st.lists(st.integers(0, 5) | NUMBERS, max_size=3),
        "data_offsets": st.lists(st.integers(0, 16) | NUMBERS, min_size=2, max_size=2),
    }
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | NUMBERS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


def survives(path: Path, encoded: bytes) -> bool:
    """Return whether a file passed all checks; anything but a ModelError is a failure."""
    path.write_bytes(encoded)
    try:
        tensors = read_tensors(path)
    except ModelError:
        return False
    end = 8 + int.from_bytes(encoded[:8], "little")
    for tensor in sorted(tensors.values(), key=lambda t: (t.extent.offset, t.extent.nbytes)):
        n_elements = 1
        for n in tensor.shape:
            assert n >= 0
            n_elements *= n
        assert tensor.extent.offset == end
        assert n_elements * DTYPE_BITS[tensor.dtype] == 8 * tensor.extent.nbytes
        end += tensor.extent.nbytes
    assert end == len(encoded)
    return True


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.safetensors"


def test_the_unchanged_file_passes(path: Path) -> None:
    assert survives(path, WHOLE)


@QUICK
@given(edits=EDITS)
def test_bytes_changed(path: Path, edits: list[tuple[int, int]]) -> None:
    encoded = bytearray(WHOLE)
    for at, byte in edits:
        encoded[at] = byte
    survives(path, bytes(encoded))


@QUICK
@given(at=st.integers(0, HEADER_NBYTES), noise=st.binary(max_size=20), cut=st.integers(0, 20))
def test_bytes_put_in_or_left_out(path: Path, at: int, noise: bytes, cut: int) -> None:
    header = WHOLE[8:HEADER_NBYTES]
    survives(path, raw(header[:at] + noise + header[at + cut :]))


@QUICK
@given(nbytes=st.integers(0, len(WHOLE) - 1))
def test_truncated(path: Path, nbytes: int) -> None:
    assert not survives(path, WHOLE[:nbytes])


@QUICK
@given(entries=st.dictionaries(st.text(max_size=3), TENSORS, max_size=4))
def test_tensors_at_random(path: Path, entries: dict[str, object]) -> None:
    survives(path, raw(entries))


@QUICK
@given(cuts=st.lists(st.integers(0, 16), max_size=5), data=st.data())
def test_tensors_without_gaps_pass_in_any_order(
    path: Path, cuts: list[int], data: st.DataObject
) -> None:
    places = sorted([0, *cuts, 16])
    entries = [
        (f"t{i}", {"dtype": "I8", "shape": [end - begin], "data_offsets": [begin, end]})
        for i, (begin, end) in enumerate(zip(places, places[1:], strict=False))
    ]
    assert survives(path, raw(dict(data.draw(st.permutations(entries)))))


@QUICK
@given(value=JSON, where=st.sampled_from(["dtype", "shape", "data_offsets", "a", "__metadata__"]))
def test_any_json_in_any_place(path: Path, value: object, where: str) -> None:
    header = json.loads(json.dumps(ENTRIES))
    (header if where in header else header["a"])[where] = value
    survives(path, raw(header))


@QUICK
@given(at=st.integers(0, len(INDEX)), noise=st.binary(max_size=8), cut=st.integers(0, 8))
def test_an_index_with_bytes_changed(path: Path, at: int, noise: bytes, cut: int) -> None:
    path.write_bytes(WHOLE)
    index = path.with_name("model.safetensors.index.json")
    index.write_bytes(INDEX[:at] + noise + INDEX[at + cut :])
    with contextlib.suppress(ModelError):
        assert read_tensors(index).keys() == {"a", "b"}


def test_no_mutation_takes_much_memory(path: Path) -> None:
    rng = random.Random(1)
    tracemalloc.start()
    for _ in range(300):
        at = rng.randrange(HEADER_NBYTES)
        survives(path, WHOLE[:at] + rng.randbytes(rng.choice((1, 4, 8))) + WHOLE[at + 4 :])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
