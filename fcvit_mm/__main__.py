"""Run a tool by its name, from anywhere: fcvit TOOL, or python -m fcvit_mm TOOL."""

import os
import re
import runpy
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from .utils.mim import MIM


def find_tools() -> dict[str, Path]:
    """Return the scripts of tools/ by name, training and testing first.

    Scripts whose name begins with an underscore serve the others.
    """
    scripts = (MIM / "tools").rglob("[!_]*.*")
    found = [path for path in scripts if path.suffix in (".py", ".sh")]
    return {path.stem: path for path in sorted(found, key=lambda path: (len(path.parts), path))}


def describe(script: Path) -> str:
    """Return the first line of a script's docstring or, in a shell script, of its comment."""
    found = re.search(r'^(?:"""|# )(.*?)(?:""")?$', script.read_text(), re.MULTILINE)
    return found[1] if found else ""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the tool that the first argument names; without one, list the tools."""
    tools = find_tools()
    name, *arguments = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if name in ("-h", "--help"):
        print("usage: fcvit TOOL [arguments of the tool]\n")
        for tool, path in tools.items():
            print(f"  {tool:20}{describe(path)}")
        print("\nfcvit TOOL --help lists the arguments of a tool written in Python")
        return
    if name not in tools:
        (nearest,) = get_close_matches(name, tools, n=1, cutoff=0)
        print(f"error: unknown tool {name}; did you mean {nearest}?", file=sys.stderr)
        sys.exit(2)
    script = str(tools[name])
    if script.endswith(".sh"):
        os.environ.setdefault("PYTHON", sys.executable)
        os.execvp("bash", ["bash", script, *arguments])
    sys.argv[:] = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    except KeyboardInterrupt:  # amid the tool's imports
        sys.exit(130)


if __name__ == "__main__":
    main()
