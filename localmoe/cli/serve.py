"""`localmoe serve`: options in, one call out."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from localmoe.cli.hosts import Hosts, ranks_for
from localmoe.cli.model_argument import ModelFile, model_title
from localmoe.cli.options import (
    Context,
    CpuExperts,
    Devices,
    Engines,
    ExpertsUsed,
    KvTypeName,
    KvTypes,
    Memory,
    Mirrors,
    Policies,
    PolicyKind,
    Threads,
    Vram,
    engine_settings,
)
from localmoe.cli.run_options import (
    MaxTokens,
    MinP,
    Profile,
    RunOptions,
    Seed,
    Temperature,
    TopK,
    TopP,
    sampling_flags,
)
from localmoe.cli.serve_options import (
    API_KEY_VARIABLE,
    AllowOrigins,
    ApiKey,
    ApiKeyFile,
    Host,
    MaxRequestSize,
    Names,
    Port,
    Queue,
    Sessions,
    SessionsCount,
    SessionsSize,
)
from localmoe.errors import SettingsError
from localmoe.weights.checkpoint_kind import is_safetensors

if TYPE_CHECKING:
    from localmoe.server.options import ServerOptions

HELP = """Serve a model over HTTP, and a page to chat with it.

Clients of OpenAI's API (/v1/chat/completions, /v1/completions, /v1/responses) and of Anthropic's \
(/v1/messages) work as they are. Without MODEL the embedded demonstration model is served. \
Answers are given one at a time, in turn. The page at / shows which experts are used meanwhile. \
Options of sampling are for requests that do not say.

\b
Examples:
  localmoe serve                                 then open http://127.0.0.1:8080
  localmoe serve big.gguf --memory 8GiB --sessions ~/.localmoe-sessions
  LOCALMOE_API_KEY=... localmoe serve big.gguf --host 0.0.0.0

\b
  curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{"model": "demo", "messages": [{"role": "user", "content": "Hello!"}]}'

\b
  from openai import OpenAI
  client = OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="none")
  client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "Hello!"}])
"""
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_DEFAULT_REQUEST_NBYTES = 32 << 20
_DEFAULT_SESSIONS_NBYTES = 8 << 30


def serve(  # noqa: PLR0913 (the command line's options are this function's parameters)
    model: ModelFile = None,
    host: Host = "127.0.0.1",
    port: Port = 8080,
    name: Names = None,
    api_key: ApiKey = None,
    api_key_file: ApiKeyFile = None,
    allow_origin: AllowOrigins = None,
    queue: Queue = 32,
    max_request_size: MaxRequestSize = None,
    sessions: Sessions = None,
    sessions_size: SessionsSize = None,
    sessions_count: SessionsCount = 64,
    memory: Memory = None,
    context: Context = 4096,
    kv_type: KvTypes = KvTypeName.F16,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    seed: Seed = None,
    threads: Threads = None,
    engine: Engines = None,
    device: Devices = None,
    vram: Vram = None,
    cpu_experts: CpuExperts = False,
    policy: Policies = PolicyKind.NEXT_USE,
    profile: Profile = True,
    experts_used: ExpertsUsed = None,
    mirror: Mirrors = None,
    hosts: Hosts = None,
) -> None:
    """Check the options, then load and serve."""
    from localmoe.server.options import ServerOptions

    server = ServerOptions(
        host=host,
        port=port,
        names=default_names(model, name or []),
        api_keys=_keys(api_key, api_key_file),
        allow_origins=tuple(allow_origin or ()),
        max_request_bytes=max_request_size or _DEFAULT_REQUEST_NBYTES,
        max_queue=queue,
        max_tokens=max_tokens,
        sampling=sampling_flags(temperature, top_k, top_p, min_p, seed),
        sessions=sessions.expanduser() if sessions else None,
        max_session_bytes=sessions_size or _DEFAULT_SESSIONS_NBYTES,
        max_sessions=sessions_count,
    )
    options = RunOptions(
        settings=engine_settings(
            *(memory, context, kv_type, threads, engine, device, vram, cpu_experts),
            *(policy, experts_used, mirror),
        ),
        profile=profile,
        max_tokens=max_tokens,
    )
    _execute(model, server, options, hosts)


def _execute(
    model: Path | None, server: ServerOptions, options: RunOptions, hosts: Path | None
) -> None:
    """Start the child that plans, and import what takes its time meanwhile."""
    from localmoe.backends.opening import opening

    with ranks_for(hosts) as ranks, opening(model, options.settings.engine) as open_it:
        from localmoe.cli.serving import execute

        execute(
            model,
            server,
            options.with_ranks(ranks),
            open_it,
        )


def default_names(model: Path | None, given: list[str]) -> tuple[str, ...]:
    """Return what the model may be called, its own name first."""
    if any(name != "*" for name in given):
        return tuple(sorted(given, key=lambda name: name == "*"))
    return (_own_name(model) or "demo", *given)


def _own_name(model: Path | None) -> str:
    if model is None:
        return ""
    if is_safetensors(model):
        return model_title("", model)
    return _SHARD.sub("", model.name.removesuffix(".gguf"))


def _keys(key: str | None, path: Path | None) -> tuple[str, ...]:
    from localmoe.server.options import read_keys

    keys = read_keys(path) if path else ()
    # An empty variable is none to the parser; whoever set it believes that there is a key.
    if key == "" or (key is None and os.environ.get(API_KEY_VARIABLE) == ""):
        raise SettingsError(f"the API key is empty: give one, or unset {API_KEY_VARIABLE}")
    return (*keys, key) if key else keys
