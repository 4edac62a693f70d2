"""Download weights: the authors' by name, others from the Hugging Face Hub or a web address."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from fcvit_mm.checkpoint.downloads import (
    LOCK,
    RELEASED,
    compare_with_lock,
    is_released,
    is_storage,
)
from fcvit_mm.checkpoint.reader import fetch, is_url
from fcvit_mm.models.arch import ALIASES, ARCHS
from fcvit_mm.utils.cli import check_writable, run_tool, writing
from fcvit_mm.utils.errors import ConfigError
from fcvit_mm.utils.files import atomic_write, sha256, write_json


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "name",
        metavar="NAME",
        help=f"{', '.join(ARCHS)} for ImageNet's; {', '.join(RELEASED)}; "
        "hf://ORG/REPO/FILE@REVISION; a URL",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="copy it, such as to pretrained/fcvit_s12.pth"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    name = ALIASES.get(args.name, args.name)
    name = f"fcvit_{name}_in1k" if name in ARCHS else name
    if not is_released(name) and not is_url(name):
        names = ", ".join([*ARCHS, *RELEASED])
        raise ConfigError(f"{name} is unknown; there are {names}, hf://ORG/REPO/FILE and URLs")
    check_writable("--out", args.out)
    path = fetch(name, again=True)
    print(f"{name}: {path.stat().st_size / 1e6:.1f} MB, SHA-256 {sha256(path)}, is {path}")
    if not is_storage(name):
        if not Path(LOCK).exists():
            with writing(LOCK):
                write_json(Path(LOCK), {})
        compare_with_lock(name, path)
        print(f"{LOCK} has its size and SHA-256, which every later use is compared with")
    if args.out:
        with writing(args.out), atomic_write(args.out) as partial:
            shutil.copyfile(path, partial)
        print(f"copied to {args.out}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
