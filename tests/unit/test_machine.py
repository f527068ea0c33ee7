"""What memory a process may use: fake control groups of both versions, and none."""

from __future__ import annotations

import mmap
import platform
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from localmoe.planning.machine import (
    available_memory_bytes,
    held_memory_bytes,
    huge_pages_by_default,
)

GIB = 1 << 30
MIB = 1 << 20
V1_NO_LIMIT = 9223372036854771712


@pytest.fixture(autouse=True)
def physical(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand for a machine with 64 GiB free and a process that holds 1 GiB."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * GIB))
    held = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=GIB))
    monkeypatch.setattr(psutil, "Process", lambda: held)


class Groups:
    """A tree of control groups under a temporary folder, and the process's membership."""

    def __init__(self, directory: Path) -> None:
        self.root, self.membership = directory / "cgroup", directory / "self"
        self.root.mkdir()
        self.membership.write_text("")

    def join(self, *lines: str) -> None:
        self.membership.write_text("".join(f"{line}\n" for line in lines))

    def v2(self, group: str, limit: object, usage: int, **files: object) -> None:
        """Write a version 2 group; `files` are more of its files, `stat` is memory.stat."""
        self._write(group, {"memory.max": limit, "memory.current": usage}, files)

    def v1(self, group: str, limit: object, usage: int, **files: object) -> None:
        values = {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": usage}
        self._write(f"memory/{group}", values, files)

    def _write(self, group: str, values: dict[str, object], files: dict[str, object]) -> None:
        folder = self.root / group
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in (values | {f"memory.{k}": v for k, v in files.items()}).items():
            (folder / name).write_text(f"{value}\n")

    def available(self) -> int:
        return available_memory_bytes(self.root, self.membership)


@pytest.fixture
def groups(tmp_path: Path) -> Groups:
    return Groups(tmp_path)


def less_margin(nbytes: int) -> int:
    return nbytes - max(256 * MIB, int(nbytes * 0.05))


def test_no_control_groups_at_all(tmp_path: Path) -> None:
    found = available_memory_bytes(tmp_path / "none", tmp_path / "neither")
    assert found == less_margin(65 * GIB)


def test_a_group_without_files(groups: Groups) -> None:
    groups.join("0::/user.slice/app")
    assert groups.available() == less_margin(65 * GIB)


def test_v2_without_a_limit(groups: Groups) -> None:
    groups.join("0::/app")
    groups.v2("app", "max", 5 * GIB, high="max")
    assert groups.available() == less_margin(65 * GIB)


def test_v2_what_the_process_holds_is_its_own(groups: Groups) -> None:
    groups.join("0::/app")
    groups.v2("app", 8 * GIB, 3 * GIB)
    assert groups.available() == less_margin(6 * GIB)


def test_v2_inactive_page_cache_counts_as_free(groups: Groups) -> None:
    groups.join("0::/app")
    stat = f"anon 5\nfile 7\ninactive_file {2 * GIB}\nactive_file {GIB}"
    groups.v2("app", 8 * GIB, 3 * GIB, stat=stat)
    assert groups.available() == less_margin(8 * GIB)


def test_v2_high_throttles_and_so_limits(groups: Groups) -> None:
    groups.join("0::/app")
    groups.v2("app", "max", 3 * GIB, high=4 * GIB)
    assert groups.available() == less_margin(2 * GIB)


@pytest.mark.parametrize("tightest", ["", "a", "a/b", "a/b/c"])
def test_v2_a_limit_anywhere_above_binds(groups: Groups, tightest: str) -> None:
    groups.join("0::/a/b/c")
    for group in ("", "a", "a/b", "a/b/c"):
        groups.v2(group, 8 * GIB if group == tightest else 30 * GIB, 2 * GIB)
    assert groups.available() == less_margin(7 * GIB)


def test_v2_a_neighbour_does_not_bind(groups: Groups) -> None:
    groups.join("0::/a/b")
    groups.v2("a/b", "max", GIB)
    groups.v2("a/c", GIB, GIB)
    assert groups.available() == less_margin(65 * GIB)


def test_v2_a_path_of_the_host_inside_a_container(groups: Groups) -> None:
    groups.join("0::/system.slice/docker-123.scope")
    groups.v2("", 4 * GIB, 2 * GIB)
    assert groups.available() == less_margin(3 * GIB)


def test_v2_a_path_outside_of_the_namespace(groups: Groups) -> None:
    groups.join("0::/../../other")
    groups.v2("", 4 * GIB, 2 * GIB)
    assert groups.available() == less_margin(3 * GIB)


def test_v1(groups: Groups) -> None:
    groups.join("9:cpu,cpuacct:/app", "4:memory:/app", "1:name=systemd:/app")
    groups.v1("app", 6 * GIB, 3 * GIB, stat=f"inactive_file 7\ntotal_inactive_file {GIB}")
    groups.v1("", V1_NO_LIMIT, 9 * GIB)
    assert groups.available() == less_margin(5 * GIB)


def test_v1_nested_limits(groups: Groups) -> None:
    groups.join("4:memory:/a/b")
    groups.v1("a/b", 20 * GIB, GIB)
    groups.v1("a", 5 * GIB, 2 * GIB)
    assert groups.available() == less_margin(4 * GIB)


def test_v1_memory_mounted_with_another_controller(groups: Groups) -> None:
    groups.join("4:hugetlb,memory:/a")
    groups.v1("a", 5 * GIB, 2 * GIB)
    assert groups.available() == less_margin(4 * GIB)


def test_hybrid_both_versions_bind(groups: Groups) -> None:
    groups.join("4:memory:/a", "0::/a")
    groups.v1("a", 9 * GIB, 2 * GIB)
    groups.v2("unified/a", 5 * GIB, 2 * GIB)
    assert groups.available() == less_margin(4 * GIB)
    groups.v1("a", 4 * GIB, 2 * GIB)
    assert groups.available() == less_margin(3 * GIB)


def test_a_group_that_is_over_its_limit_leaves_what_the_process_holds(groups: Groups) -> None:
    groups.join("0::/app")
    groups.v2("app", 2 * GIB, 3 * GIB)
    assert groups.available() == less_margin(GIB)


def test_the_margin_never_makes_it_negative(
    groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=10 * MIB))
    monkeypatch.setattr(psutil, "Process", lambda: held)
    groups.join("0::/app")
    groups.v2("app", 100 * MIB, 90 * MIB)
    assert groups.available() == 0


def test_the_margin_is_a_share_of_large_rooms(groups: Groups) -> None:
    assert groups.available() == 65 * GIB - int(65 * GIB * 0.05)


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="others give memory back by themselves"
)
def test_what_was_freed_is_not_held() -> None:
    """Blocks below one that is still in use: glibc keeps them, and would do so for ever."""
    blocks = [bytes(4096) for _ in range(10_000)]
    last = blocks.pop()
    blocks.clear()
    before = resident_bytes()
    assert held_memory_bytes() == GIB, "as the process says"
    assert before - resident_bytes() > 30 * MIB
    assert last[0] == 0


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.parametrize(
    ("text", "wanted"), [("[always] madvise never", True), ("always [madvise] never", False)]
)
def test_whether_pages_are_huge_by_default(tmp_path: Path, text: str, wanted: bool) -> None:
    (tmp_path / "enabled").write_text(text)
    assert huge_pages_by_default(tmp_path / "enabled") is wanted
    assert not huge_pages_by_default(tmp_path / "missing")
