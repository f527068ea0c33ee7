"""What `import localmoe` promises."""

from __future__ import annotations

import subprocess
import sys

import localmoe
from localmoe import errors


def test_all_is_sorted_and_importable() -> None:
    assert localmoe.__all__ == sorted(localmoe.__all__)
    assert len(set(localmoe.__all__)) == len(localmoe.__all__)
    for name in localmoe.__all__:
        assert getattr(localmoe, name) is not None
        assert not name.startswith("_") or name == "__version__"


def test_the_door_has_what_a_program_needs() -> None:
    assert {"LocalMoeError", "Settings", "load"} <= set(localmoe.__all__)


def test_every_error_is_a_localmoe_error() -> None:
    kinds = [value for value in vars(errors).values() if isinstance(value, type)]
    raised = [kind for kind in kinds if issubclass(kind, Exception)]
    assert len(raised) > 5
    assert all(issubclass(kind, errors.LocalMoeError) for kind in raised)
    assert all(kind.__doc__ for kind in raised)


def test_importing_says_nothing_and_starts_nothing() -> None:
    code = "import threading, localmoe; assert threading.active_count() == 1"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
