# Everything sets itself up in .venv on first use: `make run` needs only Python 3.11 or newer, make
# and a C++ compiler. `make help` lists the targets.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Engines in tests use all cores, more than two at once would be in each other's way; threads that
# wait for others must not spin meanwhile.
WORKERS := 2
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)

# Typed text reaches the program as it is: `value` keeps make from expanding a dollar sign, and the
# recipes read these from the environment, so that the shell never parses them.
override PROMPT := $(value PROMPT)
override MODEL := $(value MODEL)
override MEMORY := $(value MEMORY)
override ARGS := $(value ARGS)
export PROMPT MODEL MEMORY

.DEFAULT_GOAL := help
.PHONY: help run test test-all check format bench clean absent

help:
	@echo 'make run                 chat with the embedded demonstration model'
	@echo 'make run PROMPT="..."    answer one prompt and exit'
	@echo '         MODEL=x.gguf    run this model instead'
	@echo '         MEMORY=3GiB     in this much memory, all together'
	@echo 'make bench               decode speed: MODEL and MEMORY as above'
	@echo 'make test                the tests (ARGS="-k name" picks some, WORKERS=0 runs one by one)'
	@echo 'make test-all            those that take long, too: several ranks, interpreted kernels'
	@echo 'make check               ruff and mypy --strict'
	@echo 'make format              let ruff format the sources'
	@echo 'make clean               remove .venv and the caches of the tools'

# A prompt goes in by standard input: it may begin with a dash. Without a terminal an open pipe that
# nobody writes to must not hold up the default question.
run: $(READY)
	@set --; \
	[ -z "$$MODEL" ] || set -- "$$@" "$$MODEL"; \
	[ -z "$$MEMORY" ] || set -- "$$@" --memory "$$MEMORY"; \
	if [ -n "$$PROMPT" ]; then printf '%s\n' "$$PROMPT" | $(BIN)/localmoe run "$$@"; \
	elif [ -t 0 ]; then exec $(BIN)/localmoe run "$$@"; \
	else exec $(BIN)/localmoe run "$$@" </dev/null; fi

bench: $(READY)
	@set --; \
	[ -z "$$MODEL" ] || set -- "$$@" "$$MODEL"; \
	[ -z "$$MEMORY" ] || set -- "$$@" --memory "$$MEMORY"; \
	exec $(BIN)/localmoe bench decode "$$@"

test: $(READY)
	@GOMP_SPINCOUNT=0 $(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist worksteal $(ARGS)

test-all: $(READY)
	@GOMP_SPINCOUNT=0 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

check: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(READY)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The stamp comes last: a set-up that was interrupted is taken up again. Output goes to standard
# error, so that `make run PROMPT=... >answer` holds the answer alone.
$(READY): pyproject.toml hatch_build.py $(wildcard localmoe/native/*.[ch]) $(if $(shell test -x $(BIN)/python && echo yes),,absent)
	@exec >&2; set -eu; rm -f $@; \
	fail() { echo "localmoe: $$*"; exit 1; }; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	    python=; \
	    for name in $(PYTHONS); do \
	        if "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	        then python=$$name; break; fi; \
	    done; \
	    [ -n "$$python" ] || fail 'needs Python 3.11 or newer; looked for: $(PYTHONS).' \
	        'Install one, or name it: make PYTHON=/path/to/python3.11'; \
	    "$$python" -m venv --clear $(VENV) || fail "could not make $(VENV) with $$python." \
	        "On Debian and Ubuntu: apt install python3-venv"; \
	fi; \
	if ! $(BIN)/python -c 'import importlib.util as u; exit(not u.find_spec("llama_cpp"))'; then \
	    for kind in "$${CC:-cc} gcc clang" "$${CXX:-c++} g++ clang++"; do \
	        found=; for name in $$kind; do ! command -v "$$name" >/dev/null || found=$$name; done; \
	        [ -n "$$found" ] || fail "needs a C and C++ compiler to build llama.cpp (looked for:" \
	            "$$kind). Install one, such as Debian's package g++, and try again."; \
	    done; \
	    echo 'localmoe: setting up $(VENV); llama.cpp is compiled once, which takes some minutes'; \
	fi; \
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-input -e '.[dev]' \
	    || fail 'the set-up stopped at the error above; the next make takes it up again'; \
	touch $@
