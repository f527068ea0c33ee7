"""Records what a model's layers route to while it reads prompts and goes on from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from localmoe.backends.llama.engine import LlamaEngine
from localmoe.backends.llama.routing_log import RoutingLog
from localmoe.bench.streamed import streamed_engine
from localmoe.cache.profile import catalog_digest
from localmoe.errors import SettingsError
from localmoe.prediction.trace import Trace
from localmoe.prediction.trace_file import BLOCK_TOKENS, write_trace
from localmoe.replacing import replaced_file
from localmoe.settings import Progress, Settings

Answer = dict[str, int]


@dataclass(frozen=True)
class RecordRequest:
    """Decode each prompt from an empty context, then `generate` more tokens, the likeliest ones."""

    model: str
    prompts: tuple[str, ...]
    settings: Settings = field(default_factory=Settings)
    generate: int = 0
    most_tokens: int | None = None
    """Of all prompts together."""
    scores: bool = False
    guesses: bool = False


def read_prompts(path: Path) -> tuple[str, ...]:
    """Return the paragraphs of a text: what blank lines separate. Raises SettingsError."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise SettingsError(f"cannot read the prompts {path}: {error.strerror}") from error
    prompts = tuple(part.strip() for part in text.split("\n\n") if part.strip())
    if not prompts:
        raise SettingsError(f"{path} has no prompts: wanted is text, with blank lines between them")
    return prompts


def record(request: RecordRequest, out: Path, progress: Progress | None = None) -> Answer:
    """Write a .moetrace; return how long it is. Nothing is left of it after an error.

    Raises LocalMoeError.
    """
    with streamed_engine(request.model, request.settings, progress) as engine:
        layers = {layer.layer: layer for layer in engine.catalog.layers}
        log = RoutingLog(
            layers, request.settings.n_threads, guesses=request.guesses, scores=request.scores
        )
        try:
            engine.watch_routing(log.watch)
            with replaced_file(out) as file:
                n_tokens = write_trace(file, _pieces(request, engine, log, progress))
        except OSError as error:
            raise SettingsError(f"cannot write the trace {out}: {error.strerror}") from error
        finally:
            engine.watch_routing(None)
            log.close()
    return {"tokens": n_tokens, "file_bytes": out.stat().st_size}


def _pieces(
    request: RecordRequest, engine: LlamaEngine, log: RoutingLog, progress: Progress | None
) -> Iterator[Trace]:
    """Decode token by token; yield what was routed, a block at a time."""
    decoded = 0
    for decoded in _decode_all(request, engine, progress):
        if decoded % BLOCK_TOKENS == 0:
            yield _piece(request, engine, log)
    if not decoded:
        raise SettingsError("the prompts have no tokens")
    if decoded % BLOCK_TOKENS:
        yield _piece(request, engine, log)


def _piece(request: RecordRequest, engine: LlamaEngine, log: RoutingLog) -> Trace:
    return replace(
        log.drain(),
        moe_layers=engine.catalog.layers,
        model=Path(request.model).name,
        catalog=catalog_digest(engine.catalog),
    )


def _decode_all(
    request: RecordRequest, engine: LlamaEngine, progress: Progress | None
) -> Iterator[int]:
    """Decode; yield after every token how many there were."""
    prompts = [_tokens(prompt, engine) for prompt in request.prompts]
    total = sum(len(tokens) + request.generate for tokens in prompts)
    total = min(total, request.most_tokens or total)
    done = 0
    for tokens in prompts:
        engine.truncate(0)
        for _ in _decode_one(tokens, request.generate, engine):
            done += 1
            if progress:
                progress("recording", done, total)
            yield done
            if done == total:
                return


def _tokens(prompt: str, engine: LlamaEngine) -> list[int]:
    tokenizer = engine.tokenizer
    start = [tokenizer.bos] if tokenizer.add_bos and tokenizer.bos is not None else []
    tokens = start + tokenizer.encode(prompt)
    return tokens[: engine.plan.context_tokens]


def _decode_one(tokens: Sequence[int], generate: int, engine: LlamaEngine) -> Iterator[None]:
    likeliest = None
    for token in tokens:
        likeliest = int(engine.decode([token])[-1].argmax())
        yield
    for _ in range(generate):
        is_full = engine.position >= engine.plan.context_tokens
        if likeliest is None or is_full or engine.tokenizer.is_end(likeliest):
            return
        likeliest = int(engine.decode([likeliest])[-1].argmax())
        yield
