"""The measuring logic of benchmarks: streams, limits, rounds, processes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localmoe.bench.device import measure_device
from localmoe.bench.forced import force, percentile
from localmoe.bench.limit import Limit
from localmoe.bench.process import run_child
from localmoe.bench.request import DecodeRequest, PeerRequest
from localmoe.bench.rounds import KILLED, alternate, peer_for
from localmoe.bench.tokens import token_stream
from localmoe.cli.bench_table import explanation
from localmoe.errors import EngineError, LocalMoeError
from localmoe.settings import Settings
from localmoe.weights.gguf import build_catalog
from localmoe.weights.shards import read_shards

Side = DecodeRequest | PeerRequest


def test_token_stream_is_fixed_and_skewed() -> None:
    stream = token_stream(500, 8192)
    assert stream[:8] == token_stream(8, 8192)[:8]
    assert all(2 < token < 8192 for token in stream)
    assert stream.count(3) > 5 * stream.count(40)
    # Pinned: figures of different versions can only be compared on the same stream.
    assert hashlib.sha256(np.array(stream, "<i4").tobytes()).hexdigest()[:16] == STREAM_SHA256


STREAM_SHA256 = "3b6f7fe74d8363a1"


def test_token_stream_needs_a_vocabulary() -> None:
    assert set(token_stream(20, 4)) == {3}
    with pytest.raises(ValueError, match="vocabulary of 3"):
        token_stream(1, 3)


def test_force_feeds_one_token_at_a_time_and_hashes_what_was_asked_for() -> None:
    fed: list[list[int]] = []

    def decode(tokens: list[int]) -> Any:
        fed.append(tokens)
        return np.full((1, 4), len(fed), np.float32)

    told: list[int] = []
    forced = force(decode, [5, 6, 7], hash_after=(2,), on_token=told.append)
    assert fed == [[5], [6], [7]]
    assert told == [1, 2, 3]
    expected = {n: hashlib.sha256(np.full(4, n, np.float32).tobytes()).hexdigest() for n in (2, 3)}
    assert forced.logits_sha256 == expected
    assert len(forced.token_seconds) == 3
    assert forced.tokens_per_second == pytest.approx(3 / sum(forced.token_seconds))


def test_percentile_is_a_sample() -> None:
    samples = [0.4, 0.1, 0.3, 0.2]
    assert [percentile(samples, share) for share in (0, 0.5, 0.95, 1)] == [0.1, 0.3, 0.4, 0.4]


def test_the_table_says_when_the_limit_is_unknown() -> None:
    extra = {"resident_unknown": "the reason", "model": {"experts": 4}}
    answer = {"resident_tokens_per_second": None, "extra": extra}
    assert explanation(answer) == "The limit is unknown: the reason."


def test_limit_is_the_slower_of_reading_and_computing() -> None:
    assert Limit(0.02, 0.05).tokens_per_second == pytest.approx(20)
    assert Limit(0.1, 0.05).tokens_per_second == pytest.approx(10)
    assert Limit(0.1, 0.05).fraction(5) == pytest.approx(0.5)
    assert Limit(0.1, None).tokens_per_second is None
    assert Limit(0.1, None).fraction(5) is None


@pytest.mark.parametrize("name", ["qwen3moe", "qwen3moe-scaled", "gpt-oss"])
def test_device_is_read_in_the_sizes_of_its_parts(
    name: str, zoo_model: Callable[[str], Path]
) -> None:
    catalog = build_catalog(read_shards(zoo_model(name)))
    speed = measure_device(catalog, workers=3, seconds=0.02)
    sizes = {part.expert_nbytes for layer in catalog.layers for part in layer.parts}
    assert speed.reads >= 3
    assert min(sizes) <= speed.mean_read_nbytes <= max(sizes)
    assert speed.bytes_per_second == pytest.approx(speed.read_bytes / speed.seconds)


def ours(speed: float, *, streams: bool = True) -> dict[str, Any]:
    return {
        "tokens_per_second": speed,
        "load_seconds": 1.0,
        "peak_rss_bytes": 1,
        "logits_sha256": "end",
        "extra": {
            "streams": streams,
            "threads": 2,
            "plan": {"context_tokens": 256, "prefill_chunk_tokens": 64},
            "logits_sha256_after": {"8": "eight", "64": "end"},
        },
    }


def theirs(speed: float, **changes: Any) -> dict[str, Any]:
    values = {"tokens_per_second": speed, "tokens": 8, "repacked": False, "logits_sha256": "eight"}
    return {**values, **changes}


class Script:
    """Answers what was prepared, and notes who asked."""

    def __init__(self, *answers: dict[str, Any] | None) -> None:
        self.answers, self.asked = list(answers), list[Side]()

    def __call__(self, request: Side) -> dict[str, Any] | None:
        self.asked.append(request)
        return self.answers.pop(0)


REQUEST = DecodeRequest("model.gguf", Settings(memory_bytes=1 << 30, experts_used=6))


def against(script: Script, rounds: int = 1) -> dict[str, Any]:
    return alternate(
        REQUEST, script, rounds, lambda answer: peer_for(REQUEST, "mmap", None, answer)
    )


def test_sides_alternate_and_the_median_round_is_shown() -> None:
    script = Script(ours(9), theirs(1), ours(12), theirs(3), ours(10), theirs(2))
    answer = against(script, rounds=3)
    assert [type(request) for request in script.asked] == [DecodeRequest, PeerRequest] * 3
    assert (answer["tokens_per_second"], answer["peer"]["tokens_per_second"]) == (10, 2)
    assert answer["ratio"] == 5
    assert [r["tokens_per_second"] for r in answer["extra"]["rounds"]] == [9, 12, 10]
    assert [r["tokens_per_second"] for r in answer["peer"]["rounds"]] == [1, 3, 2]
    assert answer["peer"]["logits_equal"] is True


def test_of_two_rounds_the_slower_is_shown() -> None:
    assert alternate(REQUEST, Script(ours(9), ours(7)), rounds=2)["tokens_per_second"] == 7


def test_other_logits_of_the_peer_are_noticed() -> None:
    assert against(Script(ours(9), theirs(1, logits_sha256="x")))["peer"]["logits_equal"] is False
    repacked = theirs(1, logits_sha256="x", repacked=True)
    assert against(Script(ours(9), repacked))["peer"]["logits_equal"] is None


def test_a_killed_peer_is_a_result() -> None:
    answer = against(Script(ours(9), None, ours(9), theirs(2)), rounds=2)
    assert answer["peer"]["rounds"][0] == {"error": KILLED}
    assert answer["ratio"] == 4.5
    answer = against(Script(ours(9), None))
    assert answer["peer"]["error"] == KILLED
    assert answer["peer"]["tokens_per_second"] is answer["ratio"] is None


def test_being_killed_ourselves_is_an_error() -> None:
    with pytest.raises(EngineError, match=KILLED):
        against(Script(None))


def test_a_peer_gets_our_task() -> None:
    peer = peer_for(REQUEST, "mmap", None, ours(9))
    assert peer == PeerRequest("model.gguf", "mmap", 8, 32, 256, 64, 2, 6)
    assert peer_for(REQUEST, "mmap", None, ours(9, streams=False)).tokens == 64
    assert peer_for(REQUEST, "ram", None, ours(9)).tokens == 64
    assert peer_for(REQUEST, "mmap", 20, ours(9)).tokens == 20
    assert peer_for(REQUEST, "mmap", 100, ours(9)).tokens == 64


def test_requests_survive_the_way_to_a_child() -> None:
    peer = peer_for(REQUEST, "ram", 4, ours(9))
    assert DecodeRequest.from_json(REQUEST.to_json()) == REQUEST
    assert PeerRequest.from_json(peer.to_json()) == peer


def child(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_a_child_answers_with_json() -> None:
    code = "import json, sys; print(json.dumps({'kind': sys.argv[1], **json.loads(sys.argv[2])}))"
    answer = run_child(child(code), REQUEST, os.environ)
    assert answer is not None
    assert answer["kind"] == "decode"
    assert answer["model"] == "model.gguf"


def test_a_killed_child_is_no_crash_of_the_parent() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert run_child(child(code), REQUEST, os.environ) is None


def test_errors_of_a_child_reach_the_parent() -> None:
    with pytest.raises(LocalMoeError, match="too small"):
        run_child(child('print(\'{"error": "too small"}\')'), REQUEST, os.environ)
    with pytest.raises(EngineError, match="status 3: the reason"):
        run_child(
            child("import sys; sys.stderr.write('the reason\\n'); sys.exit(3)"), REQUEST, os.environ
        )


@pytest.mark.parametrize(
    ("given", "peer_spins", "ours_spin"),
    [
        ({}, "300000", None),
        ({"GOMP_SPINCOUNT": "7"}, "7", "7"),
        ({"OMP_WAIT_POLICY": "passive"}, None, None),
    ],
)
def test_each_side_waits_in_its_own_way(
    given: dict[str, str], peer_spins: str | None, ours_spin: str | None
) -> None:
    code = "import json, os; print(json.dumps({'spins': os.environ.get('GOMP_SPINCOUNT')}))"
    rest = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP_", "OMP_"))}
    peer = peer_for(REQUEST, "mmap", 4, ours(9))
    assert run_child(child(code), peer, {**rest, **given}) == {"spins": peer_spins}
    assert run_child(child(code), REQUEST, {**rest, **given}) == {"spins": ours_spin}


def test_the_parent_of_a_comparison_stays_small() -> None:
    code = "import sys, localmoe.cli.bench; print(*{'numpy', 'llama_cpp'} & set(sys.modules))"
    done = subprocess.run(child(code), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
