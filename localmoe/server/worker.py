"""The engine's thread: one answer after the other, and what has to be done between two tokens."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable

from localmoe.chat.events import Notice
from localmoe.chat.generation import Generation
from localmoe.chat.generator import Generator
from localmoe.chat.usage import Usage
from localmoe.errors import LocalMoeError
from localmoe.server.api_error import ApiError, api_error
from localmoe.server.fair_queue import FairQueue, QueueFullError
from localmoe.server.job import STOPPING, Ended, Job
from localmoe.server.ledger import Ledger
from localmoe.server.live import Live
from localmoe.server.session_store import SessionStore

logger = logging.getLogger("localmoe.server")
_MOST_RETRY_SECONDS = 60


class Worker:
    """Owns the engine between `start` and `stop`. `sessions` None: no state is saved."""

    def __init__(
        self,
        generator: Generator,
        ledger: Ledger,
        live: Live,
        *,
        max_queue: int,
        sessions: SessionStore | None = None,
    ) -> None:
        self._generator, self._ledger, self._live = generator, ledger, live
        self._sessions = sessions
        self._queue: FairQueue[Job | Callable[[], None]] = FairQueue(max_queue)
        self._current: Job | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="localmoe engine", daemon=True)

    @property
    def waiting(self) -> int:
        """How many answers wait for their turn."""
        return len(self._queue)

    @property
    def is_busy(self) -> bool:
        """Whether an answer is being given."""
        return self._current is not None

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Let a job wait for its turn. Raises ApiError: 429 where too many wait already."""
        if self._stopping:
            raise ApiError(503, STOPPING)
        try:
            self._queue.put(job.client, job)
        except QueueFullError:
            self._ledger.rejected += 1
            raise ApiError(
                429,
                f"{self.waiting} requests are waiting already, as many as may: try again later",
                retry_seconds=self._retry_seconds(),
            ) from None

    def cancel(self, job: Job) -> None:
        """Give up a job, whether it waits, is being answered, or is done."""
        job.cancel()
        if self._queue.remove(job.client, job):
            self._give_up(job)

    def call(self, function: Callable[[], None]) -> None:
        """Have a function called by the engine's thread, soon: between two tokens, too."""
        self._queue.urge(function)

    def stop(self) -> None:
        """End the current answer, save it, refuse the others; returns at once, see `join`."""
        self._stopping = True
        for job in self._queue.close():
            if isinstance(job, Job):
                job.tell(Ended("cancelled", Usage(), error=ApiError(503, STOPPING)))
        current = self._current
        if current:
            current.cancel()

    def join(self, seconds: float | None = None) -> bool:
        """Wait until all is saved after `stop`; return whether that is so."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if not isinstance(item, Job):
                item()
                continue
            self._current = item
            try:
                if item.cancelled:
                    self._give_up(item)
                else:
                    self._answer(item)
            finally:
                self._current = None
                self._live.idle()

    def _give_up(self, job: Job) -> None:
        """Count a job that was cancelled before its turn came."""
        self._ledger.end("cancelled", Usage())
        job.tell(Ended("cancelled", Usage()))

    def _answer(self, job: Job) -> None:
        """Give one answer; nothing that goes wrong ends the thread."""
        generation, error = None, None
        began = time.monotonic()
        try:
            generation = self._begin(job)
            for piece in generation:
                if isinstance(piece.event, Notice):
                    self._ledger.notices += 1
                job.tell(piece)
                self._between_tokens(generation)
        except LocalMoeError as failure:
            error = api_error(failure)
        except Exception as failure:
            error = api_error(failure)
            log_failure(failure)
        if self._stopping and error is None:
            error = ApiError(503, STOPPING)
        ended = _end_of(generation, error)
        self._ledger.end(ended.finish, ended.usage, time.monotonic() - began)
        job.tell(ended)  # who has all of an answer finds it counted
        _log_end(job, ended)
        if generation and ended.finish != "error":
            self._save(job)

    def _begin(self, job: Job) -> Generation:
        if self._sessions:
            self._sessions.bring(self._generator, self._generator.encode(job.request), job.session)
        generation = self._generator.generate(job.request, self._live.prompt)
        self._live.begin()
        job.begin(generation, generation.usage.prompt_tokens)
        if self._stopping:  # it came between the queue and here
            generation.cancel()
        return generation

    def _between_tokens(self, generation: Generation) -> None:
        self._ledger.current = generation.usage
        while call := self._queue.urgent():
            if not isinstance(call, Job):
                call()
        self._live.token(generation.usage, self.waiting)

    def _save(self, job: Job) -> None:
        if self._sessions:
            try:
                self._sessions.save(self._generator, job.session)
            except (LocalMoeError, OSError) as failure:
                self._ledger.unsaved += 1
                logger.warning("a conversation could not be saved: %s", failure)

    def _retry_seconds(self) -> int:
        """Return how long it may take until a place is free."""
        return round(min(max(self._ledger.seconds_per_answer, 1), _MOST_RETRY_SECONDS))


def log_failure(failure: BaseException) -> None:
    """Say where something failed. Not with what words: they may be of a conversation."""
    place = "".join(traceback.format_tb(failure.__traceback__))
    logger.error("%s at\n%s", type(failure).__name__, place.rstrip())


def _end_of(generation: Generation | None, error: ApiError | None) -> Ended:
    if generation is None:
        return Ended("error", Usage(), error=error)
    generation.close()
    finish = generation.finish or "error"
    return Ended(finish, generation.usage, generation.stop_text, error)


def _log_end(job: Job, ended: Ended) -> None:
    usage = ended.usage
    logger.info(
        "%s: %d tokens read (%d known), %d said, %.1f tok/s, %s",
        job.client,
        usage.prompt_tokens,
        usage.cached_tokens,
        usage.answer_tokens,
        usage.decode.tokens_per_second,
        ended.finish,
    )
