"""OpenAI's /v1/completions: plain text goes on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from localmoe.chat.events import Piece, TextDelta, TokenLogprob
from localmoe.chat.request import GenerationRequest
from localmoe.server.answer import Answer, EventWriter
from localmoe.server.api_error import ApiError
from localmoe.server.body import (
    Count,
    Request,
    Seed,
    Share,
    StopTexts,
    Temperature,
    TopK,
    TopLogprobs,
    refuse,
    refuse_set,
)
from localmoe.server.chat_completions import FINGERPRINT, StreamOptions, new_id, stop_texts
from localmoe.server.events import data
from localmoe.server.job import Ended
from localmoe.server.openai_parts import finish_reason, logprob_of, token_text, usage_of
from localmoe.server.service import Service

_DEFAULT_TOKENS = 16
"""What OpenAI's own server says where a request does not."""
Token = Annotated[int, Field(ge=0, lt=1 << 31)]


class CompletionRequest(Request):
    """A request for the continuation of a text."""

    model: str
    prompt: str | list[Token] | list[str] | list[list[Token]]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: TopK | None = None
    min_p: Share | None = None
    seed: Seed | None = None
    stop: str | StopTexts | None = None
    logprobs: TopLogprobs | None = None
    n: Count | None = None
    best_of: Count | None = None
    echo: bool | None = None
    suffix: str | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    def request(self, service: Service) -> GenerationRequest:
        """Return it as the chat has it. Raises ApiError, SettingsError."""
        for name in ("n", "best_of"):
            if getattr(self, name) not in (None, 1):
                raise refuse(name, "must be 1: ask again for another answer")
        names = ("echo", "suffix", "frequency_penalty", "presence_penalty", "logit_bias")
        refuse_set({name: getattr(self, name) for name in names}, (None, 0, False, ""))
        return GenerationRequest(
            prompt=self._one_prompt(),
            sampling=service.sampling(
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                min_p=self.min_p,
                seed=self.seed,
            ),
            max_tokens=self.max_tokens or service.options.max_tokens or _DEFAULT_TOKENS,
            stop=stop_texts(self.stop),
            logprobs=self.logprobs,
        )

    def _one_prompt(self) -> str | tuple[int, ...]:
        prompt: Any = self.prompt
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            if len(prompt) > 1:
                raise refuse("prompt", "must be a single one: send a request for each")
            prompt = prompt[0]
        if not prompt:
            raise ApiError(400, "the prompt is empty: give it at least one word", param="prompt")
        return prompt if isinstance(prompt, str) else tuple(prompt)


def completion(answer: Answer, body: CompletionRequest, service: Service) -> dict[str, Any]:
    """Return a whole continuation."""
    logprobs = None if body.logprobs is None else _logprobs(answer.logprobs, 0)
    choice = {
        "index": 0,
        "text": answer.text,
        "finish_reason": finish_reason(answer.end.finish),
        "logprobs": logprobs,
    }
    return {**_head(service), "choices": [choice], "usage": usage_of(answer.end.usage)}


class CompletionWriter(EventWriter):
    """A continuation as chunks."""

    def __init__(self, body: CompletionRequest, service: Service) -> None:
        self._head = _head(service)
        self._wants_usage = bool(body.stream_options and body.stream_options.include_usage)
        self._wants_logprobs = body.logprobs is not None
        self._n_characters = 0

    def begin(self, prompt_tokens: int) -> Sequence[str]:
        """Say nothing yet."""
        return []

    def piece(self, piece: Piece) -> Sequence[str]:
        """Say more."""
        if not isinstance(piece.event, TextDelta):
            return []
        start, self._n_characters = self._n_characters, self._n_characters + len(piece.event.text)
        logprobs = _logprobs(piece.logprobs, start) if self._wants_logprobs else None
        return [self._chunk(piece.event.text, None, logprobs)]

    def end(self, ended: Ended) -> Sequence[str]:
        """Say why it ended and, where that was asked for, what it cost."""
        events = [self._chunk("", finish_reason(ended.finish), None)]
        if self._wants_usage:
            events.append(data({**self._head, "choices": [], "usage": usage_of(ended.usage)}))
        return [*events, "data: [DONE]\n\n"]

    def _chunk(self, text: str, finish: str | None, logprobs: Any) -> str:
        choice = {"index": 0, "text": text, "finish_reason": finish, "logprobs": logprobs}
        usage = {"usage": None} if self._wants_usage else {}
        return data({**self._head, "choices": [choice], **usage})


def _logprobs(tokens: Sequence[TokenLogprob], start: int) -> dict[str, Any]:
    """Return probabilities in this API's own form; `start` is where the text of them begins."""
    offsets, at = [], start
    for each in tokens:
        offsets.append(at)
        at += len(token_text(each.chosen))
    return {
        "tokens": [token_text(each.chosen) for each in tokens],
        "token_logprobs": [logprob_of(each.chosen) for each in tokens],
        "top_logprobs": [{token_text(t): logprob_of(t) for t in each.top} for each in tokens],
        "text_offset": offsets,
    }


def _head(service: Service) -> dict[str, Any]:
    return {
        "id": new_id("cmpl"),
        "object": "text_completion",
        "created": int(time.time()),
        "model": service.model,
        "system_fingerprint": FINGERPRINT,
    }
