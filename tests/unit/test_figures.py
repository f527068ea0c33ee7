"""Figures of a machine: what is between measured points, and files that may hold anything."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localmoe.errors import SettingsError
from localmoe.planning.figures import (
    Figures,
    Kernel,
    figures_path,
    find_figures,
    read_figures,
)
from localmoe.planning.read_rates import ReadPoint, ReadRates

MEASURED = Figures(
    cpu="A processor",
    cores=2,
    memory_bytes=1 << 30,
    measured_at="2026-01-02T03:04:05+00:00",
    version="1",
    drive="/models",
    is_direct=True,
    reads=(
        *(ReadPoint(1 << 16, 1, 1e8), ReadPoint(1 << 16, 4, 4e8)),
        *(ReadPoint(1 << 20, 1, 4e8), ReadPoint(1 << 20, 4, 16e8)),
    ),
    kernels={"Q4_K": Kernel(1e10, 1e11)},
    failed={"MXFP4": "died"},
)
RATES = ReadRates(MEASURED.reads)


@pytest.mark.parametrize(
    ("nbytes", "depth", "rate"),
    [
        (1 << 16, 1, 1e8),
        (1 << 18, 1, 2e8),
        (1 << 16, 2, 2e8),
        (1 << 18, 2, 4e8),
        (1 << 12, 1, 1e8 / 16),
        (1 << 30, 1, 4e8),
        (1 << 20, 64, 16e8),
        (1 << 20, None, 16e8),
    ],
)
def test_rates_are_interpolated_and_stay_beyond(
    nbytes: int, depth: int | None, rate: float
) -> None:
    assert RATES.rate(nbytes, depth) == pytest.approx(rate)


@given(st.floats(1 << 16, 1e12), st.integers(1, 1000))
def test_no_rate_leaves_what_was_measured(nbytes: float, depth: int) -> None:
    assert 1e8 * 0.999 <= RATES.rate(nbytes, depth) <= 16e8 * 1.001


@given(st.floats(1, 1 << 16), st.integers(1, 1000))
def test_smaller_reads_take_as_long_as_the_smallest(nbytes: float, depth: int) -> None:
    seconds = (1 << 16) / RATES.rate(1 << 16, depth)
    assert nbytes / RATES.rate(nbytes, depth) == pytest.approx(seconds)


def test_a_faster_drive_is_faster_everywhere() -> None:
    assert RATES.times(2).rate(3 << 16, 3) == pytest.approx(2 * RATES.rate(3 << 16, 3))


def test_what_was_not_measured_is_none() -> None:
    assert dataclasses.replace(MEASURED, reads=()).read_rates is None


def test_the_fewest_reads_that_are_nearly_as_fast() -> None:
    points = [ReadPoint(1 << 20, depth, rate) for depth, rate in ((1, 50), (2, 96), (4, 100))]
    assert ReadRates(tuple(points)).best_depth(1 << 20) == 2


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "made" / "figures.json"
    MEASURED.write(path)
    assert read_figures(path) == MEASURED
    assert read_figures(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_seconds": 10**400},
        {"layer_seconds": -1},
        {"layer_seconds": float("nan")},
        {"memory_bytes_per_second": True},
        {"cores": 0},
        {"memory_bytes": 1.5},
        {"reads": [{"nbytes": 1, "depth": 1}]},
        {"reads": 3},
        {"kernels": {"Q9_Z": {"decode_bytes_per_second": 1, "prefill_operations_per_second": 1}}},
        {"failed": ["Q4_K"]},
        {"format": 0},
    ],
)
def test_a_bad_file_is_one_error_that_says_what_to_do(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    path = tmp_path / "figures.json"
    MEASURED.write(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(SettingsError, match="localmoe bench measure") as error:
        read_figures(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"[" * 100_000, b"{}" * 600_000])
def test_what_is_no_object_of_figures(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "figures.json"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match="localmoe bench measure"):
        read_figures(path)


def test_of_another_drive_everything_counts_but_its_reads(tmp_path: Path) -> None:
    own = figures_path(tmp_path, tmp_path)
    MEASURED.write(own)
    assert find_figures(tmp_path, tmp_path) == MEASURED
    own.rename(own.with_name(own.name.replace("-drive-", "-drive-f")))
    found = find_figures(tmp_path, tmp_path)
    assert found == dataclasses.replace(MEASURED, reads=())


def test_a_folder_that_cannot_be_looked_at_is_on_the_drive_above(tmp_path: Path) -> None:
    assert figures_path(tmp_path, tmp_path / ("a" * 300)) == figures_path(tmp_path, tmp_path)
