"""The file that reads are measured on, and what is left of it."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from localmoe.bench import read_rates
from localmoe.bench.device import Choose
from localmoe.bench.read_rates import measure_reads, scratch_file
from localmoe.errors import SettingsError

NBYTES = 1 << 20


def test_it_has_no_holes_and_cannot_be_made_shorter(tmp_path: Path) -> None:
    with scratch_file(tmp_path, NBYTES) as path:
        content = path.read_bytes()
        assert len(content) == NBYTES
        assert len(zlib.compress(content)) >= NBYTES
    assert list(tmp_path.iterdir()) == []


def test_it_is_gone_after_an_interruption(tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), scratch_file(tmp_path, NBYTES, interrupt):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_drive_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=10, f_frsize=4096))
    with pytest.raises(SettingsError, match="--disk"), scratch_file(tmp_path, NBYTES):
        pass


def test_sizes_that_the_file_has_are_read(tmp_path: Path) -> None:
    with scratch_file(tmp_path, NBYTES) as path:
        points, _, _ = measure_reads(path, 0.001, sizes=(1 << 16, 1 << 22), depths=(1, 2))
    assert [(point.nbytes, point.depth) for point in points] == [(1 << 16, 1), (1 << 16, 2)]
    assert all(point.bytes_per_second > 0 for point in points)


def test_reads_that_differ_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {1 << 16: iter((1e9, 3e9, 2e9)), 1 << 18: iter((2.1e9, 2e9, 2.2e9))}

    def timed(files: object, make_chooser: Callable[[int], Choose], *_: object) -> SimpleNamespace:
        return SimpleNamespace(bytes_per_second=next(rates[make_chooser(0)().nbytes]))

    monkeypatch.setattr(read_rates, "timed_reads", timed)
    with scratch_file(tmp_path, NBYTES) as path:
        found = measure_reads(path, 1.0, sizes=tuple(rates), depths=(4,))
    assert [point.bytes_per_second for point in found.points] == [2e9, 2.1e9]
    assert found.doubtful == ("reads of 64 KiB, 4 at once",)
