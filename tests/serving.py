"""A server in this process, on a free port, for clients that speak HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from localmoe.backends.base import Engine
from localmoe.chat.dialect import dialect_for
from localmoe.server.options import ServerOptions
from localmoe.server.running import Server, bind, url_of
from localmoe.server.service import Service

HERMES = """\
{%- if tools %}{{ '<|im_start|>system\n<tools>' }}{% for tool in tools %}{{ tool | tojson }}\
{% endfor %}{{ '</tools> call with <tool_call>{}</tool_call><|im_end|>\n' }}{% endif -%}
{% for message in messages -%}
{{ '<|im_start|>' + message.role + '\n' }}
{%- if message.reasoning_content %}{{ '<think>' + message.reasoning_content + '</think>' }}\
{% endif -%}
{{ message.content or '' }}
{%- for call in message.tool_calls or [] %}\
{{ '<tool_call>' + (call.function | tojson) + '</tool_call>' }}{% endfor -%}
{{ '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}\
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}{% endif %}\
{% endif %}"""
"""A template of a family that thinks and calls tools as Hermes does."""

USER = [{"role": "user", "content": "hi"}]


@dataclass
class Served:
    """What a test sees of a server."""

    url: str
    service: Service
    server: Server

    @property
    def api(self) -> str:
        """Where OpenAI's clients look."""
        return f"{self.url}/v1"


@contextmanager
def served(engine: Engine, *, drive_rate: float | None = None, **options: Any) -> Iterator[Served]:
    """Serve an engine until the block ends; the engine stays open."""
    wanted = ServerOptions(**{"port": 0, "names": ("tiny",), **options})
    dialect, _ = dialect_for(engine)
    service = Service(engine, dialect, wanted, lambda: 1 << 20, drive_rate)
    listener = bind(wanted)
    ready = threading.Event()
    server = Server(service, ready.set)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            server.run_on(listener)
        except BaseException as failure:
            failures.append(failure)
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(30)
    try:
        yield Served(url_of(listener), service, server)
    finally:
        server.end()
        thread.join(30)
        listener.close()
        assert not thread.is_alive()
        assert not failures, failures
