"""Modelling files of transformers with streamable experts that have no tiny checkpoint, and why."""

from __future__ import annotations

LEFT_OUT: dict[str, str] = {
    "deepseek_ocr2": "It reads pictures of pages with an encoder that is itself a language model.",
    "diffusion_gemma": "It writes blocks by diffusion, not one token after another.",
    "openai_privacy_filter": "It labels the tokens of a text and writes none.",
    "unlimited_ocr": "It reads pictures of pages and has no text model of its own.",
}
"""By the folder in transformers/models."""
