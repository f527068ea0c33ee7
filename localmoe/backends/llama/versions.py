"""Which engine localmoe was tested with. Imports nothing: who asks may not have it."""

TESTED_VERSIONS = ("0.3.36",)
"""Of llama-cpp-python."""
INSTALL = f"pip install llama-cpp-python=={TESTED_VERSIONS[-1]}"
