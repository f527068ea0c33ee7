"""Write docs/architectures.md, and the README's table: what the tests run bit for bit.

Both come from the models in tests/zoo.

python scripts/architecture_table.py            # write
python scripts/architecture_table.py --check    # exit with 1 where something is out of date
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import zoo  # noqa: E402
from zoo.model import ZooModel  # noqa: E402
from zoo.unsupported import UNSUPPORTED  # noqa: E402

PAGE = ROOT / "docs" / "architectures.md"
README = ROOT / "README.md"
_BEGIN, _END = "<!-- architectures -->\n", "<!-- end of architectures -->\n"
COMMAND = "python scripts/architecture_table.py"

_INTRODUCTION = """\
# Architectures and layouts

<!-- Written by `{command}` from tests/zoo. Do not edit. -->

Each row is a tiny model with random weights, of the form that llama.cpp's loader requires. For
each, `tests/gates/test_lossless.py` compares logits bit for bit: experts streamed, experts all in
memory, and plain llama.cpp; with three sizes of cache, one and two threads, prefill in chunks of
several lengths, and decode; with what the cache holds from before; and with wrong bytes on
purpose, which must show. The last column is the name of its gate:

    make test ARGS="tests/gates/test_lossless.py -k deepseek2-kimi"

What these models cannot show is that a published checkpoint has the form that they stand for.

{models} models of {architectures} architectures, {layouts} layouts.
"""


def page() -> str:
    """Return the page as it should be."""
    architectures = {model.architecture for model in zoo.ARCHITECTURES.values()}
    sections = (
        _INTRODUCTION.format(
            command=COMMAND,
            models=len(zoo.ARCHITECTURES),
            architectures=len(architectures),
            layouts=len(zoo.LAYOUTS),
        ),
        "## Architectures\n",
        "Names are llama.cpp's, as in `general.architecture`.\n",
        _table(_ARCHITECTURE_COLUMNS, _architecture_rows(zoo.ARCHITECTURES)),
        "## Layouts\n",
        "The types, sizes and files that checkpoints come in. Types are those of the experts.\n",
        _table(
            ("layout", "architecture", "types", "what is covered", "gate"),
            (
                (model.stands_for, f"`{model.architecture}`", _types(model), model.covers, _gate(n))
                for n, model in zoo.LAYOUTS.items()
            ),
        ),
        "## Dense models\n",
        "They have nothing to stream: all of such a model is in memory, or it is refused. Their\n"
        "gates are in `tests/gates/test_dense.py`.\n",
        _table(_ARCHITECTURE_COLUMNS, _architecture_rows(zoo.DENSE)),
        "## What cannot be run\n",
        "Architectures with experts that no row stands for.\n",
        _table(
            ("architecture", "why"),
            ((f"`{name}`", reason) for name, reason in sorted(UNSUPPORTED.items())),
        ),
    )
    return "\n".join(sections)


_ARCHITECTURE_COLUMNS = ("architecture", "stands for", "what is covered", "gate")


def _architecture_rows(models: dict[str, ZooModel]) -> Iterable[Sequence[str]]:
    """Yield rows by architecture; models of one keep their order, as they refer to each other."""
    for name, model in sorted(models.items(), key=lambda item: item[1].architecture):
        yield f"`{model.architecture}`", model.stands_for, model.covers, _gate(name)


def readme() -> str:
    """Return the README with its table as it should be."""
    text = README.read_text(encoding="utf-8")
    before, found, rest = text.partition(_BEGIN)
    _, ended, after = rest.partition(_END)
    if not (found and ended):
        raise SystemExit(f"README.md has no place for the table: {_BEGIN.strip()}, {_END.strip()}")
    checkpoints: dict[str, list[str]] = {}
    for model in zoo.ARCHITECTURES.values():
        checkpoints.setdefault(model.architecture, []).append(model.stands_for)
    rows = ((f"`{name}`", _checkpoints(found)) for name, found in sorted(checkpoints.items()))
    return before + _BEGIN + _table(("architecture", "checkpoints"), rows) + _END + after


def _checkpoints(stands_for: list[str]) -> str:
    """Join what the models of an architecture stand for, without variants of the first one."""
    named = [text for text in stands_for if not text.startswith("the same")]
    return "; ".join(named or stands_for)


def _gate(name: str) -> str:
    return f"`{name}`"


def _types(model: ZooModel) -> str:
    """Return the types of the experts, each once, in the order of the layers."""
    return ", ".join(dict.fromkeys(t for types in model.shape.expert_types for t in types))


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def main() -> int:
    """Write page and table, or check them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    check = parser.parse_args().check
    wrong = 0
    for path, text in ((PAGE, page()), (README, readme())):
        if not check:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            print(f"{path.relative_to(ROOT)} is not up to date; run {COMMAND}", file=sys.stderr)
            wrong = 1
    return wrong


if __name__ == "__main__":
    sys.exit(main())
