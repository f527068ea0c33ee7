"""The layers of the package hold: who may import whom, and who may talk to the outside."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "localmoe"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# From the outside in: each may import itself, what stands to its right, and ANYWHERE.
ORDER = ("cli", "server", "chat", "backends", "prediction", "cache", "weights", "native")
ANYWHERE = ("closing", "errors", "replacing", "settings")
# Beside that line: planning counts bytes, demo builds a file, the doctor looks at the system, the
# door opens everything but cli.
ALSO: dict[str, tuple[str, ...]] = {
    "cli": ("planning", "demo", "doctor", "bench", "lab", "synthetic", ""),
    "server": ("planning",),
    "backends": ("planning",),
    "planning": ("planning", "cache", "weights"),
    "bench": (
        *("bench", "lab", "synthetic", "backends"),
        *("prediction", "cache", "weights", "planning"),
    ),
    "lab": ("lab", "synthetic", "prediction", "cache", "weights", "planning"),
    "demo": ("demo", "weights"),
    "doctor": ("doctor", "backends", "native", "cache", "planning", "demo"),
    "synthetic": ("synthetic", "weights"),
    "": ("backends", "planning", "chat", "weights", "cache"),
    "__main__": ("cli",),
}


def module_name(path: Path) -> str:
    """Return a file's module below localmoe, such as cache.slots; "" is the public door."""
    return (
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        .removesuffix("__init__")
        .rstrip(".")
    )


def imports_of(path: Path) -> Iterator[str]:
    """Yield every module a file imports, wherever in the file; names from `from` included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative imports hide the direction"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def internal(path: Path) -> set[str]:
    """Return the localmoe modules that a file imports, without the prefix."""
    names = {name for name in imports_of(path) if f"{name}.".startswith("localmoe.")}
    inside = {name.removeprefix("localmoe").lstrip(".") for name in names}
    return {name for name in inside if name.split(".")[0] in LAYERS or not name}


LAYERS = {path.name for path in PACKAGE.iterdir() if path.is_dir()} | set(ANYWHERE)


def allowed(layer: str) -> tuple[str, ...]:
    inward = ORDER[ORDER.index(layer) :] if layer in ORDER else ()
    return (*inward, *ALSO.get(layer, ()), *ANYWHERE)


def layer_of(module: str) -> str:
    return module.split(".")[0]


def below(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(f"{module}.".startswith(f"{prefix}.") for prefix in prefixes if prefix) or (
        module == "" and "" in prefixes
    )


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_one_way(path: Path) -> None:
    module = module_name(path)
    layer = layer_of(module)
    assert layer in (*ORDER, *ALSO, *ANYWHERE), f"{layer} is new: give it a place in ORDER or ALSO"
    if layer in ANYWHERE:
        permitted: tuple[str, ...] = ANYWHERE
    else:
        permitted = allowed(layer)
    bad = {name for name in internal(path) if not below(name, permitted)}
    assert not bad, f"{module or 'localmoe'} must not import {sorted(bad)}"


def test_each_engine_is_imported_by_its_own_backend_only() -> None:
    engines = {
        **{"llama_cpp": "llama", "torch": "torch", "transformers": "torch"},
        **{"triton": "torch", "mlx": "mlx", "mlx_lm": "mlx"},
    }
    for path in SOURCES:
        for name in imports_of(path):
            home = engines.get(name.split(".")[0])
            module = module_name(path)
            assert home is None or module.startswith(f"backends.{home}"), f"{module}: {name}"


def calls_and_names(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of everything a file mentions, such as os.environ."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name | ast.Attribute):
            yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


FORBIDDEN = {
    "print", "os.environ", "os.environb", "os.getenv", "os.getenvb", "sys.stdout", "sys.stderr",
    "warnings.filterwarnings", "logging.basicConfig",
}  # fmt: skip


EXCEPTIONS = {
    ("backends.llama.bindings", "os.environ"): "tells OpenMP how to wait, before it is loaded",
    ("backends.llama.dry_run", "sys.stdout"): "the child answers through a pipe",
}


def test_only_the_command_line_prints_or_reads_the_environment() -> None:
    found = {
        (module_name(path), name)
        for path in SOURCES
        for _, name in calls_and_names(path)
        if name in FORBIDDEN and layer_of(module_name(path)) != "cli"
    }
    assert found - EXCEPTIONS.keys() == set()
    assert EXCEPTIONS.keys() - found == set(), "an exception that nobody needs any more"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_no_error_is_swallowed(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            where = f"line {node.lineno}"
            assert node.type is not None, f"{where}: a bare except"
            silent = all(isinstance(line, ast.Pass) for line in node.body)
            assert not silent, (
                f"{where}: use contextlib.suppress with one narrow error, or act on it"
            )


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_files_and_functions_stay_readable(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 320, "one file, one noun: split it"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= 60, f"{node.name} has {lines} lines: it does not fit a screen"


def test_the_checks_above_can_fail(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(
        "import localmoe.backends.llama\nfrom os import environ\nimport os\nos.getenv('X')\n"
    )
    assert internal(bad) == {"backends.llama"}
    assert not below("backends.llama", allowed("cache"))
    assert not below("cache.slots", allowed("weights"))
    assert below("cache.slots", allowed("backends"))
    assert not below("backends.llama.loader", allowed("planning"))
    assert {name for _, name in calls_and_names(bad)} & FORBIDDEN == {"os.environ", "os.getenv"}
