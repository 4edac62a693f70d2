"""Run a tool of the package from anywhere: python -m fcvit_mm TOOL [arguments of the tool]."""

import os
import runpy
import sys

from .utils.mim import MIM


def main() -> None:
    tools = {path.stem: path for path in sorted((MIM / "tools").glob("*.*"))}
    if sys.argv[1:] in ([], ["-h"], ["--help"]):
        print(f"usage: python -m fcvit_mm TOOL [arguments of the tool]\ntools: {', '.join(tools)}")
        return
    name = sys.argv[1]
    if name not in tools:
        print(f"error: there is no tool {name}; there are {', '.join(tools)}", file=sys.stderr)
        sys.exit(2)
    script = str(tools[name])
    if script.endswith(".sh"):
        os.environ.setdefault("PYTHON", sys.executable)
        os.execvp("bash", ["bash", script, *sys.argv[2:]])
    sys.argv[:] = [script, *sys.argv[2:]]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
