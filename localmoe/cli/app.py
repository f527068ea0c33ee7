"""The command `localmoe`: its subcommands, and how every error ends."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import Annotated

import typer

from localmoe import LocalMoeError, LostRankError, __version__
from localmoe.backends.ranks.joined import has_joined
from localmoe.cli import bench, doctor, follow, inspect, models, plan, pull, run, serve, trace
from localmoe.cli.hosts import launched_ranks
from localmoe.cli.terminal import discard_output, error_line

_EXIT_ERROR = 1
_EXIT_INTERRUPTED = 128 + signal.SIGINT

app = typer.Typer(
    name="localmoe",
    help="Run Mixture-of-Experts models that are larger than memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Boxes and colours are for people.
    rich_markup_mode="rich" if sys.stdout is not None and sys.stdout.isatty() else None,
)
app.command("run", help=run.HELP)(run.run)
app.command("serve", help=serve.HELP)(serve.serve)
app.command("pull", help=pull.HELP)(pull.pull)
app.command("list", help=models.LIST_HELP)(models.list_models)
app.command("remove", help=models.REMOVE_HELP)(models.remove)
app.command("inspect", help=inspect.HELP)(inspect.inspect_model)
app.command("plan", help=plan.HELP)(plan.plan)
app.command("doctor", help=doctor.HELP)(doctor.doctor)
app.command("follow", hidden=True)(follow.follow_started)
app.add_typer(bench.app, name="bench")
app.add_typer(trace.app, name="trace")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"localmoe {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Take the options that stand before a command."""


def main() -> None:
    """Run the command line and exit: 0, 1 for an error, 2 for wrong usage, 130 after Ctrl-C."""
    try:
        _run()
    except SystemExit as ended:
        if not has_joined():
            raise
        with suppress(BrokenPipeError):  # who read it has seen enough
            sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended.code if isinstance(ended.code, int) else int(ended.code is not None))


def _run() -> None:
    try:
        ranks = launched_ranks()
        if ranks and ranks.rank > 0:
            follow.follow(ranks)
            sys.exit(0)
        else:
            app(prog_name="localmoe")
    except LostRankError as error:
        error_line(str(error))
        sys.stdout.flush()
        os._exit(_EXIT_ERROR)  # a thread may wait forever for what is gone
    except LocalMoeError as error:
        error_line(str(error))
        sys.exit(_EXIT_ERROR)
    except KeyboardInterrupt:
        sys.exit(_EXIT_INTERRUPTED)
    except BrokenPipeError:
        discard_output()
        sys.exit(_EXIT_ERROR)
