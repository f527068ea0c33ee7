"""The doctor's checks, each verdict of them, on made-up systems."""

from __future__ import annotations

import datetime
import errno
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from localmoe.backends.llama.versions import TESTED_VERSIONS
from localmoe.demo.source import find_source
from localmoe.doctor import drive, engines, folders, graphics, memory, model, page, processor
from localmoe.doctor.check import NOT_HERE, Check, Verdict, runs
from localmoe.doctor.child import answer, ask_child
from localmoe.doctor.folders import Measured
from localmoe.doctor.system import System, existing
from localmoe.planning import machine

GIB, MIB = 1 << 30, 1 << 20
NOW = datetime.datetime(2026, 11, 26, tzinfo=datetime.UTC)
FLAGS = "fpu avx2 fma f16c avx512f avx512_vnni avx512_bf16 amx_int8"
BUILT = ["AMX_INT8", "AVX2", "AVX512", "AVX512_BF16", "AVX512_VNNI", "F16C", "FMA"]
THP = "/sys/kernel/mm/transparent_hugepage/enabled"
FITS = {
    "architecture": "qwen3moe",
    "files": 1,
    "nbytes": 3 * GIB,
    "experts": 64,
    "streams": True,
    "smallest_mib": 700,
    "budget_bytes": 2 * GIB,
}
WELL = {
    "/proc/cpuinfo": f"processor : 0\nmodel name : Fast\nflags : {FLAGS}\n\nprocessor : 1\n",
    "/proc/self/status": "Name:\tx\nCpus_allowed_list:\t0-1\n",
    "/proc/self/cgroup": "0::/app\n",
    "/proc/self/limits": "Max locked memory         8388608              8388608       bytes\n",
    "/proc/meminfo": "MemTotal: 33554432 kB\nSwapTotal: 0 kB\n",
    "/proc/sys/kernel/osrelease": "6.1.0-13-amd64\n",
    "/proc/sys/kernel/io_uring_disabled": "0\n",
    "/proc/self/mountinfo": "22 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw\n",
    THP: "always [madvise] never\n",
    "/sys/dev/block/259:2/queue/rotational": "0\n",
}
VERSIONS = {
    "llama-cpp-python": TESTED_VERSIONS[-1],
    **{"torch": "2.13.0+cpu", "transformers": "5.23.1", "safetensors": "0.8.0"},
}
PROJECT = Path(__file__).parents[2] / "pyproject.toml"
Make = Callable[..., System]


