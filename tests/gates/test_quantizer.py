"""The types of a known model's tensors are those that llama.cpp's own quantizer would choose."""

from __future__ import annotations

import ctypes
import re
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from localmoe.backends.llama import log
from localmoe.backends.llama.bindings import L
from localmoe.synthetic.config import Config
from localmoe.synthetic.drafting import draft_model
from localmoe.synthetic.published import CONFIGS
from localmoe.synthetic.quantization import QUANTIZATIONS, tensor_types
from localmoe.synthetic.writer import write_stand_in

FILE_TYPES = {
    **{"F16": 1, "Q8_0": 7, "Q2_K": 10, "Q3_K_M": 12, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16},
    **{"Q5_K_M": 17, "Q6_K": 18, "IQ2_XXS": 19, "IQ2_M": 29, "IQ4_XS": 30, "BF16": 32, "MXFP4": 38},
}
"""llama.cpp's numbers."""
LINE = re.compile(
    r"\] +(\S+) +- \[[^\]]*\], type = +(\w+), +size = +[\d.]+ MiB(?: -> +[\d.]+ MiB \((\w+)\))?"
)


def chosen_by_llama(
    source: Path, quantization: str, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """Have llama.cpp say what it would do, and do nothing."""
    lines: deque[Any] = deque(maxlen=100_000)
    monkeypatch.setattr(log, "_lines", lines)
    log.clear()
    params = L.llama_model_quantize_default_params()
    params.ftype, params.dry_run, params.nthread = FILE_TYPES[quantization], True, 1
    target = source.with_suffix(".out")
    assert (
        L.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
        == 0
    )
    text = " ".join(log.lines())
    return {m[1]: (m[3] or m[2]).upper() for m in LINE.finditer(text)}


def small(config: Config) -> Config:
    """Keep what the rules look at: layers, rows of matrices, heads; not the vocabulary."""
    return replace(config, vocabulary=64, layers=min(config.layers, 24))


@pytest.mark.parametrize("name", CONFIGS)
def test_types_are_those_of_llama_cpps_quantizer(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(CONFIGS[name])
    source = tmp_path / "model.gguf"
    write_stand_in(source, config, "BF16")
    tensors = draft_model(config).tensors
    for quantization in QUANTIZATIONS:
        types = tensor_types(config, tensors, quantization)
        found = dict(zip([tensor.name for tensor in tensors], types, strict=True))
        assert found == chosen_by_llama(source, quantization, monkeypatch), quantization
