"""Tensors arrive where their addresses say, whole, wherever they lie in the file."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from localmoe.backends.llama import tensor_reads
from localmoe.backends.llama.tensor_reads import TensorReads
from localmoe.cache.direct_file import DirectFile
from localmoe.errors import EngineError, ExpertReadError
from localmoe.weights.catalog import Extent

CONTENT = os.urandom(200_000)


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = tmp_path / "weights"
    path.write_bytes(CONTENT)
    return str(path)


@pytest.mark.parametrize("piece_nbytes", [4096, 1 << 20])
def test_every_tensor_lies_at_its_address(
    path: str, piece_nbytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At multiples of 32, between them, of a byte, up to the last byte of the file."""
    monkeypatch.setattr(tensor_reads, "_PIECE_NBYTES", piece_nbytes)
    places = [(0, 512), (544, 40_000), (40_545, 70_000), (110_560, 1), (120_000, 80_000)]
    tensors = {f"t{offset}": Extent(path, offset, nbytes) for offset, nbytes in places}
    file = DirectFile(path)
    reads = TensorReads(tensors, {path: file}, workers=4)
    told: list[int] = []
    reads.wait(told.append)
    for name, (_, offset, nbytes) in tensors.items():
        address = reads.address(name)
        assert address % 32 == 0
        assert ctypes.string_at(address, nbytes) == CONTENT[offset : offset + nbytes]
    assert sum(told) == sum(nbytes for _, nbytes in places)
    with pytest.raises(EngineError, match="other"):
        reads.address("other")
    reads.close()
    file.close()


def test_a_file_that_ends_too_early(path: str) -> None:
    file = DirectFile(path)
    reads = TensorReads({"t": Extent(path, 4096, len(CONTENT))}, {path: file}, workers=2)
    with pytest.raises(ExpertReadError):
        reads.wait(lambda _: None)
    reads.close()
    file.close()
