"""Published models by name, however it is written."""

from __future__ import annotations

from difflib import get_close_matches

from localmoe.errors import SettingsError
from localmoe.synthetic.config import Config
from localmoe.synthetic.published import CONFIGS

_ALIASES = {
    **dict.fromkeys(("deepseek-v3", "deepseek-v3.1", "deepseek-r1-0528"), "deepseek-r1"),
    **dict.fromkeys(("kimi-k2-thinking", "kimi-k2.5", "kimi-k2.6"), "kimi-k2"),
    **dict.fromkeys(("glm-4.5", "glm-4.6"), "glm-4.7"),
    **dict.fromkeys(("glm-5.1",), "glm-5"),
    **dict.fromkeys(("llama-4-scout", "llama4-scout-17b-16e"), "llama4-scout"),
    **dict.fromkeys(("llama-4-maverick", "llama4-maverick-17b-128e"), "llama4-maverick"),
    **{"olmoe-1b-7b": "olmoe", "qwen3-30b": "qwen3-30b-a3b", "qwen3-235b": "qwen3-235b-a22b"},
    **{"qwen3-coder": "qwen3-coder-480b", "qwen3-next": "qwen3-next-80b"},
    **{"qwen3-coder-480b-a35b": "qwen3-coder-480b", "qwen3-next-80b-a3b": "qwen3-next-80b"},
    **{"trinity-large-thinking": "trinity-large", "trinity-large-preview": "trinity-large"},
}


def known_name(text: str) -> str | None:
    """Return the name in CONFIGS that is meant, however it is written; None: no such model."""
    name = text.strip().lower().replace("_", "-").replace(" ", "-")
    name = _ALIASES.get(name, name)
    return name if name in CONFIGS else None


def near_names(text: str) -> list[str]:
    """Return known names that look like this one, the nearest first."""
    every = {**{name: name for name in CONFIGS}, **_ALIASES}
    return list(dict.fromkeys(get_close_matches(text.strip().lower(), every, n=3, cutoff=0.5)))


def config_named(text: str) -> Config:
    """Return a model's configuration. Raises SettingsError, which names near ones."""
    name = known_name(text)
    if name is None:
        near = near_names(text)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise SettingsError(f"there is no known model {text!r}. {hint}Known: {', '.join(CONFIGS)}")
    return CONFIGS[name]
