"""Every syntax for calls of tools, by name."""

from __future__ import annotations

from localmoe.chat.tools.format import CallFormat
from localmoe.chat.tools.json_calls import DeepSeek, Hermes, Kimi, Mistral
from localmoe.chat.tools.llama import Llama
from localmoe.chat.tools.tag_calls import Dsml, Glm, QwenCoder

FORMATS: dict[str, CallFormat] = {
    "hermes": Hermes(),
    "qwen3_coder": QwenCoder(),
    "glm": Glm(),
    "glm-lines": Glm(lines=True),
    "kimi": Kimi(),
    "deepseek": DeepSeek(),
    "deepseek-fenced": DeepSeek(fenced=True),
    "dsml": Dsml(),
    "dsml-functions": Dsml("function_calls"),
    "mistral": Mistral(),
    "mistral-list": Mistral(listed=True),
    "llama": Llama(),
}
