"""The routes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from importlib import resources
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from localmoe.errors import LocalMoeError
from localmoe.server.api_error import ApiError, api_error, shape_of
from localmoe.server.chat_completions import ChatRequest, ChatWriter, chat_completion
from localmoe.server.completions import CompletionRequest, CompletionWriter, completion
from localmoe.server.events import EventStream, GoneError, data
from localmoe.server.guard import Guard
from localmoe.server.ledger import Gauges
from localmoe.server.message_events import MessageWriter
from localmoe.server.messages import CountRequest, MessagesRequest, message
from localmoe.server.response_events import ResponseWriter
from localmoe.server.responses import ResponsesRequest, response
from localmoe.server.service import Service

_GONE = 499
"""What is noted where a client has gone away; nobody sees it."""
_MAX_REASONS = 3
Answered = dict[str, Any] | Response


def create_app(service: Service) -> Guard:
    """Return the ASGI application of a service."""
    # No documentation page: it would load scripts from elsewhere. No telemetry: it tells what
    # exceptions say, and that may be a conversation.
    app = FastAPI(
        title="localmoe",
        version=version("localmoe"),
        docs_url=None,
        redoc_url=None,
        telemetry={
            "tracing": False,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
        },
    )
    _add_openai(app, service)
    _add_anthropic(app, service)
    _add_own(app, service)
    kinds = (ApiError, LocalMoeError, RequestValidationError, HTTPException, GoneError, Exception)
    for kind in kinds:
        app.add_exception_handler(kind, _refused)

    def count(path: str, status: int) -> None:
        service.ledger.responses[path, status] += 1

    return Guard(app, service.options, count)


def _add_openai(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(body: ChatRequest, http: Request) -> Answered:
        service.check_model(body.model)
        request = body.request(service)
        if body.stream:
            return await service.stream(request, http, ChatWriter(body, service), body.most_calls)
        answer = await service.whole(request, http, body.most_calls)
        return chat_completion(answer, body, service)

    @app.post("/v1/completions", response_model=None)
    async def completions(body: CompletionRequest, http: Request) -> Answered:
        service.check_model(body.model)
        request = body.request(service)
        if body.stream:
            return await service.stream(request, http, CompletionWriter(body, service))
        return completion(await service.whole(request, http), body, service)

    @app.post("/v1/responses", response_model=None)
    async def responses(body: ResponsesRequest, http: Request) -> Answered:
        service.check_model(body.model)
        request = body.request(service)
        if body.stream:
            writer = ResponseWriter(body, service)
            return await service.stream(request, http, writer, body.most_calls)
        return response(await service.whole(request, http, body.most_calls), body, service)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        names = [name for name in service.options.names if name != "*"] or [service.model]
        data = [_model(name, service) for name in names]
        ends = {"first_id": names[0], "last_id": names[-1], "has_more": False}
        return {"object": "list", "data": data, **ends}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        service.check_model(name)
        return _model(name, service)


def _add_anthropic(app: FastAPI, service: Service) -> None:
    @app.post("/v1/messages", response_model=None)
    async def messages(body: MessagesRequest, http: Request) -> Answered:
        service.check_model(body.model)
        request = body.request(service)
        if body.stream:
            return await service.stream(request, http, MessageWriter(service), body.most_calls)
        return message(await service.whole(request, http, body.most_calls), service)

    @app.post("/v1/messages/count_tokens")
    async def count_tokens(body: CountRequest) -> dict[str, int]:
        service.check_model(body.model)
        # Beside the engine's thread: tokenizers may be read by many, templates take turns.
        tokens = await asyncio.to_thread(service.generator.encode, body.request(service))
        return {"input_tokens": len(tokens)}


def _add_own(app: FastAPI, service: Service) -> None:
    page, policy = _page()

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        headers = {
            "Content-Security-Policy": policy,
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        }
        return HTMLResponse(page, headers=headers)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> Response:
        from prometheus_client import CollectorRegistry
        from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

        worker, registry = service.worker, CollectorRegistry(auto_describe=False)
        registry.register(Gauges(service.ledger, lambda: worker.waiting, lambda: worker.is_busy))
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/live", response_model=None, include_in_schema=False)
    async def live() -> EventStream:
        frames = service.live.watch(service.worker.call)
        first = await anext(frames)  # raises where too many watch

        async def events() -> AsyncIterator[str]:
            try:
                yield data({**first, "model": service.model})
                async for frame in frames:
                    yield data(frame)
            finally:
                await frames.aclose()  # type: ignore[attr-defined]

        return EventStream(events(), lambda: None)


async def _refused(http: Request, error: Exception) -> Response:
    """Answer with an error in the shape of the path's API."""
    if isinstance(error, GoneError):
        return Response(status_code=_GONE)
    refusal = _refusal(error)
    headers = refusal.headers
    if isinstance(error, HTTPException) and error.headers:
        headers |= error.headers
    body = refusal.body(shape_of(http.url.path))
    return JSONResponse(body, refusal.status, headers)


def _refusal(error: Exception) -> ApiError:
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail))
    if not isinstance(error, RequestValidationError):
        return api_error(error)
    reasons = error.errors()
    words = []
    for reason in reasons[:_MAX_REASONS]:
        place = ".".join(str(step) for step in reason["loc"] if step != "body")
        words.append(f"{place}: {reason['msg']}" if place else str(reason["msg"]))
    if len(reasons) > _MAX_REASONS:
        words.append(f"and {len(reasons) - _MAX_REASONS} more")
    first = ".".join(str(step) for step in reasons[0]["loc"][1:]) if reasons else None
    return ApiError(400, "; ".join(words) or "the request is not valid", param=first)


def _model(name: str, service: Service) -> dict[str, Any]:
    """Return a model as the clients of both APIs read it."""
    begun = datetime.fromtimestamp(service.started_at, UTC)
    return {
        "id": name,
        "object": "model",
        "created": service.started_at,
        "owned_by": "localmoe",
        "type": "model",
        "display_name": name,
        "created_at": begun.isoformat().replace("+00:00", "Z"),
        "context_length": service.engine.plan.context_tokens,
    }


def _page() -> tuple[str, str]:
    """Return the page, and a policy under which nothing but what is in it runs."""
    page = resources.files("localmoe.server").joinpath("page.html").read_text()
    styles = " ".join(_hashes(page, "style"))
    scripts = " ".join(_hashes(page, "script"))
    policy = (
        f"default-src 'none'; style-src {styles}; script-src {scripts}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, policy


def _hashes(page: str, tag: str) -> list[str]:
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    digests = (hashlib.sha256(text.encode()).digest() for text in found)
    return [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
