"""The lab beside its replay: figures that can be worked out in the head; pages that are whole."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest

from localmoe.cache.policies import Lru
from localmoe.errors import SettingsError
from localmoe.lab.acting import measure_acting
from localmoe.lab.devices import DEVICES, Device, device_named
from localmoe.lab.layout import shared_layout
from localmoe.lab.locality import busiest_share, popularity, reuse_gaps
from localmoe.lab.replay import HIT, replay, without_repeats
from localmoe.lab.report import write_report
from localmoe.lab.scaling import recency_places, scaled
from localmoe.lab.shapes import Shape, shape_named
from localmoe.lab.sizes import parse_policies, parse_slots
from localmoe.lab.speed import Machine
from localmoe.lab.study import StudyRequest, study
from localmoe.prediction.trace import Trace, made_up_layer

PLAIN = Device("plain", bytes_per_second=100.0, latency_seconds=0.5, depth=6,
               memory_bytes_per_second=1000.0)  # fmt: skip


def trace_of(rows: list[list[list[int]]], n_experts: int = 4, nbytes: int = 100) -> Trace:
    routing = np.array(rows, np.int32)
    layers = tuple(
        made_up_layer(n, n_experts, routing.shape[2], (nbytes,)) for n in range(routing.shape[1])
    )
    numbers = tuple(range(len(layers)))
    return Trace(numbers, n_experts, routing, moe_layers=layers)


def random_trace(n_tokens: int = 400, n_experts: int = 16, used: int = 2) -> Trace:
    rng = np.random.default_rng(2)
    return trace_of(
        [[rng.permutation(n_experts)[:used].tolist() for _ in range(2)] for _ in range(n_tokens)],
        n_experts,
    )


# --- what a trace looks like ----------------------------------------------------------------------


def test_gaps_are_counted_in_tokens_of_the_layer() -> None:
    trace = trace_of([[[0]], [[0]], [[1]], [[2]], [[0]], [[1]]])
    # First uses: 0, 1, 2. Expert 0 again after 1, then after 3; expert 1 after 3.
    assert reuse_gaps(trace) == {"1": 1 / 6, "2": 0, "3-4": 2 / 6, "first": 3 / 6}


def test_popularity_is_a_share_of_tokens() -> None:
    trace = trace_of([[[0]], [[0]], [[1]], [[0]]])
    assert popularity(trace).tolist() == [[0.75, 0.25, 0, 0]]
    assert busiest_share(popularity(trace)) == 0.75


# --- speed on a described device ------------------------------------------------------------------


def test_a_routed_layer_takes_the_longer_of_reading_and_computing() -> None:
    assert PLAIN.read_seconds(0, 100) == 0
    assert PLAIN.read_seconds(2, 100) == 0.5 + 2
    assert PLAIN.read_seconds(3, 100) == 2 * 0.5 + 3  # nine parts, six at once
    machine = Machine(PLAIN, 100, n_experts_used=2, n_layers=2, resident_nbytes=4000)
    assert (machine.before_seconds, machine.experts_seconds) == (2.0, 0.2)
    speed = machine.tokens_per_second(np.array([[0, 2], [0, 0]]))
    assert speed == pytest.approx(2 / (2.2 + (2 + 2.5) + 2.2 + 2.2))
    told = Machine(PLAIN, 100, 2, 2, 4000, token_seconds=4.0)
    assert (told.before_seconds, told.experts_seconds) == (1.0, 1.0)


def test_guesses_that_are_right_help_only_an_idle_device() -> None:
    rng = np.random.default_rng(1)
    rows = [[rng.permutation(8)[:2].tolist() for _ in range(3)] for _ in range(80)]
    trace = trace_of(rows, 8)
    wrong = (trace.routing + 1) % 8
    guessed = Trace(
        trace.layers, 8, trace.routing, {"wrong": wrong, "right": trace.routing},
        moe_layers=trace.moe_layers,
    )  # fmt: skip
    idle = measure_acting(guessed, Machine(PLAIN, 100, 2, 3, resident_nbytes=4500), 12)
    assert idle["right"]["speed_ratio"] == idle["perfect"]["speed_ratio"] >= 1
    assert idle["right"]["demand_reads_per_token"] < idle["nothing"]["demand_reads_per_token"]
    assert idle["right"]["useful_share"] == 1
    assert idle["wrong"]["useful_share"] < 0.5
    assert idle["wrong"]["speed_ratio"] < idle["right"]["speed_ratio"]
    busy = measure_acting(guessed, Machine(PLAIN, 100, 2, 3, resident_nbytes=0), 6)
    assert busy["nothing"]["device_busy_share"] > 0.9
    assert busy["right"]["speed_ratio"] < idle["right"]["speed_ratio"]
    assert all(figures["why"].endswith(".") for figures in busy.values())


def test_without_guesses_the_clock_is_that_of_the_misses() -> None:
    trace = trace_of([[[token % 4]] for token in range(8)])  # an Lru of 2 finds nothing
    found = measure_acting(trace, Machine(PLAIN, 100, 1, 1, 0), 2)["nothing"]
    assert found["tokens_per_second"] == pytest.approx(1 / 1.5)
    assert found["demand_reads_per_token"] == 1
    assert found["device_busy_share"] == 1


# --- scaling --------------------------------------------------------------------------------------


def test_places_are_those_of_the_order_of_last_use() -> None:
    trace = trace_of([[[2, 0]], [[0, 3]], [[2, 3]]])
    assert recency_places(trace).tolist() == [[[2, 0]], [[1, 3]], [[2, 1]]]


def found(trace: Trace, slots: int) -> float:
    outcome = replay(without_repeats(trace), shared_layout(trace, slots), Lru)
    return float(np.mean(outcome[100:] == HIT))


def test_scaled_traces_keep_chance_chance_and_a_pattern_a_pattern() -> None:
    shape = Shape("wide", 3, 32, 4, 3 * 32 * 1000.0, 0.0)
    chance = scaled(random_trace(), shape)
    assert chance.routing.shape == (400, 3, 4)
    assert all(len(set(row)) == 4 for token in chance.routing.tolist() for row in token)
    assert found(chance, 48) == pytest.approx(0.5, abs=0.06)
    same = scaled(trace_of([[[0, 1], [2, 3]]] * 400, 16), shape)
    assert found(same, 48) > 0.95
    assert same.mean_expert_nbytes == 1000


# --- what people write ----------------------------------------------------------------------------


def test_names_and_sizes_are_checked() -> None:
    trace = random_trace(8)
    assert parse_slots("50%, 8,50%", trace) == (8, 16)
    assert parse_policies("lru, lfu/layer,lru") == ("lru", "lfu/layer")
    for wrong in ("0%", "1", "33", "-5%", "x", "", ",".join(["5"] * 65)):
        with pytest.raises(SettingsError):
            parse_slots(wrong, trace)
    for ask in (device_named, parse_policies):
        with pytest.raises(SettingsError, match="there are"):
            ask("other")
    with pytest.raises(SettingsError, match="Did you mean trinity-large"):
        shape_named("trinity-larg")
    assert device_named("nvme-gen4") is DEVICES["nvme-gen4"]
    assert shape_named("trinity-large").expert_nbytes == pytest.approx(17.0e6, rel=0.01)


# --- the report -----------------------------------------------------------------------------------


class Page(HTMLParser):
    """Notes what opens, what closes, and what is asked of other places."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.headings: list[int] = []
        self.scrolling: list[bool] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag in ("script", "link", "img", "iframe") or "src" in given:
            self.outside.append(tag)
        if given.get("class") == "scroll":
            self.scrolling.append(given.get("tabindex") == "0" and bool(given.get("aria-label")))
        self.ids.add(given.get("id") or "")
        self.links.append(given.get("href") or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def answered() -> tuple[Trace, dict[str, object]]:
    request = StudyRequest(
        ("lru", "lru/layer"), "25%,75%", device_named("nvme-gen4"), None, guesses=True
    )
    return study(random_trace(60), "<b>&a trace", request)


def test_the_page_is_whole_and_asks_for_nothing(
    answered: tuple[Trace, dict[str, object]],
) -> None:
    text = write_report(*answered)
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.outside == []
    assert {link[1:] for link in page.links if link} <= page.ids
    assert all(later - before <= 1 for before, later in pairwise(page.headings))
    assert page.scrolling
    assert all(page.scrolling)
    assert "<b>" not in text
    assert not re.search(r"https?://|url\(|@import", text)
    for word in ("prefers-color-scheme: dark", "viewport", 'lang="en"', ":focus-visible"):
        assert word in text
    assert text.count('role="img" aria-label=') == text.count("<svg") >= 4


def test_the_picture_is_a_png(answered: tuple[Trace, dict[str, object]]) -> None:
    pytest.importorskip("matplotlib")
    from localmoe.lab.plot import write_plot

    file = io.BytesIO()
    write_plot(*answered, file)
    assert file.getvalue().startswith(b"\x89PNG\r\n")
