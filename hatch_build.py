"""Compiles localmoe/native/*.c into a library beside them, where there is a C compiler.

Without one localmoe works all the same, more slowly: what is compiled exists in Python, too.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-fPIC", "-shared")


def find_compiler() -> list[str] | None:
    """Return the command of a C compiler: `$CC`, or the first usual one that is there."""
    wanted = shlex.split(os.environ.get("CC", ""))
    candidates = [wanted] if wanted else [[name] for name in ("cc", "gcc", "clang")]
    return next((command for command in candidates if shutil.which(command[0])), None)


class NativeBuildHook(BuildHookInterface[Any]):
    """Adds the library to a wheel, or to the checkout for an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; leave no old library behind where that fails."""
        if self.target_name != "wheel":
            return
        folder = Path(self.root) / "localmoe" / "native"
        library = folder / "_native.so"
        if sys.platform == "win32" or not self._compile(folder, library):
            library.unlink(missing_ok=True)  # of other sources
            return
        build_data["pure_python"] = False
        build_data["tag"] = self._tag()
        build_data["artifacts"].append("localmoe/native/_native.so")

    def _compile(self, folder: Path, library: Path) -> bool:
        compiler = find_compiler()
        if compiler is None:
            self.app.display_warning("no C compiler: localmoe's callback stays in Python")
            return False
        part = library.with_suffix(".part")
        sources = [str(path) for path in sorted(folder.glob("*.c"))]
        done = subprocess.run(
            [*compiler, *FLAGS, *sources, "-o", str(part)], capture_output=True, text=True
        )
        if done.returncode:
            part.unlink(missing_ok=True)
            self.app.display_warning(f"localmoe's callback stays in Python: {done.stderr}")
            return False
        os.replace(part, library)
        return True

    def _tag(self) -> str:
        """Return the wheel's tag: any Python 3, for this platform alone."""
        import sysconfig

        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        return f"py3-none-{platform}"
