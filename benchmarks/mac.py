"""Measures the MLX engine on a Mac: one JSON on standard output. Run by mac.sh, which sets up.

    benchmarks/mac.sh [--minutes 14] [--disk FOLDER] > mac.json
    benchmarks/mac.sh --tiny                        # whether it all runs, on any system with MLX

Checkpoints of Qwen3-30B-A3B's shape with random weights are written for it, and removed: one that
fits into memory, on which plain mlx-lm is measured in turn, and one that is larger than what Metal
recommends to use. What does not fit into the time is named under "missing".
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import expert_records
from mac_probe import machine, watched
from manifest import HERE, SCRATCH, Answer, entry_state
from mlx_checkpoint import SMALL, TRUE, sized, write_checkpoint

from localmoe.backends.mlx import device
from localmoe.bench.read_rates import measure_reads, scratch_file
from localmoe.errors import LocalMoeError
from localmoe.planning.machine import available_memory_bytes

_STARTED = time.time()
GB = 10**9
FITTING_SHARE, MOST_FITTING_NBYTES = 0.35, 16 * GB
"""Of the working set: what plain mlx-lm has to hold whole, beside everything else."""
TINY_NBYTES = 40_000_000
LARGER = 1.3
"""Times the working set."""
SPARE_DISK_NBYTES = 20 * GB
WRITING_SECONDS = 150
BUDGETS = {"all": 1.0, "half": 0.5, "quarter": 0.25}
"""Shares of the experts that are given slots."""
LARGER_BUDGETS = (0.5, 0.75)
"""Of the working set."""
_LEAST_SECONDS = 20
_KEPT = (
    *("tokens_per_second", "hit_rate", "bytes_read_per_token", "stall_seconds_per_token"),
    *("device_bytes_per_second", "resident_tokens_per_second", "limit_tokens_per_second"),
    *("fraction_of_limit", "slots", "budget_bytes", "load_seconds", "peak_rss_bytes"),
    "logits_sha256",
)
_PARTS = ("base", "resident", "kv", "compute", "slot", "mark")
_COUNTS = re.compile(r"(\d+) (passed|failed|error)")


class Mac:
    """One measurement: what was found so far, what is missing, and the time that is left."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.tiny, self._end = given.tiny, given.began + 60 * given.minutes
        self._disk: Path = given.disk
        self.found: Answer = {}
        self.missing: dict[str, str] = {}
        self._working_set = device.working_set_nbytes() or available_memory_bytes()
        self._write_rate = 0.0

    @property
    def left_seconds(self) -> float:
        """How long it may still take."""
        return self._end - time.time()

    def stage(self, name: str, measure: Callable[[], Answer]) -> None:
        """Measure something, or say why it is missing."""
        if self.left_seconds < _LEAST_SECONDS:
            self.missing[name] = "no time was left"
            return
        say(f"{name} ({self.left_seconds:.0f} s left)")
        began = time.perf_counter()
        try:
            self.found[name] = {**measure(), "seconds": time.perf_counter() - began}
        except (LocalMoeError, OSError, Unmeasured) as error:
            self.missing[name] = str(error)
            say(f"  missing: {error}")

    def reads(self) -> Answer:
        """Read the drive past the page cache: pieces of one size, and experts of nine or of one."""
        sizes, depths = ((64 << 10,), (1, 4)) if self.tiny else ((1 << 20, 4 << 20), (1, 4, 16))
        with scratch_file(self._disk, (32 << 20) if self.tiny else (2 << 30)) as path:
            seconds = 0.03 if self.tiny else 0.6
            found = measure_reads(path, seconds, sizes=sizes, depths=depths)
            records, _ = expert_records.compare(path, rounds=1 if self.tiny else 15)
        points = [asdict(point) for point in found.points]
        return {
            "is_direct": found.is_direct,
            "points": points,
            "doubtful": found.doubtful,
            "expert_records": records,
        }

    def gates(self) -> Answer:
        """Compare bits with mlx-lm's for a few types of models; what fails is named."""
        some = (
            "qwen3_moe and affine" if self.tiny else "qwen3_moe or afmoe or gpt_oss or any_number"
        )
        tests = "tests/gates/test_mlx_lossless.py"
        command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", tests, "-k", some]
        status, out, _ = watched(command, self.left_seconds)
        counts = {word: int(number) for number, word in _COUNTS.findall(out)}
        if status is None or not counts:
            raise Unmeasured(f"pytest did not end well: {out.strip()[-500:]}")
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", out, re.MULTILINE)
        return {"selection": command[-1], "counts": counts, "failed": failed}

    def fitting(self) -> Answer:
        """Measure a checkpoint that fits: plain mlx-lm and three budgets, in turn."""
        nbytes = min(int(self._working_set * FITTING_SHARE), MOST_FITTING_NBYTES)
        folder, about = self._checkpoint("mac-fitting", TINY_NBYTES if self.tiny else nbytes)
        experts = about["sizes"]["num_hidden_layers"] * about["sizes"]["num_experts"]
        rows: list[Answer] = []
        try:
            for number in range(1 if self.tiny else 2):
                rows.append({"side": "mlx-lm", "round": number, **self._plain(folder)})
                for name, share in list(BUDGETS.items())[: 2 if self.tiny else None]:
                    row = self._decode(folder, "--slots", str(int(experts * share)))
                    rows.append({"side": f"localmoe, {name}", "round": number, **row})
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        hashes = [row["logits_sha256"] for row in rows if "logits_sha256" in row]
        for row in rows:
            if "logits_sha256" in row:
                row["same_logits_as_first"] = row["logits_sha256"] == hashes[0]
        return {"checkpoint": about, "rows": rows}

    def larger(self) -> Answer:
        """Measure a checkpoint that is larger than the working set, in two budgets."""
        if self.tiny:
            raise Unmeasured("left out: --tiny")
        wanted = int(self._working_set * LARGER)
        room = shutil.disk_usage(self._disk).free - SPARE_DISK_NBYTES
        seconds = min(WRITING_SECONDS, self.left_seconds / 2)
        nbytes = min(wanted, room, int(self._write_rate * seconds))
        if nbytes < self._working_set:
            raise Unmeasured(
                f"a checkpoint of {wanted / GB:.0f} GB needs as much room on the drive, "
                f"{room / GB:.0f} GB are free, and {self._write_rate * seconds / GB:.0f} GB can be "
                "written in the time"
            )
        folder, about = self._checkpoint("mac-larger", nbytes)
        try:
            budgets = [int(self._working_set * share) for share in LARGER_BUDGETS]
            rows = [{"memory_bytes": each, **self._in_budget(folder, each)} for each in budgets]
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return {"checkpoint": about, "rows": rows}

    def cost(self) -> Answer:
        """Have mlx_cost.py find what a hit layer costs."""
        if self.tiny:
            raise Unmeasured("left out: --tiny")
        with tempfile.TemporaryDirectory() as made:
            command = [str(HERE / "mlx_cost.py"), "--rounds", "3", "--data", made]
            self._checked(watched(command, self.left_seconds))
            record = json.loads(next(Path(made).glob("*.json")).read_text())
        return {"cost": record["cost"], "memory": record["memory"]}

    def _checkpoint(self, name: str, nbytes: int) -> tuple[Path, Answer]:
        sizes, folder = sized(SMALL if self.tiny else TRUE, nbytes), self._disk / name
        began = time.perf_counter()

        def heard(done: int, total: int) -> None:
            if self.left_seconds < _LEAST_SECONDS:
                raise Unmeasured(f"{done / GB:.1f} of {total / GB:.1f} GB were written in the time")

        try:
            written = write_checkpoint(folder, sizes, heard)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        seconds = time.perf_counter() - began
        self._write_rate = written / seconds
        say(f"  {written / GB:.2f} GB written in {seconds:.0f} s")
        return folder, {"bytes": written, "write_seconds": seconds, "sizes": sizes}

    @property
    def _lengths(self) -> tuple[int, int]:
        """How many tokens are read, and how many decoded."""
        return (8, 4) if self.tiny else (64, 48)

    def _in_budget(self, folder: Path, nbytes: int) -> Answer:
        return self._decode(folder, "--memory", f"{nbytes >> 20}MiB")

    def _decode(self, folder: Path, *memory: str) -> Answer:
        prompt, tokens = self._lengths
        command = ["-m", "localmoe", "bench", "decode", str(folder), "--engine", "mlx", "--json"]
        command += ["--prompt-tokens", str(prompt), "--tokens", str(tokens), "--context", "512"]
        command += ["--device-seconds", "0.1"] if self.tiny else []
        return self._row(watched([*command, *memory], self.left_seconds))

    def _plain(self, folder: Path) -> Answer:
        prompt, tokens = self._lengths
        request = {"folder": str(folder), "prompt_tokens": prompt, "tokens": tokens}
        command = [str(HERE / "mlx_worker.py")]
        return self._row(watched(command, self.left_seconds, json.dumps(request)))

    def _row(self, ran: tuple[int | None, str, Answer]) -> Answer:
        """Return what is kept of a run; one that fails is told, and the others go on."""
        try:
            answer = json.loads(self._checked(ran).splitlines()[-1])
        except Unmeasured as error:
            say(f"  {error}")
            return {"failed": str(error), **ran[2]}
        say(f"  {answer['tokens_per_second']:.2f} tok/s")
        if "extra" not in answer:
            return {**answer, **ran[2]}
        extra, plan = answer["extra"], answer["extra"]["plan"]
        return {
            **{name: answer[name] for name in _KEPT},
            "experts": plan["experts"],
            "planned_bytes": sum(plan[f"{part}_bytes"] for part in _PARTS),
            "prefill_tokens_per_second": extra["prefill_tokens_per_second"],
            "token_seconds": extra["token_seconds"],
            **ran[2],
        }

    def _checked(self, ran: tuple[int | None, str, Answer]) -> str:
        status, out, _ = ran
        if status is None:
            raise Unmeasured("it took longer than the time that was left")
        if status:
            raise Unmeasured(f"exit {status}: {out.strip()[-800:]}")
        return out


class Unmeasured(Exception):
    """Something could not be measured; its text says why."""


def say(line: str) -> None:
    """Tell how it goes on, on standard error."""
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Measure; print one JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=14.0, help="all together, set-up included")
    parser.add_argument("--disk", type=Path, default=SCRATCH, help="where checkpoints are written")
    parser.add_argument("--tiny", action="store_true", help="whether it all runs: seconds")
    parser.add_argument("--began", type=float, default=time.time(), help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.disk.mkdir(parents=True, exist_ok=True)
    entry, mac = entry_state(), Mac(given)
    for stage in (mac.reads, mac.fitting, mac.gates, mac.larger, mac.cost):
        mac.stage(stage.__name__, stage)
    answer = {
        "benchmark": "mac",
        "tiny": given.tiny,
        "machine": machine(),
        "entry": entry,
        "set_up_seconds": round(_STARTED - given.began, 1),
        "seconds": round(time.time() - given.began, 1),
        **mac.found,
        "missing": mac.missing,
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
