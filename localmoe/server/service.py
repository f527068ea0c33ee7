"""What all APIs share: the model behind them, and the way from a request to an answer."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.requests import Request

from localmoe.backends.base import Engine
from localmoe.chat.dialect import Dialect
from localmoe.chat.events import Piece, ToolCallStart
from localmoe.chat.generator import Generator
from localmoe.chat.request import GenerationRequest
from localmoe.chat.sampling import SamplingOptions
from localmoe.errors import ChatError
from localmoe.server.answer import Answer, EventWriter
from localmoe.server.api_error import ApiError, Shape, api_error, shape_of
from localmoe.server.events import EventStream, unless_gone
from localmoe.server.job import STOPPING, Ended, Job
from localmoe.server.ledger import Ledger
from localmoe.server.live import Live
from localmoe.server.options import ServerOptions
from localmoe.server.session_store import SessionStore
from localmoe.server.worker import Worker

_MAX_SESSION_NAME = 512
SESSION_HEADER = "x-session-id"


class Service:
    """One engine, and what a server does with it. Close it before the engine."""

    def __init__(
        self,
        engine: Engine,
        dialect: Dialect,
        options: ServerOptions,
        rss: Callable[[], int],
        drive_rate: float | None = None,
    ) -> None:
        """For `rss` and `drive_rate` see `Live`. Raises SettingsError."""
        self.engine, self.options, self.dialect = engine, options, dialect
        self.started_at = int(time.time())
        self.ledger, self.live = Ledger(), Live(engine, rss, drive_rate)
        self.generator = Generator(engine, dialect)
        self._sampling = SamplingOptions.merged(options.sampling, engine.generation_defaults)
        self._sessions = self._open_sessions()
        self.worker = Worker(
            self.generator,
            self.ledger,
            self.live,
            max_queue=options.max_queue,
            sessions=self._sessions,
        )

    @property
    def model(self) -> str:
        """The model's name."""
        return self.options.names[0]

    def _open_sessions(self) -> SessionStore | None:
        options, engine = self.options, self.engine
        if options.sessions is None:
            return None
        model = (
            f"{self.model} {engine.architecture} {engine.tokenizer.n_vocab} {engine.plan.kv_type}"
        )
        return SessionStore(
            options.sessions,
            model,
            max_count=options.max_sessions,
            max_nbytes=options.max_session_bytes,
        )

    def stop(self) -> None:
        """End the current answer and refuse new ones; returns at once, see `close`."""
        self.worker.stop()
        self.live.close()

    def close(self) -> None:
        """Wait until the engine is idle and all is saved."""
        self.stop()
        self.worker.join()
        if self._sessions:
            self._sessions.close()

    def check_model(self, name: str) -> None:
        """Raise ApiError, 404, unless a name means this model."""
        names = self.options.names
        if name not in names and "*" not in names:
            raise ApiError(
                404,
                f"the model {name[:100]!r} is not here; this server has {self.model!r}",
                code="model_not_found",
                param="model",
            )

    def sampling(self, **given: float | None) -> SamplingOptions:
        """Return options: a request's values win over the server's, those over the checkpoint's."""
        seed = given.get("seed")
        if seed is not None:
            given["seed"] = int(seed) % (1 << 63)
        defaults = {
            name: getattr(self._sampling, name)
            for name in ("temperature", "top_k", "top_p", "min_p", "seed")
        }
        if given.get("top_p") == 0:  # means: the likeliest alone
            given |= {"top_p": None, "top_k": 1}
        chosen = {name: value for name, value in given.items() if value is not None}
        return SamplingOptions.merged({**defaults, **chosen}, {})

    def thinking_off(self) -> dict[str, Any]:
        """Return template options that keep the model from thinking. Raises ApiError."""
        if not self.dialect.can_think:
            return {}
        try:
            return self.dialect.thinking_options(False)
        except ChatError as error:
            raise api_error(error) from error

    def submit(self, request: GenerationRequest, http: Request) -> Job:
        """Let a request wait for its turn. Raises ApiError."""
        session = http.headers.get(SESSION_HEADER)
        if session and len(session) > _MAX_SESSION_NAME:
            raise ApiError(400, f"{SESSION_HEADER} has more than {_MAX_SESSION_NAME} characters")
        if session:  # nobody can replace what somebody else's key has named
            session = f"{http.scope['localmoe.owner']} {session}"
        job = Job(request, http.scope["localmoe.client"], session)
        self.worker.submit(job)
        return job

    async def whole(self, request: GenerationRequest, http: Request, most_calls: int = 0) -> Answer:
        """Return the whole answer; give it up once the client goes away. Raises ApiError.

        `most_calls`: it ends after so many calls of tools; 0: there is no bound.
        """
        job = self.submit(request, http)
        try:
            return await unless_gone(http, self._collect(job, most_calls))
        finally:
            self.worker.cancel(job)

    async def _collect(self, job: Job, most_calls: int) -> Answer:
        await job.started()
        answer = Answer()
        async for piece in self.pieces(job, most_calls):
            if isinstance(piece, Ended):
                answer.ended = piece
            else:
                answer.add(piece)
        if answer.end.error:
            raise answer.end.error
        return answer

    async def pieces(self, job: Job, most_calls: int = 0) -> AsyncIterator[Piece | Ended]:
        """Yield an answer's pieces and its end. An end that nobody wanted has an error."""
        enough = False
        async for piece in job.pieces():
            if isinstance(piece, Ended):
                if enough:
                    piece = Ended("tool_calls", piece.usage)
                elif piece.finish == "cancelled" and piece.error is None:
                    piece = Ended("cancelled", piece.usage, error=ApiError(503, STOPPING))
                yield piece
                return
            event = piece.event
            if isinstance(event, ToolCallStart) and most_calls and event.index >= most_calls:
                enough = True
                job.cancel()
            if not enough:
                yield piece

    async def stream(
        self,
        request: GenerationRequest,
        http: Request,
        writer: EventWriter,
        most_calls: int = 0,
    ) -> EventStream:
        """Return an answer as events. Raises ApiError for what is known before it begins."""
        job = self.submit(request, http)

        def over() -> None:
            self.worker.cancel(job)

        try:
            await unless_gone(http, job.started(self.options.patience_seconds))
        except BaseException:
            over()
            raise
        events = self._events(job, writer, most_calls, shape_of(http.url.path))
        return EventStream(events, over)

    async def _events(
        self, job: Job, writer: EventWriter, most_calls: int, shape: Shape
    ) -> AsyncIterator[str]:
        try:
            started = await job.started()
            for text in writer.begin(started.prompt_tokens if started else 0):
                yield text
            async for piece in self.pieces(job, most_calls):
                if isinstance(piece, Ended) and piece.error:
                    raise piece.error
                told = writer.end(piece) if isinstance(piece, Ended) else writer.piece(piece)
                for text in told:
                    yield text
        except ApiError as error:
            for text in writer.fail(error, error.body(shape)):
                yield text
