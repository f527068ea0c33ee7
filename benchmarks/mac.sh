#!/usr/bin/env bash
# Measures the MLX engine on this machine: one JSON on standard output, how it goes on standard error.
#
#     benchmarks/mac.sh > mac.json        # on a Mac: under 15 minutes, set-up included
#     benchmarks/mac.sh --tiny            # whether it all runs, on any system with MLX
#
# PYTHON names another Python than .venv/bin/python; it is taken if it has all that is needed, and
# otherwise makes .venv. The other options are those of benchmarks/mac.py.
set -eu
cd "$(dirname "$0")/.."
began=$(date +%s)
python=${PYTHON:-.venv/bin/python}
has_all() {
    "$1" -c 'from importlib.util import find_spec as f
exit(not all(map(f, ("llama_cpp", "mlx_lm", "psutil", "pytest"))))' 2>/dev/null
}

if ! has_all "$python"; then
    echo 'setting up .venv; llama.cpp is compiled once, which takes some minutes' >&2
    [ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv >&2
    .venv/bin/python -m pip install -q --disable-pip-version-check --no-input -e '.[mlx]' pytest >&2
    python=.venv/bin/python
fi
exec "$python" benchmarks/mac.py --began "$began" "$@"
