"""Publish the best model of a work directory: weights, config, metrics and a model card."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from fcvit_mm.apis import publish
from fcvit_mm.utils.cli import run_tool


def repository(text: str) -> str:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        raise argparse.ArgumentTypeError(f"{text} must be ORG/NAME, or USER/NAME")
    return text


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work_dir", type=Path, metavar="WORK_DIR", help="of a training")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    parser.add_argument(
        "--hub", type=repository, metavar="ORG/NAME", help="upload it to the Hugging Face Hub, too"
    )
    parser.add_argument(
        "--no-test", dest="test", action="store_false", help="publish without metrics"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    files = publish.publish(args.work_dir, args.out, args.test)
    for path in files:
        print(f"{path}: {path.stat().st_size / 1e6:.3f} MB")
    print(f"to test it: fcvit test {args.out}; in Python: fcvit_mm.load({str(args.out)!r})")
    if args.hub:
        print(f"uploaded: {publish.upload(args.out, args.hub)}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
