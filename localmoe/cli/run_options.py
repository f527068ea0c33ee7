"""The options that only `localmoe run` has."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from localmoe.settings import Ranks, Settings

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="A GGUF file (any shard), or OWNER/REPO[:QUANT] that was pulled.",
    ),
]
Prompt = Annotated[
    str | None,
    typer.Argument(metavar="PROMPT", show_default=False, help="What to answer."),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Longest answer in tokens. Default: as long as there is room in the context; 400 "
        "for the demonstration model.",
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        min=0,
        max=100,
        help="0 always takes the likeliest token. Default: 0.8.",
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        metavar="K",
        min=0,
        help="Choose among the k likeliest; 0: all. Default: 40.",
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        min=0,
        max=1,
        help="Choose among the likeliest that together reach this. Default: 0.95.",
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        min=0,
        max=1,
        help="Drop what is below this share of the likeliest. Default: 0.05.",
    ),
]
Seed = Annotated[
    int | None, typer.Option(metavar="N", min=0, help="The same seed gives the same answer.")
]
System = Annotated[str | None, typer.Option(metavar="TEXT", help="The system message.")]
StatsFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write speed, hits and memory to this file, as JSON."),
]
Raw = Annotated[
    bool,
    typer.Option("--raw", help="Send the prompt as plain text, without a chat template."),
]

Profile = Annotated[
    bool,
    typer.Option(
        "--profile/--no-profile",
        help="Remember which experts of a model were used, and begin the next run with them.",
    ),
]

Think = Annotated[
    bool | None,
    typer.Option(
        "--think/--no-think",
        help="Turn the model's thinking on or off, where its template can. Default: as the "
        "template has it.",
        show_default=False,
    ),
]
Effort = Annotated[
    str | None,
    typer.Option(
        metavar="WORD",
        help="How much to think, where the template knows that: low, medium, high.",
    ),
]


class ThoughtsKind(StrEnum):
    """What `chat.request.Thoughts` names."""

    KEEP = "keep"
    STRIP = "strip"
    TOOL_LOOP = "tool-loop"


ThoughtsKept = Annotated[
    ThoughtsKind | None,
    typer.Option(
        "--thoughts",
        help="Which of its earlier thoughts the model sees: all, none, or those since the last "
        "question. Default: what its family was trained for.",
        show_default=False,
    ),
]
ShowThoughts = Annotated[
    bool | None,
    typer.Option(
        "--show-thoughts/--hide-thoughts",
        help="Show what the model thinks: dim on a terminal, between <think> and </think> in a "
        "pipe. Default: on a terminal only.",
        show_default=False,
    ),
]
SchemaFile = Annotated[
    Path | None,
    typer.Option("--schema", metavar="FILE", help="Answer with JSON that this schema allows."),
]
GrammarFile = Annotated[
    Path | None,
    typer.Option("--grammar", metavar="FILE", help="Answer with what this Lark grammar allows."),
]


@dataclass(frozen=True)
class ThoughtOptions:
    """What was told of thoughts; None: not told."""

    thinks: bool | None = None
    effort: str | None = None
    kept: ThoughtsKind | None = None
    shown: bool | None = None


@dataclass(frozen=True)
class RunOptions:
    """What `localmoe run` was told besides the model and the prompt; None: not told."""

    settings: Settings = Settings()
    """Of the engine; what the machine and its folders add is not in it yet."""
    profile: bool = True
    max_tokens: int | None = None
    sampling: dict[str, float | None] = field(default_factory=dict)
    """What `sampling_flags` returns."""
    system: str | None = None
    raw: bool = False
    thoughts: ThoughtOptions = ThoughtOptions()
    schema_path: Path | None = None
    grammar_path: Path | None = None
    stats_path: Path | None = None

    def with_ranks(self, ranks: Ranks | None) -> RunOptions:
        """Return the same for an engine on these machines."""
        return replace(self, settings=replace(self.settings, ranks=ranks))


def sampling_flags(
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    seed: int | None,
) -> dict[str, float | None]:
    """Return the flags that choose the next token, by name; None: not given."""
    return {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "seed": seed,
    }
