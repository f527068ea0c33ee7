"""`localmoe bench decode` as a command, on generated models."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from localmoe.native.library import library

ZooModel = Callable[[str], Path]
Bench = Callable[..., subprocess.CompletedProcess[str]]

KEYS = {
    "tokens_per_second", "hit_rate", "bytes_read_per_token", "stall_seconds_per_token",
    "device_bytes_per_second", "resident_tokens_per_second", "limit_tokens_per_second",
    "fraction_of_limit", "load_seconds", "budget_bytes", "peak_rss_bytes", "slots",
    "logits_sha256",
}  # fmt: skip
SHORT = (
    *("--context", "128", "--prompt-tokens", "5", "--tokens", "6"),
    *("--threads", "1", "--device-seconds", "0"),
)


@pytest.fixture(scope="module")
def bench() -> Bench:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LOCALMOE_", "GOMP_", "OMP_"))}

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "localmoe", "bench", "decode", *arguments],
            env={**kept, "COLUMNS": "100"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return call


def answer_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert (done.returncode, done.stderr) == (0, "")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_json_has_the_promised_keys_and_figures_that_fit_together(
    bench: Bench, zoo_model: ZooModel
) -> None:
    answer = answer_of(bench(str(zoo_model("qwen3moe")), *SHORT, "--slots", "20", "--json"))
    assert set(answer) == KEYS | {"extra"}
    extra = answer["extra"]
    assert extra["prefill_split_layers"] == 0
    assert extra["streams"]
    assert answer["slots"] <= 20
    assert 0 < answer["hit_rate"] < 1
    requests = 6 * extra["model"]["experts_per_token"]
    expert_nbytes = extra["model"]["expert_bytes"] / extra["model"]["experts"]
    misses = (1 - answer["hit_rate"]) * requests
    assert answer["bytes_read_per_token"] == pytest.approx(misses * expert_nbytes / 6)
    reading = answer["bytes_read_per_token"] / answer["device_bytes_per_second"]
    computing = 1 / answer["resident_tokens_per_second"]
    assert answer["limit_tokens_per_second"] == pytest.approx(1 / max(reading, computing))
    assert answer["fraction_of_limit"] == pytest.approx(
        answer["tokens_per_second"] / answer["limit_tokens_per_second"]
    )
    assert len(extra["token_seconds"]) == 6
    assert math.fsum(extra["token_seconds"]) == pytest.approx(6 / answer["tokens_per_second"])


@pytest.mark.skipif(library() is None, reason="nothing is compiled here")
def test_the_callback_may_be_compiled_and_says_so(bench: Bench, zoo_model: ZooModel) -> None:
    arguments = (str(zoo_model("qwen3moe")), *SHORT, "--slots", "20", "--policy", "lru", "--json")
    compiled = answer_of(bench(*arguments))
    in_python = answer_of(bench(*arguments, "--no-compiled"))
    assert compiled["extra"]["callback"] == "compiled"
    assert in_python["extra"]["callback"] == "Python"
    assert compiled["logits_sha256"] == in_python["logits_sha256"]
    assert compiled["hit_rate"] == in_python["hit_rate"]


def test_streamed_and_resident_runs_end_in_the_same_logits(
    bench: Bench, zoo_model: ZooModel
) -> None:
    model = str(zoo_model("deepseek2"))
    resident = answer_of(bench(model, *SHORT, "--json"))
    assert (resident["hit_rate"], resident["bytes_read_per_token"]) == (1.0, 0.0)
    assert resident["limit_tokens_per_second"] == resident["resident_tokens_per_second"]
    streamed = answer_of(bench(model, *SHORT, "--slots", "12", "--json"))
    assert streamed["hit_rate"] < 1
    assert streamed["logits_sha256"] == resident["logits_sha256"]


@pytest.mark.parametrize("name", ["mmap", "ram"])
def test_a_peer_is_measured_in_turn_and_gives_the_same_logits(
    name: str, bench: Bench, zoo_model: ZooModel, unexplained: Callable[[Any], list[str]]
) -> None:
    arguments = ("--slots", "20", "--peer", name, "--peer-tokens", "3", "--rounds", "2", "--json")
    answer = answer_of(bench(str(zoo_model("qwen3moe")), *SHORT, *arguments))
    assert set(answer) == KEYS | {"extra", "peer", "ratio"}
    assert unexplained(answer) == []
    peer = answer["peer"]
    assert (peer["name"], peer["tokens"]) == (name, 3)
    assert len(peer["rounds"]) == len(answer["extra"]["rounds"]) == 2
    assert [len(r["token_seconds"]) for r in peer["rounds"]] == [3, 3]
    assert answer["ratio"] == answer["tokens_per_second"] / peer["tokens_per_second"]
    # Repacked weights may round differently; the file's own layout may not.
    assert peer["repacked"] == (name == "mmap")
    assert peer["logits_equal"] is (None if peer["repacked"] else True)
    assert answer["extra"]["logits_sha256_after"]["3"] != answer["logits_sha256"]


def test_people_get_a_table_and_a_sentence(bench: Bench, zoo_model: ZooModel) -> None:
    done = bench(str(zoo_model("qwen3moe")), *SHORT, "--slots", "20")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert any(line.startswith("decode ") and line.endswith(" tok/s") for line in lines)
    assert any(line.startswith("reached ") and line.endswith("%") for line in lines)
    assert lines[-1].startswith("A token takes ")


def test_too_few_slots_leave_the_limit_unknown(bench: Bench, zoo_model: ZooModel) -> None:
    model = str(zoo_model("qwen3moe"))
    answer = answer_of(bench(model, *SHORT, "--slots", "2", "--json"))
    unknown = ("resident_tokens_per_second", "limit_tokens_per_second", "fraction_of_limit")
    assert [answer[key] for key in unknown] == [None] * 3
    assert answer["extra"]["resident_unknown"].startswith("the slots hold fewer experts")


@pytest.mark.parametrize("more", [(), ("--rounds", "2")], ids=["here", "in a child"])
def test_an_error_is_one_line_and_no_json(
    more: tuple[str, ...], bench: Bench, zoo_model: ZooModel
) -> None:
    model = str(zoo_model("qwen3moe"))
    done = bench(model, "--context", "16", "--tokens", "20", "--json", *more)
    assert (done.returncode, done.stdout) == (1, "")
    assert "do not fit into a context of" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_dense_model_is_measured_without_rows_about_experts(
    bench: Bench, zoo_model: ZooModel
) -> None:
    model = str(zoo_model("llama"))
    answer = answer_of(bench(model, *SHORT, "--json"))
    assert set(answer) == KEYS | {"extra"}
    assert (answer["slots"], answer["extra"]["model"]["experts"]) == (0, 0)
    about_experts = ("hit_rate", "bytes_read_per_token", "stall_seconds_per_token")
    assert [answer[key] for key in (*about_experts, "device_bytes_per_second")] == [None] * 4
    done = bench(model, *SHORT)
    assert (done.returncode, done.stderr) == (0, "")
    assert "expert" not in done.stdout
    assert done.stdout.splitlines()[-1].startswith("A dense model")


def test_prefill_in_passes_is_reported_with_its_cost(bench: Bench, zoo_model: ZooModel) -> None:
    arguments = (str(zoo_model("qwen3moe")), *SHORT, "--prompt-tokens", "40", "--slots", "4")
    extra = answer_of(bench(*arguments, "--json"))["extra"]
    assert extra["prefill_chunk_tokens"] >= 40
    assert extra["prefill_split_layers"] >= 2
    assert extra["prefill_split_seconds"] > 0
    table = bench(*arguments).stdout
    assert f"{extra['prefill_split_layers']} layers" in table


def test_the_type_of_the_cache_reaches_both_sides(bench: Bench, zoo_model: ZooModel) -> None:
    model = str(zoo_model("qwen3moe"))
    hashes = set()
    for kv_type in ("f16", "q8_0"):
        peer = ("--peer", "ram", "--peer-tokens", "3", "--kv-type", kv_type)
        answer = answer_of(bench(model, *SHORT, "--slots", "20", *peer, "--json"))
        assert answer["peer"]["logits_equal"] is True
        assert answer["extra"]["plan"]["kv_type"] == kv_type
        hashes.add(answer["logits_sha256"])
    assert len(hashes) == 2


@pytest.mark.parametrize(("name", "rewinds"), [("qwen3next", True), ("deepseek4", False)])
def test_a_recurrent_model_takes_its_last_token_back_to_a_mark(
    name: str, rewinds: bool, bench: Bench, zoo_model: ZooModel
) -> None:
    answer = answer_of(bench(str(zoo_model(name)), *SHORT, "--json"))
    assert (answer["resident_tokens_per_second"] is not None) == rewinds
    reason = None if rewinds else "this model cannot take one token back"
    assert answer["extra"]["resident_unknown"] == reason
    assert len(answer["extra"]["resident_token_seconds"]) == (16 if rewinds else 0)
