"""A rank above 0: silent, it does what rank 0 says."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile

from localmoe.cli.options import profile_dir
from localmoe.errors import SettingsError
from localmoe.settings import Ranks, Settings


def follow_started() -> None:
    """Run as `localmoe run --hosts` has started this: who it is comes on standard input."""
    try:
        said = json.loads(sys.stdin.buffer.readline())
        ranks = Ranks(**{**said["ranks"], "names": tuple(said["ranks"]["names"])})
        nodes = json.dumps(said["nodes"])
    except (ValueError, LookupError, TypeError) as error:
        raise SettingsError("`localmoe follow` is for localmoe itself: see --hosts") from error
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(nodes)
        file.flush()
        os.environ.update({"MLX_RANK": str(ranks.rank), "MLX_HOSTFILE": file.name})
        follow(ranks)


def follow(ranks: Ranks) -> None:
    """Be this rank until rank 0 ends. Raises LocalMoeError."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for rank 0, which tells the others
    from localmoe.backends.opening import follow_rank

    follow_rank(Settings(ranks=ranks, profile_dir=profile_dir()))
