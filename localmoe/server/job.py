"""One answer that a client waits for: asked for in the event loop, given by the engine's thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass

from localmoe.chat.events import Piece
from localmoe.chat.generation import Finish, Generation
from localmoe.chat.request import GenerationRequest
from localmoe.chat.usage import Usage
from localmoe.server.api_error import ApiError

STOPPING = "the server is being stopped"


@dataclass(frozen=True)
class Started:
    """Its turn has come, and its prompt is a good one."""

    prompt_tokens: int


@dataclass(frozen=True)
class Ended:
    """The last thing that is told of an answer."""

    finish: Finish
    usage: Usage
    stop_text: str | None = None
    error: ApiError | None = None
    """Why it failed, where `finish` is "error", or was broken off by the server."""


News = Started | Piece | Ended


class Job:
    """Made and read in the event loop."""

    def __init__(self, request: GenerationRequest, client: str, session: str | None = None) -> None:
        """`client` is whose turn it is; `session` what a client calls its conversation."""
        self.request, self.client, self.session = request, client, session
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[News] = asyncio.Queue()
        self._lock = threading.Lock()
        self._first: asyncio.Future[News] | None = None
        self._generation: Generation | None = None
        self.cancelled = False

    def begin(self, generation: Generation, prompt_tokens: int) -> None:
        """Tell that its turn has come; called by the engine's thread."""
        with self._lock:
            self._generation = generation
            if self.cancelled:
                generation.cancel()
        self.tell(Started(prompt_tokens))

    def tell(self, news: News) -> None:
        """Tell the client; called by any thread."""
        # The loop is closed when the server has been stopped: nobody listens.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._news.put_nowait, news)

    def cancel(self) -> None:
        """End it before its next token, or before it begins; safe from any thread."""
        with self._lock:
            self.cancelled = True
            if self._generation:
                self._generation.cancel()

    async def started(self, seconds: float | None = None) -> Started | None:
        """Wait for its turn; None: it has not come in so many seconds, and may be waited for again.

        Raises ApiError where there is no answer.
        """
        if self._first is None:
            self._first = asyncio.ensure_future(self._news.get())
        await asyncio.wait({self._first}, timeout=seconds)
        if not self._first.done():
            return None
        first = self._first.result()
        if isinstance(first, Ended):
            raise first.error or ApiError(503, STOPPING)
        assert isinstance(first, Started)
        return first

    async def pieces(self) -> AsyncIterator[Piece | Ended]:
        """Yield what is said, and how it ended; for after `started`."""
        while True:
            news = await self._news.get()
            assert not isinstance(news, Started)
            yield news
            if isinstance(news, Ended):
                return
