"""Send 2,000 requests to a server that are made up from its own description; none may be a 500.

    python scripts/fuzz_server.py [--requests 2000]

Half of them are as the description wants them, half are not. The engine is a script, so that it is
the server that is tried.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import httpx  # noqa: E402

from scripted import ScriptedEngine  # noqa: E402
from server_schema import try_all  # noqa: E402
from serving import HERMES, served  # noqa: E402

ROUTES_WITH_A_BODY = 5


def main() -> None:
    """Try, and say what was answered."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=2000)
    wanted = parser.parse_args().requests
    answers: Counter[tuple[str, int]] = Counter()
    failures: list[str] = []

    def note(label: str, response: httpx.Response) -> None:
        answers[label, response.status_code] += 1
        if response.status_code >= 500:
            failures.append(
                f"{label}: {response.text[:300]}\n  {response.request.content[:1000]!r}"
            )

    engine = ScriptedEngine(script=lambda prompt: "ok", chat_template=HERMES)
    with served(engine) as server:
        sent = try_all(server.url, -(-wanted // ROUTES_WITH_A_BODY), note)
    for (label, status), count in sorted(answers.items()):
        print(f"{count:6} {status} {label}")
    print(f"{sent} requests, {len(failures)} failures")
    print(*failures[:10], sep="\n")
    sys.exit(bool(failures) or sent < wanted)


if __name__ == "__main__":
    main()
