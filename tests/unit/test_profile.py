"""What is remembered of earlier runs: a file that nobody can break, and that breaks nobody."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from localmoe.cache.policies import Uses
from localmoe.cache.profile import FORMAT, Profile, profile_name
from localmoe.weights.catalog import Catalog, ExpertPart, Extent, MoeLayer

CATALOG = Catalog(
    architecture="qwen3moe",
    paths=("/models/a.gguf",),
    resident=(),
    layers=tuple(
        MoeLayer(n, 4, 2, (ExpertPart(f"{n}.up", Extent("/models/a.gguf", n * 400, 400), 100),))
        for n in (1, 3)
    ),
)


def run(tokens: float, *counts: float) -> dict[int, Uses]:
    return {n: Uses(tokens, np.array(counts)) for n in (1, 3)}


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    return Profile(tmp_path / "state" / "profiles", CATALOG)


def put(profile: Profile, data: bytes) -> None:
    profile.path.parent.mkdir(parents=True, exist_ok=True)
    profile.path.write_bytes(data)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_without_a_file_there_is_nothing_and_no_warning(
    profile: Profile, caplog: pytest.LogCaptureFixture
) -> None:
    assert profile.read() == {}
    assert warnings(caplog) == []


def test_what_a_run_used_is_read_by_the_next(profile: Profile) -> None:
    profile.add(run(10, 10, 5, 0, 1))
    assert {n: rates.tolist() for n, rates in profile.read().items()} == {
        1: [1, 0.5, 0, 0.1],
        3: [1, 0.5, 0, 0.1],
    }


def test_runs_add_up_and_long_histories_fade(profile: Profile) -> None:
    profile.add(run(10, 10, 0, 0, 0))
    profile.add(run(10, 0, 10, 0, 0))
    assert profile.read()[1].tolist() == [0.5, 0.5, 0, 0]
    profile.add(run(1e6, 0, 0, 1e6, 0))
    profile.add(run(8192, 0, 0, 0, 8192))
    assert profile.read()[1].tolist() == pytest.approx([0, 0, 0.5, 0.5], abs=1e-4)


def test_a_run_without_tokens_writes_nothing(profile: Profile) -> None:
    profile.add(run(0, 0, 0, 0, 0))
    profile.add({})
    assert not profile.path.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "olmoe"},
        {"paths": ("/models/b.gguf",)},
        {"layers": CATALOG.layers[:1]},
        {"layers": tuple(replace(layer, n_experts_used=1) for layer in CATALOG.layers)},
    ],
)
def test_other_models_have_other_files(change: dict[str, object]) -> None:
    assert profile_name(replace(CATALOG, **change)) != profile_name(CATALOG)  # type: ignore[arg-type]


def test_a_model_that_moved_is_the_same() -> None:
    moved = replace(CATALOG, paths=("/elsewhere/a.gguf",))
    assert profile_name(moved) == profile_name(CATALOG)


def good() -> dict[str, object]:
    layer = {"tokens": 10, "uses": [1, 2, 3, 4.5]}
    return {"format": FORMAT, "layers": {"1": layer, "3": layer}}


def with_layer(**values: object) -> dict[str, object]:
    return {
        "format": FORMAT,
        "layers": {"1": {"tokens": 10, "uses": [1, 2, 3, 4], **values}, "3": values},
    }


HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"\x80\x04\x95",
    "cut off": json.dumps(good()).encode()[:-5],
    "not UTF-8": b'{"format": "\xff"}',
    "a list": b"[]",
    "another format": json.dumps({**good(), "format": 2}).encode(),
    "no layers": json.dumps({"format": FORMAT}).encode(),
    "other layers": json.dumps({**good(), "layers": {"1": {}}}).encode(),
    "a layer is a list": json.dumps({"format": FORMAT, "layers": {"1": [], "3": []}}).encode(),
    "too few experts": json.dumps(with_layer(uses=[1, 2, 3])).encode(),
    "negative": json.dumps(with_layer(uses=[1, 2, 3, -1])).encode(),
    "NaN": json.dumps(with_layer(uses=[1, 2, 3, float("nan")])).encode(),
    "infinite": json.dumps(with_layer(tokens=float("inf"))).encode(),
    "huge": json.dumps(with_layer(tokens=10**400)).encode(),
    "text": json.dumps(with_layer(uses=["1", 2, 3, 4])).encode(),
    "true": json.dumps(with_layer(tokens=True)).encode(),
    "more uses than tokens": json.dumps(with_layer(uses=[11, 2, 3, 4])).encode(),
    "deep": b"[" * 100_000,
    "many digits": b'{"format": ' + b"9" * 5000 + b"}",
    "too large": b" " * ((16 << 20) + 1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_cannot_be_right_is_one_warning_and_replaced(
    profile: Profile, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    put(profile, HOSTILE[name])
    assert profile.read() == {}
    (message,) = warnings(caplog)
    assert str(profile.path) in message
    assert "starting cold" in message
    profile.add(run(10, 1, 2, 3, 4))
    assert profile.read()[3].tolist() == [0.1, 0.2, 0.3, 0.4]
    assert len(warnings(caplog)) == 1


def test_the_good_one_of_these_is_read(profile: Profile) -> None:
    put(profile, json.dumps(good()).encode())
    assert profile.read()[1].tolist() == [0.1, 0.2, 0.3, 0.45]


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_any_changed_byte_gives_rates_or_a_warning(
    profile: Profile, caplog: pytest.LogCaptureFixture, at: int, byte: int
) -> None:
    data = bytearray(json.dumps(good()).encode())
    data[at % len(data)] = byte
    put(profile, bytes(data))
    caplog.clear()
    rates = profile.read()
    assert (rates == {}) == (len(warnings(caplog)) == 1)
    assert all(0 <= share <= 1 for shares in rates.values() for share in shares)


def test_a_folder_in_its_place_is_a_warning(
    profile: Profile, caplog: pytest.LogCaptureFixture
) -> None:
    profile.path.mkdir(parents=True)
    assert profile.read() == {}
    profile.add(run(10, 1, 2, 3, 4))
    assert [("starts cold" in m, "starting cold" in m) for m in warnings(caplog)] == [
        (False, True),
        (True, False),
    ]
    assert os.listdir(profile.path.parent) == [profile.path.name]


def test_a_pipe_in_its_place_does_not_block(profile: Profile) -> None:
    profile.path.parent.mkdir(parents=True)
    os.mkfifo(profile.path)
    assert profile.read() == {}


def test_a_folder_that_cannot_be_made_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    profile = Profile(tmp_path / "file" / "profiles", CATALOG)
    assert profile.read() == {}
    profile.add(run(10, 1, 2, 3, 4))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_write_that_fails_leaves_the_file_before(
    profile: Profile, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile.add(run(10, 10, 5, 0, 1))
    before = profile.path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        profile.add(run(10, 0, 0, 10, 10))
    assert profile.path.read_bytes() == before
    assert os.listdir(profile.path.parent) == [profile.path.name]
    assert len(warnings(caplog)) == 1


def test_runs_that_end_together_leave_a_whole_file(
    profile: Profile, caplog: pytest.LogCaptureFixture
) -> None:
    def end_often(work: Callable[[], object]) -> None:
        for _ in range(30):
            work()

    writers = [
        threading.Thread(target=end_often, args=(lambda: profile.add(run(10, 1, 2, 3, 4)),))
        for _ in range(3)
    ]
    for thread in writers:
        thread.start()
    end_often(lambda: profile.read())
    for thread in writers:
        thread.join()
    assert profile.read()[1].tolist() == [0.1, 0.2, 0.3, 0.4]
    assert warnings(caplog) == []
