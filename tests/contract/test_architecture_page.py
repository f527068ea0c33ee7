"""docs/architectures.md says what is in the zoo now."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "architecture_table.py"


def test_the_page_of_architectures_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False
    )
    # Standard error names the command that writes the page.
    assert done.returncode == 0, done.stderr
