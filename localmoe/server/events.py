"""Answers over HTTP: streams of server-sent events, and clients that go away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Result = TypeVar("Result")
_ALIVE_SECONDS = 15.0
"""A stream that says nothing for so long says that it is alive: proxies cut silent ones."""
_COMMENT = b": still here\n\n"


class GoneError(Exception):
    """The client has gone away: there is nobody to answer."""


def data(value: object, event: str | None = None) -> str:
    """Return one event with a value as JSON."""
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def unless_gone(http: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Return what `work` returns; cancel it and raise GoneError once the client goes away."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(http.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise GoneError
        return task.result()
    finally:
        await _drop(task, gone)


class EventStream(Response):
    """Events as they come. `done` is called when the last is sent or the client has gone away."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[str],
        done: Callable[[], None],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.headers.update(headers or {})
        self._events, self._done = events, done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send, and stop as soon as the client goes away."""
        sending = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            await _drop(sending, gone)
            self._done()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        upcoming = asyncio.ensure_future(anext(self._events, None))
        try:
            while True:
                await asyncio.wait({upcoming}, timeout=_ALIVE_SECONDS)
                body = _COMMENT
                if upcoming.done():
                    event = upcoming.result()
                    if event is None:
                        break
                    body = event.encode("utf-8", errors="replace")
                    upcoming = asyncio.ensure_future(anext(self._events, None))
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await _drop(upcoming)


async def _gone(receive: Receive) -> None:
    """Return when the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        continue


async def _drop(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks, and wait until they are over; what they raise is of no interest any more."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
