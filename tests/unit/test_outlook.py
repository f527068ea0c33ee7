"""Speeds that are estimated: formulas, bounds, and what would help."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localmoe.errors import SettingsError
from localmoe.planning.advice import Smaller, advise
from localmoe.planning.graphics import with_graphics
from localmoe.planning.hit_rate import HitRate, default_hit_rate
from localmoe.planning.machines import MACHINES, Graphics, Machine, machine_named, read_machines
from localmoe.planning.outlook import Situation
from localmoe.planning.pace import chunk_of, decode_seconds, prefill_seconds
from localmoe.planning.plan import MemoryPlan
from localmoe.planning.rates import Rates
from localmoe.planning.read_rates import ReadPoint, ReadRates
from localmoe.planning.token_work import TokenWork
from localmoe.weights.catalog import Catalog, ExpertPart, Extent, MoeLayer, ResidentTensor

GB = 10**9
LAYERS, EXPERTS, USED, EXPERT_NBYTES = 40, 64, 4, 10_000_000
WORK = TokenWork(
    resident={"Q4_K": 3 * GB, "Q6_K": 1 * GB},
    routed={"Q4_K": LAYERS * USED * EXPERT_NBYTES},
    layers=LAYERS,
    moe_layers=LAYERS,
    experts_used=USED,
)
RATES = Rates(5 * GB, 100 * GB, 1e12, read_latency_seconds=1e-4)


def catalog() -> Catalog:
    layers = tuple(
        MoeLayer(
            layer,
            EXPERTS,
            USED,
            (ExpertPart("p", Extent("f", 0, EXPERTS * EXPERT_NBYTES), EXPERT_NBYTES),),
        )
        for layer in range(LAYERS)
    )
    resident = (ResidentTensor("r", Extent("f", 0, 4 * GB)),)
    return Catalog("qwen3moe", ("f",), resident, layers)


def situation(slots: int = LAYERS * EXPERTS // 4, rates: Rates = RATES) -> Situation:
    plan = MemoryPlan(
        budget_bytes=12 * GB,
        base_bytes=GB // 2,
        resident_bytes=4 * GB,
        kv_bytes=GB,
        compute_bytes=GB // 10,
        slot_bytes=slots * EXPERT_NBYTES,
        slots=slots,
        experts=LAYERS * EXPERTS,
        context_tokens=4096,
        prefill_chunk_tokens=512,
    )
    every = LAYERS * EXPERTS
    return Situation(
        catalog(), WORK, plan, (rates, rates, rates), lambda n: default_hit_rate(n / every)
    )


def test_a_token_whose_experts_are_all_there_takes_its_products_alone() -> None:
    seconds = decode_seconds(WORK, 1.0, 0.0, RATES)
    nbytes = 4 * GB + LAYERS * USED * EXPERT_NBYTES
    assert seconds.reading == 0
    assert seconds.expected == seconds.computing == pytest.approx(nbytes / (100 * GB))


def test_a_type_that_was_measured_has_its_own_rate() -> None:
    measured = replace(RATES, decode={"Q6_K": 10 * GB})
    slower = decode_seconds(WORK, 1.0, 0.0, measured).computing
    assert slower == pytest.approx(decode_seconds(WORK, 1.0, 0.0, RATES).computing + 0.1 - 0.01)


def test_rows_and_query_heads_take_their_time_where_that_was_measured() -> None:
    work = replace(WORK, resident_rows=2_000_000, routed_rows=1_000_000, queries_per_key=8.0)
    plain = decode_seconds(work, 1.0, GB, RATES).expected
    assert plain == decode_seconds(WORK, 1.0, GB, RATES).expected
    rows = replace(RATES, row_seconds=5e-9)
    assert decode_seconds(work, 1.0, GB, rows).expected - plain == pytest.approx(0.015)
    heads = replace(RATES, kv_bytes_per_second=20.0 * GB)
    assert decode_seconds(work, 1.0, GB, heads).expected - plain == pytest.approx(8 / 20 - 1 / 100)


@given(
    hit_rate=st.floats(0, 1),
    drive=st.floats(1e8, 1e11),
    memory=st.floats(1e9, 1e12),
    kv=st.floats(0, 1e10),
)
def test_what_is_expected_lies_between_all_and_nothing_at_once(
    hit_rate: float, drive: float, memory: float, kv: float
) -> None:
    rates = replace(
        RATES,
        read_bytes_per_second=drive,
        memory_bytes_per_second=memory,
        read_latency_seconds=0.0,
    )
    seconds = decode_seconds(WORK, hit_rate, kv, rates)
    assert seconds.fast <= seconds.expected * (1 + 1e-9)
    assert seconds.expected <= seconds.slow * (1 + 1e-9)


def test_small_reads_are_slower_where_that_was_measured() -> None:
    part = EXPERT_NBYTES / 3
    points = [ReadPoint(1 << 16, 1, GB / 10), ReadPoint(int(part), 1, 5 * GB)]
    measured = replace(RATES, reads=ReadRates(tuple(points)))
    large = decode_seconds(WORK, 0.5, 0.0, measured)
    without_waits = replace(RATES, read_latency_seconds=0.0)
    assert large.reading == pytest.approx(decode_seconds(WORK, 0.5, 0.0, without_waits).reading)
    small = replace(WORK, routed={"Q4_K": LAYERS * USED * 30_000})
    seconds = 0.5 * LAYERS * USED * 30_000 / (GB / 10) * (1 << 16) / 10_000
    assert decode_seconds(small, 0.5, 0.0, measured).reading == pytest.approx(seconds, rel=1e-3)


def test_streaming_costs_where_experts_are_streamed_and_only_there() -> None:
    costs = {"streamed_layer_seconds": 1e-3, "streamed_expert_seconds": 1e-4}
    rates = replace(RATES, **costs, missed_layer_seconds=1e-2)
    few = 1 - 0.9**USED
    for hit_rate, more in ((1.0, 0.0), (0.9, LAYERS * (1e-3 + USED * 1e-4 + few * 1e-2))):
        before, after = (decode_seconds(WORK, hit_rate, 0.0, each) for each in (RATES, rates))
        assert after.computing - before.computing == pytest.approx(more)
        assert after.expected - before.expected == pytest.approx(more)


@given(few=st.integers(200, 2560), more=st.integers(0, 2560))
def test_more_slots_never_slow_down(few: int, more: int) -> None:
    less = situation(few)
    grown = less.with_slot_bytes((few + more) * EXPERT_NBYTES)
    for speed in ("low", "expected", "high"):
        before, after = getattr(less.decode(), speed), getattr(grown.decode(), speed)
        assert after >= before * (1 - 1e-9)
    assert grown.prefill().expected >= less.prefill().expected * (1 - 1e-9)
    assert grown.plan.slots <= grown.plan.experts


def test_a_span_is_in_order_and_a_resident_model_reads_nothing() -> None:
    streamed, resident = situation().decode(), situation().with_slot_bytes(math.inf)
    assert streamed.low < streamed.expected < streamed.high
    assert not resident.plan.streams
    assert resident.read_bytes_per_token == 0
    assert resident.hits == HitRate(1.0, 1.0, 1.0, "all experts are in memory")
    assert resident.decode().expected > streamed.expected


def test_a_long_chunk_reads_each_expert_once() -> None:
    whole = float(LAYERS * EXPERTS * EXPERT_NBYTES)
    assert chunk_of(1, EXPERTS, USED, whole, 0.0).read_nbytes == pytest.approx(whole / 16)
    assert chunk_of(4096, EXPERTS, USED, whole, 0.0).read_nbytes == pytest.approx(whole)
    assert chunk_of(4096, EXPERTS, USED, whole, 0.75).read_nbytes == pytest.approx(whole / 4)
    assert chunk_of(16, 0, 0, 0.0, 1.0).read_nbytes == 0
    long, short = (
        prefill_seconds(WORK, chunk_of(n, EXPERTS, USED, whole, 0.0), RATES) for n in (2048, 64)
    )
    assert long.reading < short.reading / 4
    assert long.computing == short.computing
    assert long.fast <= long.expected <= long.slow


def test_chance_is_the_least_that_is_expected() -> None:
    hits = default_hit_rate(0.25)
    assert hits.low == 0.25
    assert hits.low < hits.expected < hits.high < 1
    assert "25%" in hits.source
    assert default_hit_rate(1.0).low == default_hit_rate(1.0).high == 1.0


def test_advice_comes_with_the_largest_gain_first_and_leaves_out_what_does_not_help() -> None:
    now = situation()
    smaller = (Smaller("Q2_K", 2 * GB, 13 * GB), Smaller("BIG", 4 * GB, 25_600_000_000))
    found = advise(now, smaller)
    gains = [advice.gain for advice in found]
    assert gains == sorted(gains, reverse=True)
    assert all(gain >= 1.05 for gain in gains)
    changes = [advice.change for advice in found]
    assert any("memory for all experts" in change for change in changes)
    assert any("--mirror" in change for change in changes)
    assert any("Q2_K" in change for change in changes)
    assert not any("BIG" in change for change in changes)
    resident = now.with_slot_bytes(math.inf)
    assert [a.change for a in advise(resident, smaller)] == ["Q2_K instead"]


def test_a_gpu_of_its_own_holds_what_every_token_uses() -> None:
    pc = replace(MACHINES["rtx-4090-64"], graphics=Graphics(24 * GB, 1000 * GB, 1e14))
    now = replace(situation(), views=pc.views())
    with_gpu = with_graphics(now, pc)
    assert with_gpu is not None
    assert with_gpu.plan.slots > now.plan.slots
    assert with_gpu.decode().expected > now.decode().expected
    spark = MACHINES["dgx-spark"]
    shared = with_graphics(replace(now, views=spark.views()), spark)
    assert shared is not None
    assert shared.plan == now.plan
    assert with_graphics(now, replace(pc, graphics=None)) is None


def test_machines_are_found_by_name_and_near_ones_suggested() -> None:
    own = {"mine": Machine("mine", "Mine", 8 * GB, 1e10, 1e9, 1e11)}
    assert machine_named("mine", own).title == "Mine"
    assert machine_named("dgx-spark", {}).usable_bytes < 128 << 30
    with pytest.raises(SettingsError, match="Did you mean strix-halo-128"):
        machine_named("strix-halo", {})
    with pytest.raises(SettingsError, match="Known: this, dgx-spark"):
        machine_named("zzzz", {})


GOOD = """
[box]
title = "A box"
memory = "64GiB"
memory_per_second = "80GB"
read_per_second = "6GB"
"""


def test_a_machine_is_described_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "machines.toml"
    path.write_text(GOOD + "operations_per_second = 2e12\n")
    box = read_machines(path)["box"]
    assert (box.title, box.memory_bytes, box.read_bytes_per_second) == ("A box", 64 << 30, 6e9)
    assert box.operations_per_second == 2e12
    path.write_text(GOOD)
    assert read_machines(path)["box"].operations_per_second == 8e11


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[box", "not valid TOML"),
        ("box = 3", r"should be a table \(\[box\]\)"),
        ("[box]\nmemory = 3", "memory should be a size in quotes"),
        (GOOD + "speed = 3", "has speed; known are"),
        (GOOD.replace("64GiB", "lots"), "memory: 'lots' is not a size"),
        (GOOD.replace("64GiB", "-4GiB"), "memory: '-4GiB' is not a size"),
        (GOOD + 'operations_per_second = "many"', "should be a number above 0"),
        (GOOD + "operations_per_second = nan", "should be a number above 0"),
        (GOOD.replace('"A box"', "3"), "title should be text"),
        ("\xff", "not valid TOML"),
    ],
)
def test_a_wrong_description_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "machines.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SettingsError, match=reason):
        read_machines(path)


def test_a_file_that_is_not_there_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot read"):
        read_machines(tmp_path / "none.toml")
