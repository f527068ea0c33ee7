"""What the loaded llama.cpp was built for."""

from __future__ import annotations

import re

from localmoe.backends.llama.bindings import L

_ON = re.compile(r"(\w+) = 1\b")


def built_features() -> frozenset[str]:
    """Return the instructions and options that it names as in use, such as AVX2 or OPENMP."""
    return frozenset(_ON.findall(L.llama_print_system_info().decode(errors="replace")))
