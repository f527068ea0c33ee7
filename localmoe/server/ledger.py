"""What the server has done so far, and how Prometheus reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from localmoe.chat.usage import Usage

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_RECENT_SHARE = 0.2
"""How much the last answer counts for the expected length of the next."""


class Ledger:
    """Totals that only grow, written by the engine's thread, read by any."""

    def __init__(self) -> None:
        self.finishes: Counter[str] = Counter()
        self.responses: Counter[tuple[str, int]] = Counter()
        """Responses by API path and status."""
        self.rejected = self.notices = self.unsaved = 0
        self.current = Usage()
        """What the answer that is being given has cost so far."""
        self.seconds_per_answer = 1.0
        self._done = Usage()

    @property
    def usage(self) -> Usage:
        """All answers added up, the current one too."""
        return self._done + self.current

    def end(self, finish: str, usage: Usage, seconds: float | None = None) -> None:
        """Count an answer."""
        self.current, self._done = Usage(), self._done + usage
        self.finishes[finish] += 1
        if seconds is not None:
            self.seconds_per_answer += _RECENT_SHARE * (seconds - self.seconds_per_answer)


class Gauges:
    """A collector for prometheus-client. `waiting` and `running` are asked when it is read."""

    def __init__(
        self, ledger: Ledger, waiting: Callable[[], int], running: Callable[[], bool]
    ) -> None:
        self._ledger, self._waiting, self._running = ledger, waiting, running

    def collect(self) -> Iterator[Metric]:
        """Yield all figures as they are now."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        ledger, usage = self._ledger, self._ledger.usage
        prefill, decode = usage.prefill.stats, usage.decode.stats
        counters = {
            "prompt_tokens": ("Tokens of prompts", usage.prompt_tokens),
            "cached_tokens": ("Those of them that were known already", usage.cached_tokens),
            "answer_tokens": ("Tokens of answers", usage.answer_tokens),
            "reasoning_tokens": ("Those of them that were thoughts", usage.reasoning_tokens),
            "expert_hits": ("Experts found in memory", prefill.hits + decode.hits),
            "expert_misses": ("Experts that were read", prefill.misses + decode.misses),
            "read_bytes": ("Bytes of experts read", prefill.read_bytes + decode.read_bytes),
            "stall_seconds": (
                "Time in which the engine waited for them",
                prefill.stall_seconds + decode.stall_seconds,
            ),
            "prefill_seconds": ("Time spent on reading prompts", usage.prefill.seconds),
            "decode_seconds": ("Time spent on saying answers", usage.decode.seconds),
            "rejected_requests": ("Requests beyond the queue's bound", ledger.rejected),
            "malformed_calls": ("Calls of tools that became text", ledger.notices),
            "unsaved_sessions": ("States that could not be saved", ledger.unsaved),
        }
        for name, (meaning, value) in counters.items():
            yield CounterMetricFamily(f"localmoe_{name}", meaning, value=value)
        answers = CounterMetricFamily("localmoe_answers", "Answers", labels=["finish"])
        for finish, count in sorted(ledger.finishes.items()):
            answers.add_metric([finish], count)
        yield answers
        responses = CounterMetricFamily(
            "localmoe_responses", "HTTP responses", labels=["path", "status"]
        )
        for (path, status), count in sorted(ledger.responses.items()):
            responses.add_metric([path, str(status)], count)
        yield responses
        yield GaugeMetricFamily("localmoe_waiting", "Requests in the queue", value=self._waiting())
        yield GaugeMetricFamily(
            "localmoe_running", "1 while an answer is given", value=float(self._running())
        )
        yield GaugeMetricFamily(
            "localmoe_hit_rate", "Hits over requests in decode so far", value=decode.hit_rate
        )
