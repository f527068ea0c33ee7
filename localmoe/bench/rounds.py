"""Two sides of a comparison, alternated: what the machine does meanwhile hits both alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from localmoe.bench.request import DecodeRequest, PeerName, PeerRequest
from localmoe.errors import EngineError

Answer = dict[str, Any]
Run = Callable[[DecodeRequest | PeerRequest], Answer | None]
"""Runs one side; None: it was killed by the memory limit."""
Stage = Callable[[str, int, int], None]

PEER_TOKENS_STREAMING = 8
"""Tokens of a peer that runs out of memory: each may take it seconds."""
KILLED = "killed by the memory limit"


def alternate(
    request: DecodeRequest,
    run: Run,
    rounds: int = 1,
    peer: Callable[[Answer], PeerRequest] | None = None,
    on_stage: Stage = lambda *_: None,
) -> Answer:
    """Run both sides `rounds` times, ours first; return ours with `peer` and `ratio` added.

    The figures are those of the round of median speed (of two in the middle, the slower).
    `peer` makes the peer's request from our answer. Raises EngineError if ours was killed.
    """
    ours, theirs = [], []
    for number in range(1, rounds + 1):
        on_stage("localmoe", number, rounds)
        answer = run(request)
        if answer is None:
            raise EngineError(
                f"localmoe was {KILLED} around it, with a budget of "
                f"{request.settings.memory_bytes or 'its own choice'} bytes: use a smaller --memory"
            )
        ours.append(answer)
        if peer:
            on_stage(f"llama.cpp ({peer(answer).name})", number, rounds)
            theirs.append(run(peer(answer)))
    result = _median_round(ours)
    result["extra"]["rounds"] = [_brief(answer) for answer in ours]
    if peer:
        result["peer"] = _peer_summary(peer(ours[0]).name, theirs)
        result["peer"]["logits_equal"] = _logits_equal(ours[0], theirs)
        speed = result["peer"]["tokens_per_second"]
        result["ratio"] = result["tokens_per_second"] / speed if speed else None
    return result


def peer_for(
    request: DecodeRequest, name: PeerName, tokens: int | None, answer: Answer
) -> PeerRequest:
    """Return the peer's task: the file, context, chunk and threads that our `answer` tells of.

    `tokens`: at most as many as ours; None: as many, but few when experts are streamed.
    """
    extra = answer["extra"]
    if tokens is None:
        few = min(PEER_TOKENS_STREAMING, request.tokens)
        tokens = few if extra["streams"] and name == "mmap" else request.tokens
    return PeerRequest(
        model=request.model,
        name=name,
        tokens=min(tokens, request.tokens),
        prompt_tokens=request.prompt_tokens,
        context_tokens=extra["plan"]["context_tokens"],
        chunk_tokens=extra["plan"]["prefill_chunk_tokens"],
        threads=extra["threads"],
        experts_used=request.settings.experts_used,
        kv_type=request.settings.kv_type,
    )


def _median_round(answers: list[Answer]) -> Answer:
    middle = statistics.median_low(answer["tokens_per_second"] for answer in answers)
    return next(answer for answer in answers if answer["tokens_per_second"] == middle)


def _brief(answer: Answer) -> Answer:
    keys = ("tokens_per_second", "load_seconds", "peak_rss_bytes", "logits_sha256")
    return {key: answer[key] for key in keys}


def _peer_summary(name: PeerName, answers: list[Answer | None]) -> Answer:
    alive = [answer for answer in answers if answer]
    rounds = [answer or {"error": KILLED} for answer in answers]
    if not alive:
        return {
            "name": name,
            "tokens_per_second": None,
            "logits_sha256": None,
            "error": KILLED,
            "rounds": rounds,
        }
    middle = _median_round(alive)
    return {
        "name": name,
        "tokens_per_second": middle["tokens_per_second"],
        "tokens": middle["tokens"],
        "repacked": middle["repacked"],
        "logits_sha256": middle["logits_sha256"],
        "rounds": rounds,
    }


def _logits_equal(ours: Answer, theirs: list[Answer | None]) -> bool | None:
    """Return whether the logits agree after as many tokens as the peer decoded.

    None where that cannot be said: repacked weights round differently.
    """
    alive = [answer for answer in theirs if answer]
    if not alive or any(answer["repacked"] for answer in alive):
        return None
    hashes = ours["extra"]["logits_sha256_after"]
    return all(hashes.get(str(a["tokens"])) == a["logits_sha256"] for a in alive)
