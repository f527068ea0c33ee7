"""One side of a benchmark in a process of its own: a request as argument, JSON as answer."""

from __future__ import annotations

import json
import sys

from localmoe.bench.request import DecodeRequest, PeerRequest
from localmoe.errors import LocalMoeError


def answer(kind: str, text: str) -> dict[str, object]:
    """Do what the request asks; an error of ours becomes its message."""
    values = json.loads(text)
    try:
        if kind == "peer":
            from localmoe.bench.plain_llama import measure_peer

            report = measure_peer(PeerRequest.from_json(values))
        else:
            from localmoe.bench.decode import measure_decode

            report = measure_decode(DecodeRequest.from_json(values))
    except LocalMoeError as error:
        return {"error": str(error)}
    from localmoe.cli.stats_file import peak_rss_bytes

    return {**report, "peak_rss_bytes": peak_rss_bytes()}


if __name__ == "__main__":
    print(json.dumps(answer(sys.argv[1], sys.argv[2])))
