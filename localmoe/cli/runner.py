"""From a request to answers: load, open a session, answer or chat, write the figures."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from localmoe import Settings
from localmoe.backends.base import Engine, WatchedEngine
from localmoe.backends.opening import Open
from localmoe.chat.dialect import Dialect, dialect_for
from localmoe.chat.sampling import Sampler, SamplingOptions
from localmoe.chat.session import AnswerOptions, ChatSession
from localmoe.chat.templates import PlainText
from localmoe.cli.answer_form import read_form
from localmoe.cli.answering import show_answer, summary
from localmoe.cli.demo import demo_model_path
from localmoe.cli.options import figures_dir, profile_dir
from localmoe.cli.progress import progress_bar
from localmoe.cli.request import Request
from localmoe.cli.run_options import RunOptions, ThoughtOptions
from localmoe.cli.stats_file import check_writable, stats_of, write_stats
from localmoe.cli.terminal import dim_line
from localmoe.errors import SettingsError
from localmoe.native.library import library
from localmoe.planning.figures import find_figures
from localmoe.planning.this_machine import PART_NBYTES

DEFAULT_ANSWER_TOKENS = 400
"""For answers that nobody asked for, and for the demonstration model, which may find no end."""
_MOST_READ_WORKERS = 16
_DEMO_NOTE = "A small demonstration model. A large one: localmoe run FILE.gguf --memory 8GiB"

_NOT_COMPILED_NOTE = (
    "The callback for single tokens was not compiled: they take longer. With a C compiler there, "
    "install localmoe again."
)


def execute(request: Request, options: RunOptions, open_it: Open) -> None:
    """Do what was asked. Raises LocalMoeError; KeyboardInterrupt when one answer was broken off.

    `open_it` is that of `backends.opening`, begun before all of this was imported.
    """
    _check(options)
    bounded = request.asks_default or request.model is None
    if bounded and options.max_tokens is None:
        options = replace(options, max_tokens=DEFAULT_ANSWER_TOKENS)
    with open_engine(request.model, options, open_it) as engine:
        session = _session(engine, options)
        try:
            if request.prompt is None:
                from localmoe.cli.chat_ui import Chat  # takes its time, and is needed now

                Chat(session, engine, shows_thoughts=options.thoughts.shown is not False).run()
            else:
                if request.asks_default:
                    dim_line(f"No prompt was given, so this is asked: {request.prompt}")
                _answer_once(session, engine, request.prompt, options.thoughts.shown)
        finally:
            if options.stats_path:
                write_stats(options.stats_path, stats_of(engine, session.usage))


def _check(options: RunOptions) -> None:
    """Raise SettingsError for what would fail after a long load."""
    SamplingOptions.merged(options.sampling, {})
    if options.raw and options.system:
        raise SettingsError(
            "--system needs a chat template, and --raw sends none: drop one of them"
        )
    if options.raw and options.thoughts != ThoughtOptions():
        raise SettingsError(
            "thoughts are told from answers by the chat template, and --raw sends none: drop one "
            "of them"
        )
    read_form(options)
    if options.stats_path:
        check_writable(options.stats_path)


@contextmanager
def open_engine(model: Path | None, options: RunOptions, open_it: Open) -> Iterator[Engine]:
    """Load the model that the options name, the demonstration model for None, and close it."""
    path = model or demo_model_path()
    settings = replace(
        options.settings,
        profile_dir=profile_dir() if options.profile else None,
        read_workers=read_workers(path),
    )
    with progress_bar() as progress:
        engine = open_it(path, settings, progress)
    with engine:
        if model is None:
            dim_line(_DEMO_NOTE)
        if engine.plan.streams and library() is None:
            dim_line(_NOT_COMPILED_NOTE)
        yield engine


def read_workers(model: Path) -> int:
    """Return how many reads a drive takes at once best, as it was measured; else the default."""
    try:
        figures = find_figures(figures_dir(), model)
    except SettingsError as error:  # they serve speed alone: not worth ending a run
        dim_line(str(error))
        return Settings.read_workers
    reads = figures.read_rates if figures else None
    depth = reads.best_depth(PART_NBYTES) if reads else None
    return min(depth, _MOST_READ_WORKERS) if depth else Settings.read_workers


def drive_rate(engine: WatchedEngine) -> float | None:
    """Return the bytes per second of reads of the model's experts; None: they were not measured."""
    catalog = engine.catalog
    parts = sum(len(layer.parts) * layer.n_experts for layer in catalog.layers)
    try:
        figures = find_figures(figures_dir(), Path(catalog.paths[0]))
    except SettingsError:  # told when the engine was opened
        return None
    reads = figures.read_rates if figures else None
    return reads.rate(catalog.expert_nbytes / parts) if reads and parts else None


def _session(engine: Engine, options: RunOptions) -> ChatSession:
    dialect = Dialect(PlainText())
    if not options.raw:
        dialect, note = dialect_for(engine)
        if note:
            dim_line(note)
    thoughts = options.thoughts
    sampling = SamplingOptions.merged(options.sampling, engine.generation_defaults)
    return ChatSession(
        engine,
        dialect,
        sampler=Sampler(sampling),
        system=options.system,
        options=AnswerOptions(
            max_tokens=options.max_tokens,
            response_format=read_form(options),
            template_options=dialect.thinking_options(thoughts.thinks, thoughts.effort),
            thoughts=thoughts.kept.value if thoughts.kept else None,
        ),
    )


def _answer_once(
    session: ChatSession, engine: Engine, prompt: str, shows_thoughts: bool | None
) -> None:
    from localmoe.cli.render import view_for

    answer, interrupts = show_answer(session, prompt, view_for(sys.stdout, shows_thoughts))
    if sys.stderr.isatty():
        dim_line(summary(engine, answer) or "(the model said nothing)")
    if interrupts:
        raise KeyboardInterrupt
