"""`localmoe run`: options in, one call out."""

from __future__ import annotations

from pathlib import Path

from localmoe.cli.hosts import Hosts, ranks_for
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
from localmoe.cli.request import Request, read_request
from localmoe.cli.run_options import (
    Effort,
    GrammarFile,
    MaxTokens,
    MinP,
    Model,
    Profile,
    Prompt,
    Raw,
    RunOptions,
    SchemaFile,
    Seed,
    ShowThoughts,
    StatsFile,
    System,
    Temperature,
    Think,
    ThoughtOptions,
    ThoughtsKept,
    TopK,
    TopP,
    sampling_flags,
)

HELP = """Answer a prompt, or chat.

Without MODEL the embedded demonstration model runs. A single argument is a MODEL if it is an \
existing path, ends in .gguf or names a model that was pulled (OWNER/REPO[:QUANT]), else a PROMPT. \
What comes on standard input is added to the prompt. With neither, on a terminal, a chat opens; \
/help lists its commands. Where the model file has its own sampling values, they are the defaults.

\b
Examples:
  localmoe run                                    chat with the demonstration model
  localmoe run "Why is the sky blue?"             answer and exit
  localmoe run big.gguf --memory 8GiB             chat with a large model in 8 GiB
  localmoe run big.gguf --kv-type q8_0            remember the chat in half the memory
  localmoe run ggml-org/gpt-oss-120b-GGUF         a model that localmoe pull has fetched
  localmoe run big.gguf "Summarize:" < notes.txt  a prompt and a file
  localmoe run big.gguf --no-think "2 + 2?"       answer without thinking first
  localmoe run checkpoint/ --hosts hosts.json     an MLX checkpoint on several machines
  localmoe run big.gguf --schema s.json "..."     answer with JSON of that form
"""


def run(  # noqa: PLR0913 (the command line's options are this function's parameters)
    model: Model = None,
    prompt: Prompt = None,
    memory: Memory = None,
    context: Context = 4096,
    kv_type: KvTypes = KvTypeName.F16,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    seed: Seed = None,
    system: System = None,
    threads: Threads = None,
    stats: StatsFile = None,
    raw: Raw = False,
    think: Think = None,
    effort: Effort = None,
    thoughts: ThoughtsKept = None,
    show_thoughts: ShowThoughts = None,
    schema: SchemaFile = None,
    grammar: GrammarFile = None,
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
    """Read the request, then load and answer."""
    request = read_request(model, prompt)
    options = RunOptions(
        settings=engine_settings(
            *(memory, context, kv_type, threads, engine, device, vram, cpu_experts),
            *(policy, experts_used, mirror),
        ),
        profile=profile,
        max_tokens=max_tokens,
        sampling=sampling_flags(temperature, top_k, top_p, min_p, seed),
        system=system,
        raw=raw,
        thoughts=ThoughtOptions(think, effort, thoughts, show_thoughts),
        schema_path=schema,
        grammar_path=grammar,
        stats_path=stats,
    )
    _execute(request, options, hosts)


def _execute(request: Request, options: RunOptions, hosts: Path | None) -> None:
    """Start other machines and what takes its time, then answer."""
    from localmoe.backends.opening import opening

    with (
        ranks_for(hosts) as ranks,
        opening(request.model, options.settings.engine) as open_it,
    ):
        # Engine, template and terminal libraries take their time to import; the child does it, too.
        from localmoe.cli.runner import execute

        execute(request, options.with_ranks(ranks), open_it)
