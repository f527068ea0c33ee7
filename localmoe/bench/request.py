"""What a benchmark process is asked to do; travels as JSON. Imports nothing large."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from localmoe.settings import KvType, Settings

PeerName = Literal["mmap", "ram"]


@dataclass(frozen=True)
class DecodeRequest:
    """Decode `tokens` tokens after a prompt of `prompt_tokens`, with localmoe."""

    model: str
    settings: Settings = field(default_factory=Settings)
    tokens: int = 64
    prompt_tokens: int = 32
    device_seconds: float = 1.0
    """How long the device's bandwidth is measured."""
    hash_after: tuple[int, ...] = ()
    """Numbers of tokens after which the logits are hashed too, to be compared with a peer's."""
    warm_up_tokens: int = 0
    """Tokens decoded one by one after the prompt that no figure counts.

    After the first of them the benchmark waits until every slot of the plan may be used."""
    text: str | None = None
    """Path of a text whose tokens are the stream; None: `bench.tokens.token_stream`."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Rebuild what `to_json` gave."""
        settings = Settings(**values["settings"])
        return cls(**{**values, "settings": settings, "hash_after": tuple(values["hash_after"])})


@dataclass(frozen=True)
class PrefillRequest:
    """Read a prompt of so many tokens with localmoe, in an engine that has decoded nothing."""

    model: str
    settings: Settings = field(default_factory=Settings)
    prompt_tokens: int = 512
    device_seconds: float = 1.0
    """How long the device's bandwidth is measured."""


@dataclass(frozen=True)
class PeerRequest:
    """The same with plain llama.cpp.

    `name`: "mmap" is its default, weights left in the mapped file; "ram" reads all of them into
    memory and keeps the file's layout.
    """

    model: str
    name: PeerName
    tokens: int
    prompt_tokens: int
    context_tokens: int
    chunk_tokens: int
    threads: int
    experts_used: int | None = None
    kv_type: KvType = "f16"

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Rebuild what `to_json` gave."""
        return cls(**values)