@pytest.fixture(autouse=True)
def physical(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand for a machine with 20 of 32 GiB free, and a process that holds nothing of it."""
    memory_now = SimpleNamespace(available=20 * GIB, total=32 * GIB)
    monkeypatch.setattr(machine, "held_memory_bytes", lambda: 0)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory_now)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that makes a healthy system, but for the files that it is given."""

    def made(files: Mapping[str, str | None] | None = None, **changes: object) -> System:
        root = tmp_path / "root"
        for name, text in {**WELL, **(files or {})}.items():
            path = root / name.lstrip("/")
            if text is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        well = System(
            {"TERM": "xterm-256color"},
            root=root,
            platform="linux",
            machine="x86_64",
            python=(3, 12, 1),
            run=lambda _: None,
            which=lambda name: f"/usr/bin/{name}",
            version=VERSIONS.get,
            ring_error=lambda: None,
            is_direct=lambda _: True,
            free_bytes=lambda _: 100 * GIB,
        )
        return replace(well, **changes)  # type: ignore[arg-type]

    return made


def healthy(words: Sequence[str]) -> dict[str, object]:
    return {"features": BUILT, "compiled": True} if words[0] == "engine" else FITS


def visit(tmp_path: Path, **changes: object) -> page.Visit:
    normal = page.Visit(
        model=tmp_path / "model.gguf",
        memory_bytes=None,
        cache=tmp_path / "cache",
        state=tmp_path / "state",
        measured=Measured(NOW.isoformat()),
        encoding="utf-8",
        is_terminal=True,
        now=NOW,
    )
    return replace(normal, **changes)  # type: ignore[arg-type]


def test_a_healthy_system_has_nothing_to_mend(make: Make, tmp_path: Path) -> None:
    checks = page.examine(make(), visit(tmp_path), healthy)
    assert [c for c in checks if c.verdict is not Verdict.OK] == []
    assert len({c.name for c in checks}) == len(checks) == 21
    assert runs(checks)


def sick(make: Make) -> System:
    """Return a system on which everything is wrong that can be at once."""
    return make(
        {
            "/sys/fs/cgroup/app/cpu.max": "50000 100000",
            "/sys/fs/cgroup/app/memory.max": str(400 * MIB),
            "/sys/fs/cgroup/app/memory.current": "0",
            "/proc/meminfo": "SwapTotal: 2097152 kB\n",
            "/proc/sys/vm/swappiness": "60",
            "/proc/self/limits": "Max locked memory   16384   16384   bytes\n",
            "/proc/sys/kernel/osrelease": "5.4.0\n",
            "/sys/dev/block/259:2/queue/rotational": "1\n",
            THP: "always madvise [never]\n",
        },
        python=(3, 9, 0),
        version=lambda _: None,
        which=lambda _: None,
        ring_error=lambda: OSError(errno.EPERM, "no"),
        is_direct=lambda _: False,
    )


def test_every_bad_verdict_has_a_command(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    ill = visit(
        tmp_path,
        cache=file / "cache",
        state=file / "state",
        measured=Measured(),
        encoding="ascii",
    )

    def ask(words: Sequence[str]) -> dict[str, object]:
        if words[0] == "engine":
            return {"features": [], "compiled": False}
        return {"error": "too small", "kind": "BudgetError", "smallest_mib": 700}

    checks = page.examine(sick(make), ill, ask)
    bad = [c for c in checks if c.verdict is not Verdict.OK]
    assert {c.name for c in checks} - {c.name for c in bad} == {"processor", "GPU", "MLX engine"}
    assert all(c.mend for c in bad)
    assert {c.name for c in bad if c.verdict is Verdict.STOPS} == {
        *("Python", "llama-cpp-python", "model")
    }
    assert not runs(checks)


def test_another_system_has_no_proc_and_says_so(make: Make, tmp_path: Path) -> None:
    said = {
        ("sysctl", "hw.optional"): "hw.optional.AdvSIMD: 1\nhw.optional.arm.FEAT_DotProd: 1\n",
        ("sysctl", "-n", "machdep.cpu.brand_string"): "Apple M4 Max\n",
        ("sysctl", "-n", "hw.ncpu"): "16\n",
    }
    mac = make(platform="darwin", machine="arm64", run=lambda c: said.get(tuple(c)))
    mac = replace(mac, root=tmp_path / "nothing")
    built = {"features": ["NEON", "DOTPROD"], "compiled": True}
    checks = page.examine(
        mac, visit(tmp_path), lambda words: built if words[0] == "engine" else FITS
    )
    found = {c.name: c.found for c in checks}
    assert [c.name for c in checks if c.verdict is not Verdict.OK] == ["MLX engine"]
    assert [n for n, f in found.items() if f == NOT_HERE] == [
        *("swap", "locked memory", "huge pages", "io_uring")
    ]
    assert found["processor"] == "Apple M4 Max (NEON, dot products)"
    assert found["cores"] == "16"
    assert found["GPU"].startswith("Apple, through Metal")


def test_a_linux_that_shows_nothing_is_no_error(make: Make, tmp_path: Path) -> None:
    blind = replace(make(), root=tmp_path / "nothing")
    checks = page.examine(blind, visit(tmp_path), healthy)
    assert runs(checks)
    assert {c.name for c in checks if c.verdict is Verdict.BETTER} == {"huge pages"}


def test_without_an_engine_no_model_is_tried(make: Make, tmp_path: Path) -> None:
    asked = []

    def ask(words: Sequence[str]) -> dict[str, object]:
        asked.append(words[0])
        return {"died": "it died of signal 4 (SIGILL)"}

    checks = page.examine(make(), visit(tmp_path), ask)
    assert asked == ["engine"]
    stopping = [c for c in checks if c.verdict is Verdict.STOPS]
    assert [c.name for c in stopping] == ["llama.cpp build"]
    assert "SIGILL" in stopping[0].found
    assert "--no-binary" in (stopping[0].mend or "")


class TestProcessor:
    def test_quota(self, make: Make) -> None:
        groups = {
            "/sys/fs/cgroup/app/cpu.max": "max 100000",
            "/sys/fs/cgroup/cpu.max": "150000 100000",
        }
        check = processor.check_cores(make(groups))
        assert check.mend == "localmoe run --threads 1"
        assert "1.5" in check.found

    def test_quota_of_version_1(self, make: Make) -> None:
        files = {
            "/proc/self/cgroup": "4:cpu,cpuacct:/a/b\n",
            "/sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "100000",
            "/sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000",
            "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        }
        assert processor.check_cores(make(files)).verdict is Verdict.BETTER

    @pytest.mark.parametrize(
        ("ranges", "usable"), [("0", 1), ("0-1", 2), ("0-3,8", 5), ("junk", 2), ("", 2)]
    )
    def test_affinity(self, make: Make, ranges: str, usable: int) -> None:
        system = make({"/proc/self/status": f"Cpus_allowed_list:\t{ranges}\n"})
        assert processor.check_cores(system).found == f"{usable} usable of 2"

    def test_arm(self, make: Make) -> None:
        system = make({"/proc/cpuinfo": "processor : 0\nFeatures : fp asimd i8mm\n"})
        found = processor.processor_features(replace(system, machine="aarch64"))
        assert [f.title for f in found] == ["NEON", "int8 matrices"]

    def test_another_processor(self, make: Make) -> None:
        check = processor.check_processor(make(machine="riscv64"))
        assert (check.verdict, "nothing" in check.found) == (Verdict.OK, True)


class TestMemory:
    def test_a_budget_beyond_what_is_there(self, make: Make) -> None:
        check = memory.check_memory(make(), 40 * GIB)
        assert check.verdict is Verdict.BETTER
        assert (check.mend or "").startswith("localmoe run --memory 1")

    def test_a_group_that_leaves_little(self, make: Make) -> None:
        groups = {
            "/sys/fs/cgroup/app/memory.max": str(500 * MIB),
            "/sys/fs/cgroup/app/memory.current": str(300 * MIB),
        }
        check = memory.check_memory(make(groups), None)
        assert "a control group allows 500.00 MiB" in check.found
        assert "MemoryMax" in (check.mend or "")

    def test_a_group_without_a_limit(self, make: Make) -> None:
        groups = {"/sys/fs/cgroup/app/memory.max": "max", "/sys/fs/cgroup/app/memory.current": "1"}
        assert "group" not in memory.check_memory(make(groups), None).found

    def test_little_memory_and_nobody_to_blame(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = SimpleNamespace(available=300 * MIB, total=GIB)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: now)
        assert "ps -eo" in (memory.check_memory(make(), None).mend or "")

    def test_swap_that_is_hardly_used(self, make: Make) -> None:
        files = {"/proc/meminfo": "SwapTotal: 1024 kB\n", "/proc/sys/vm/swappiness": "10"}
        assert memory.check_swap(make(files)).found == "1.00 MiB, swappiness 10"

    def test_locked_memory_matters_to_old_kernels_alone(self, make: Make) -> None:
        little = {"/proc/self/limits": "Max locked memory   16384   16384   bytes\n"}
        assert memory.check_locked_memory(make(little)).verdict is Verdict.OK
        old = {**little, "/proc/sys/kernel/osrelease": "5.10.0-8-amd64"}
        assert memory.check_locked_memory(make(old)).verdict is Verdict.BETTER

    def test_unlimited(self, make: Make) -> None:
        files = {"/proc/self/limits": "Max locked memory  unlimited  unlimited  bytes\n"}
        assert "unlimited" in memory.check_locked_memory(make(files)).found

    @pytest.mark.parametrize(
        ("text", "verdict"),
        [
            ("[always] madvise never", Verdict.OK),
            ("always [madvise] never", Verdict.OK),
            ("always madvise [never]", Verdict.BETTER),
        ],
    )
    def test_huge_pages(self, make: Make, text: str, verdict: Verdict) -> None:
        assert memory.check_huge_pages(make({THP: text})).verdict is verdict


class TestDrive:
    @pytest.mark.parametrize(
        ("number", "mend"),
        [
            (errno.EPERM, "seccomp"),
            (errno.ENOMEM, "ulimit"),
            (errno.ENOSYS, "5.6"),
            (errno.EMFILE, "dmesg"),
        ],
    )
    def test_no_ring(self, make: Make, number: int, mend: str) -> None:
        check = drive.check_ring(make(ring_error=lambda: OSError(number, "no")))
        assert mend in (check.mend or "")

    def test_a_ring_that_the_system_forbids(self, make: Make) -> None:
        files = {"/proc/sys/kernel/io_uring_disabled": "2\n"}
        check = drive.check_ring(make(files, ring_error=lambda: OSError(errno.EPERM, "no")))
        assert check.mend == "sudo sysctl kernel.io_uring_disabled=0"

    @pytest.mark.parametrize("kind", ["nfs4", "fuse.sshfs", "tmpfs"])
    def test_file_systems_to_avoid(self, make: Make, tmp_path: Path, kind: str) -> None:
        mounts = f"{WELL['/proc/self/mountinfo']}23 22 0:50 / {tmp_path} rw - {kind} there rw\n"
        system = make({"/proc/self/mountinfo": mounts})
        check = drive.check_drive(system, tmp_path / "to come" / "models")
        assert (check.verdict, kind in check.found) == (Verdict.BETTER, True)

    def test_the_innermost_mount_counts_and_of_two_the_last(
        self, make: Make, tmp_path: Path
    ) -> None:
        spaced = str(tmp_path / "à b").replace(" ", "\\040")
        mounts = "".join(
            f"1 1 {device} / {point} rw - ext4 {source} rw\n"
            for device, point, source in [
                ("8:1", "/", "/dev/sda1"),
                ("8:2", spaced, "/dev/sdb1"),
                ("8:3", spaced, "/dev/sdc1"),
                ("8:4", tmp_path, "/dev/sdd1"),
                ("8:5", f"{tmp_path}/à", "/dev/sde1"),
            ]
        )
        system = make({"/proc/self/mountinfo": f"junk\n{mounts}"})
        inner = tmp_path / "à b"
        inner.mkdir()
        found = drive.mount_of(system, inner)
        assert found is not None
        assert found.source == "/dev/sdc1"

    def test_a_partition_turns_with_its_disk(self, make: Make, tmp_path: Path) -> None:
        system = make(
            {
                "/proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n",
                "/sys/class/block/sda/queue/rotational": "1\n",
                "/sys/class/block/sda/sda1/partition": "1\n",
            }
        )
        numbers = system.path("/sys/dev/block")
        (numbers / "8:1").symlink_to(system.path("/sys/class/block/sda/sda1"))
        check = drive.check_drive(system, tmp_path)
        assert (check.verdict, check.found[:8]) == (Verdict.BETTER, "rotating")

    def test_virtual_disks_say_nothing(self, make: Make, tmp_path: Path) -> None:
        mounts = "22 1 259:2 / / rw - ext4 /dev/vda rw\n"
        files = {"/proc/self/mountinfo": mounts, "/sys/dev/block/259:2/queue/rotational": "1\n"}
        assert drive.check_drive(make(files), tmp_path).verdict is Verdict.OK

    def test_a_full_drive(self, make: Make, tmp_path: Path) -> None:
        check = drive.check_drive(make(free_bytes=lambda _: GIB), tmp_path)
        assert "1.00 GiB free" in check.found
        assert "du -h" in (check.mend or "")

    def test_direct_reads_that_cannot_be_tried(self, make: Make, tmp_path: Path) -> None:
        def refuse(path: Path) -> bool:
            raise OSError(errno.EROFS, "Read-only file system")

        check = drive.check_direct(make(is_direct=refuse), tmp_path)
        assert (check.verdict, "Read-only" in check.found) == (Verdict.OK, True)

    def test_the_real_probes(self, tmp_path: Path) -> None:
        system = System({})
        file = tmp_path / "file"
        file.write_bytes(bytes(1 << 14))
        assert system.is_direct(file) == system.is_direct(tmp_path)
        assert list(tmp_path.iterdir()) == [file], "the probe leaves nothing behind"
        assert isinstance(system.ring_error(), OSError | None)
        assert system.run((sys.executable, "-c", "print(1)")) == "1\n"
        assert system.run((sys.executable, "-c", "exit(3)")) is None
        assert system.run(("/no/such/command",)) is None
        assert system.version("no-such-package") is None


class TestGraphics:
    def test_nvidia(self, make: Make) -> None:
        line = "NVIDIA H100, 81559 MiB, 550.1\n"
        with_torch = make(run=lambda _: line, version={"torch": "2.13.0"}.get)
        check = graphics.check_graphics(with_torch)
        assert check.found == f"{line.strip()}; used for safetensors checkpoints"
        without = graphics.check_graphics(make(run=lambda _: line, version=lambda _: None))
        assert "once torch is installed" in without.found

    def test_torch_without_cuda(self, make: Make) -> None:
        version = {"torch": "2.13.0+cpu"}.get
        check = graphics.check_graphics(make(run=lambda _: "NVIDIA H100\n", version=version))
        assert check.verdict is Verdict.BETTER
        assert "localmoe[cuda]" in (check.mend or "")

    def test_nvidia_without_its_tool_and_amd(self, make: Make) -> None:
        files = {"/proc/driver/nvidia/gpus/0/information": "", "/dev/kfd": ""}
        assert graphics.check_graphics(make(files)).found.startswith("1 by NVIDIA")
        assert "/dev/kfd" in graphics.check_graphics(make(files)).found


class TestEngines:
    def test_an_untested_version(self, make: Make) -> None:
        check = engines.check_version(make(version=lambda _: "0.2.0"))
        assert check.verdict is Verdict.STOPS
        assert (check.mend or "").endswith(f"=={TESTED_VERSIONS[-1]}")

    def test_a_plain_build(self, make: Make) -> None:
        check = engines.check_build(make(), {"features": ["AVX2"], "compiled": True})
        assert "not for FMA" in check.found
        assert "GGML_NATIVE=ON" in (check.mend or "")

    @pytest.mark.parametrize(
        ("error", "mend"),
        [("_native.so was built from other sources", "localmoe"), ("no ggml library", "llama-cpp")],
    )
    def test_an_engine_that_refuses(self, make: Make, error: str, mend: str) -> None:
        check = engines.check_build(make(), {"error": error, "kind": "EngineVersionError"})
        assert (check.verdict, mend in (check.mend or "")) == (Verdict.STOPS, True)

    def test_why_the_callback_is_missing(self, make: Make) -> None:
        missing = {"features": BUILT, "compiled": False}
        assert "pip install" in (engines.check_callback(make(), missing).mend or "")
        bare = make(which=lambda _: None)
        assert "apt install gcc" in (engines.check_callback(bare, missing).mend or "")
        mac = replace(bare, platform="darwin")
        assert "xcode-select" in (engines.check_callback(mac, missing).mend or "")

    def test_mlx(self, make: Make) -> None:
        there = {"mlx": "0.32.4", "mlx-lm": "0.32.2"}
        found = engines.check_mlx(make(version=there.get)).found
        assert found == "mlx 0.32.4, mlx-lm 0.32.2: runs MLX checkpoints"
        linux = make(version={"mlx": "0.32.4"}.get)
        assert engines.check_mlx(linux).verdict is Verdict.OK
        mac = replace(linux, platform="darwin", machine="arm64")
        assert "localmoe[mlx]" in (engines.check_mlx(mac).mend or "")

    @pytest.mark.parametrize("is_needed", [False, True])
    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({}, None),
            ({"torch": None}, "torch not installed: safetensors checkpoints do not run"),
            ({"torch": "2.9.1"}, "; torch 2.13 or later is needed"),
            ({"torch": "2.14.0", "safetensors": "1.0"}, None),
            ({"transformers": "5.22.9"}, "; transformers 5.23 is needed"),
            ({"transformers": "5.24.0"}, "; transformers 5.23 is needed"),
            (
                {"safetensors": None, "transformers": None},
                "transformers, safetensors not installed",
            ),
        ],
    )
    def test_what_runs_safetensors(
        self, make: Make, changed: dict[str, str | None], said: str | None, is_needed: bool
    ) -> None:
        system = make(version={**VERSIONS, **changed}.get)
        check = engines.check_torch(system, is_needed=is_needed)
        if said is None:
            assert check.verdict is Verdict.OK
            assert "runs safetensors checkpoints" in check.found
            return
        assert check.verdict is (Verdict.STOPS if is_needed else Verdict.BETTER)
        assert said in check.found
        assert check.mend == "pip install 'localmoe[torch]'"

    def test_versions_are_those_of_the_extra(self) -> None:
        project = tomllib.loads(PROJECT.read_text())["project"]
        pins = project["optional-dependencies"]["torch"]
        for package, (major, minor) in engines.TORCH_MINORS.items():
            assert any(pin.startswith(f"{package}>={major}.{minor}") for pin in pins)

    def test_a_checkpoint_needs_torch_and_no_callback(self, make: Make, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        bare = make(version={"llama-cpp-python": TESTED_VERSIONS[-1]}.get)
        checks = page.examine(bare, visit(tmp_path, model=path), healthy)
        assert [c.name for c in checks if c.verdict is Verdict.STOPS] == ["torch engine"]


class TestFolders:
    def test_one_that_is_still_to_be_made(self, tmp_path: Path) -> None:
        check = folders.check_folder("cache folder", tmp_path / "a" / "b", "LOCALMOE_CACHE")
        assert check.verdict is Verdict.OK
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("measured", "verdict"),
        [
            (Measured("2026-11-20T10:00:00+00:00"), Verdict.OK),
            (Measured("2026-11-20T10:00:00"), Verdict.OK),
            (Measured("2026-01-01T10:00:00+00:00"), Verdict.BETTER),
            (Measured("yesterday"), Verdict.BETTER),
            (Measured("2026-11-20T10:00:00+00:00", n_doubtful=2), Verdict.BETTER),
            (Measured(), Verdict.BETTER),
            (Measured(error="it is damaged"), Verdict.BETTER),
        ],
    )
    def test_figures(self, measured: Measured, verdict: Verdict) -> None:
        check = folders.check_figures(measured, NOW)
        assert check.verdict is verdict
        assert check.mend in (None, "localmoe bench measure")

    def test_terminals(self, make: Make) -> None:
        dumb = replace(make(), environment={"TERM": "dumb"})
        told = [
            folders.check_terminal(make(), "utf-8", is_terminal=True),
            folders.check_terminal(make(), "ascii", is_terminal=False),
            folders.check_terminal(make(), "iso8859-1", is_terminal=True),
            folders.check_terminal(dumb, "utf-8", is_terminal=True),
        ]
        assert [c.verdict for c in told] == [Verdict.OK] * 2 + [Verdict.BETTER] * 2


class TestModel:
    @pytest.mark.parametrize(
        ("kind", "mend"),
        [
            ("ModelNotFoundError", "ls -l"),
            ("ModelFormatError", "sha256sum"),
            ("UnsupportedModelError", "--upgrade"),
            ("BudgetError", "--context 1024"),
            ("EngineError", "localmoe run"),
        ],
    )
    def test_what_stops_it(self, tmp_path: Path, kind: str, mend: str) -> None:
        said = {"error": "because", "kind": kind, "smallest_mib": 700}
        check = model.check_model(tmp_path / "a b.gguf", None, lambda _: said)
        assert (check.verdict, check.found) == (Verdict.STOPS, "because")
        assert mend in (check.mend or "")

    def test_a_budget_that_is_too_small(self, tmp_path: Path) -> None:
        said = {"error": "too small", "kind": "BudgetError", "smallest_mib": 700}
        check = model.check_model(tmp_path / "a b.gguf", GIB, lambda _: said)
        assert check.mend == f"localmoe run '{tmp_path}/a b.gguf' --memory 708MiB"

    def test_one_that_kills_its_reader(self, tmp_path: Path) -> None:
        check = model.check_model(tmp_path, None, lambda _: {"died": "it died of signal 6"})
        assert (check.verdict, "signal 6" in check.found) == (Verdict.STOPS, True)

    def test_the_demonstration_model_may_be_built_or_not(self, make: Make, tmp_path: Path) -> None:
        def check(**changes: object) -> Check:
            return model.check_demo(make(**changes), tmp_path, None, healthy)

        assert "built on first use" in check().found
        assert "has left" in check(free_bytes=lambda _: MIB).found
        little = model.check_demo(make(), tmp_path, 100 * MIB, healthy)
        assert (little.verdict, little.name) == (Verdict.STOPS, "model")
        file = tmp_path / "file"
        file.touch()
        blocked = model.check_demo(make(), file / "cache", None, healthy)
        assert (blocked.verdict, "cannot be built" in blocked.found) == (Verdict.STOPS, True)

    def test_the_demonstration_model_is_planned_for_where_it_is(
        self, make: Make, demo_model_path: Path
    ) -> None:
        asked: list[Sequence[str]] = []

        def ask(words: Sequence[str]) -> dict[str, object]:
            asked.append(words)
            return healthy(words)

        assert runs([model.check_demo(make(), demo_model_path.parent, GIB, ask)])
        assert asked == [("model", str(demo_model_path), str(GIB))]


class TestChild:
    def ask(self, code: str) -> Mapping[str, object]:
        return ask_child((sys.executable, "-c", code), {}, ("engine",))

    def test_it_may_die(self) -> None:
        killed = self.ask("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
        assert killed == {"died": "it died of signal 4 (SIGILL)"}

    def test_it_may_say_nothing_sensible(self) -> None:
        assert self.ask("exit('no such thing')") == {"died": "no such thing"}
        assert self.ask("exit(5)") == {"died": "it ended with status 5"}
        assert "could not be started" in str(ask_child(("/no/such",), {}, ())["died"])

    def test_it_names_what_llama_cpp_was_built_for(self) -> None:
        found = answer(("engine",))
        assert found["features"]
        assert isinstance(found["compiled"], bool)

    def test_it_plans(self, zoo_model: Callable[[str], Path]) -> None:
        path = str(zoo_model("qwen3moe"))
        found = answer(("model", path, str(4 * GIB)))
        assert (found["architecture"], found["files"], found["streams"]) == ("qwen3moe", 1, False)
        small = answer(("model", path, str(MIB)))
        assert (small["kind"], small["smallest_mib"] > 1) == ("BudgetError", True)

    def test_errors_keep_their_kind(self, tmp_path: Path) -> None:
        assert answer(("model", str(tmp_path / "none.gguf"), "0"))["kind"] == "ModelNotFoundError"


def test_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    assert existing(tmp_path / "a" / "b") == tmp_path
    assert existing(find_source()) == find_source()
    assert existing(tmp_path / ("a" * 300)) == tmp_path  # no stat of it, as in a hidden folder
