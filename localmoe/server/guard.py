"""What every request passes before anything looks at it: who asks, from where, and how much.

A server on the loopback address is within reach of every web page that its user opens. Without a
key, a request must name this machine as its host (a page that has its own name lead here cannot),
and what a browser sends on behalf of another site is refused, unless that site is allowed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from localmoe.server.api_error import ApiError, api_error, shape_of
from localmoe.server.keys import Keys
from localmoe.server.options import LOOPBACK_NAMES, ServerOptions, is_loopback
from localmoe.server.worker import log_failure

OPEN_PATHS = frozenset({"/", "/health"})
"""They say nothing that is worth a key."""
_METHODS = "GET, POST, OPTIONS"
_MAX_AGE_SECONDS = "600"
_LONGEST_AT_ONCE = 4
"""So many of the longest requests may be held at a time: they lie outside the memory's budget."""
_RETRY_SECONDS = 5
Count = Callable[[str, int], None]
Take = Callable[[int], None]


class Guard:
    """An ASGI application around another. `count` is told the path and status of each response."""

    def __init__(self, app: ASGIApp, options: ServerOptions, count: Count) -> None:
        self._app, self._options, self._count = app, options, count
        self._keys, self._origins = Keys(options.api_keys), frozenset(options.allow_origins)
        self._held_bytes = 0
        self._names = LOOPBACK_NAMES | {options.host.strip("[]").lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        reply = _Reply(send, self._cors(headers))
        try:
            self._check_place(scope, headers)
            if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                await reply.empty(204)
                return
            self._check_key(scope, headers)
            with self._room() as take:
                body = await _read(receive, headers, self._options.max_request_bytes, take)
                await self._app(scope, _Replay(body, receive), reply)
        except ApiError as error:
            await reply.refuse(error, scope["path"])
        except Exception as error:
            log_failure(error)
            await reply.refuse(api_error(error), scope["path"])
        finally:
            self._count(_route(scope), reply.status)

    @contextmanager
    def _room(self) -> Iterator[Take]:
        """Yield a function that makes room for so many bytes until the request is over."""
        most, held = _LONGEST_AT_ONCE * self._options.max_request_bytes, 0

        def take(nbytes: int) -> None:
            nonlocal held
            if self._held_bytes + nbytes > most:
                raise ApiError(
                    429,
                    f"requests of {self._held_bytes} bytes are held already, and at most {most} "
                    "are at a time: try again later",
                    retry_seconds=_RETRY_SECONDS,
                )
            self._held_bytes += nbytes
            held += nbytes

        try:
            yield take
        finally:
            self._held_bytes -= held

    def _cors(self, headers: Headers) -> dict[str, str]:
        origin = headers.get("origin", "")
        if origin not in self._origins:
            return {"Vary": "Origin"}
        return {
            "Vary": "Origin",
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Allow-Headers": headers.get("access-control-request-headers", "*"),
            "Access-Control-Max-Age": _MAX_AGE_SECONDS,
        }

    def _check_place(self, scope: Scope, headers: Headers) -> None:
        """Refuse what a web page of another site sends. Raises ApiError."""
        host = headers.get("host", "")
        if not self._keys and is_loopback(self._options.host) and _name(host) not in self._names:
            raise ApiError(
                403,
                f"the Host header names {host[:100]!r}, and this server answers as localhost or "
                "127.0.0.1 alone: give it a key (--api-key-file) to have it answer to other names",
            )
        origin = headers.get("origin")
        if origin is None:
            foreign = headers.get("sec-fetch-site") == "cross-site" and scope["path"] != "/"
        else:
            foreign = origin not in self._origins and origin.partition("://")[2] != host
        if foreign:
            raise ApiError(
                403,
                f"a web page of {(origin or 'another site')[:100]} may not use this server: "
                "--allow-origin allows it",
            )

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        """Note whose turn the request takes; raise ApiError without a key where one is needed."""
        address = (scope.get("client") or ("?",))[0]
        owner = self._keys.owner(headers)
        if self._keys and owner is None and scope["path"] not in OPEN_PATHS:
            raise ApiError(
                401, "a key is needed: send it as Authorization: Bearer KEY, or as x-api-key"
            )
        scope["localmoe.owner"] = owner or ""
        scope["localmoe.client"] = f"{owner} at {address}" if owner else address


class _Reply:
    """Sends what the application sends, with headers of ours."""

    def __init__(self, send: Send, headers: dict[str, str]) -> None:
        self._send, self._headers = send, headers
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(raw=list(message.get("headers", ())))
            headers.update({"X-Content-Type-Options": "nosniff", **self._headers})
            message = {**message, "headers": headers.raw}
        await self._send(message)

    async def empty(self, status: int) -> None:
        await self({"type": "http.response.start", "status": status, "headers": []})
        await self({"type": "http.response.body", "body": b""})

    async def refuse(self, error: ApiError, path: str) -> None:
        """Answer with an error, unless an answer has begun."""
        if self.status:
            return
        body = json.dumps(error.body(shape_of(path))).encode()
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
            **error.headers,
        }
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self({"type": "http.response.start", "status": error.status, "headers": raw})
        await self({"type": "http.response.body", "body": body})


class _Replay:
    """Gives a body that was read already, then what follows it."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        body, self._body = self._body, None
        if body is None:
            return await self._receive()
        return {"type": "http.request", "body": body, "more_body": False}


async def _read(receive: Receive, headers: Headers, limit: int, take: Take) -> bytes:
    """Return a request's body, with room taken for it. Raises ApiError for one that is too long."""
    told = headers.get("content-length", "0")
    length = int(told) if told.isdecimal() else 0
    chunks: list[bytes] = []
    seen, more = 0, True
    while more and max(seen, length) <= limit:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(400, "the request was not sent to its end")
        chunks.append(message.get("body", b""))
        seen, more = seen + len(chunks[-1]), message.get("more_body", False)
        if seen <= limit:
            take(len(chunks[-1]))
    if max(seen, length) > limit:
        raise ApiError(
            413,
            f"the request has {max(seen, length)} bytes or more, and at most {limit} are taken: "
            "--max-request-size allows more",
        )
    return b"".join(chunks)


def _name(host: str) -> str:
    """Return a Host header's name without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()


def _route(scope: Scope) -> str:
    """Return the path that was declared for a request: not what the client made up."""
    route = scope.get("route")
    return str(getattr(route, "path", "other"))
