"""Look at your data and write a short config for them."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fcvit_mm.apis import own_config
from fcvit_mm.datasets.own_data import look_at
from fcvit_mm.models.arch import ARCHS
from fcvit_mm.utils.cli import ending, run_tool, whole_number, writing
from fcvit_mm.utils.config import TASKS
from fcvit_mm.utils.errors import ConfigError
from fcvit_mm.utils.files import atomic_write


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    positive = whole_number(1)
    parser.add_argument("data", type=Path, metavar="DIR", help="as docs/custom_data.md says")
    parser.add_argument("--task", choices=[*TASKS.values()], required=True)
    parser.add_argument("--arch", choices=[*ARCHS], help="default: s12 with a GPU, else tiny")
    parser.add_argument(
        "--size",
        type=positive,
        help="of the images in pixels, a multiple of 32: of a detector their longer side, else of "
        "the crops (default: as they need)",
    )
    parser.add_argument("--epochs", type=positive, help="default: as many as the images need")
    parser.add_argument(
        "--from-scratch", action="store_true", help="from random weights, not pretrained ones"
    )
    parser.add_argument("--ema", action="store_true", help="evaluate and save averaged weights")
    parser.add_argument(
        "--accumulate", type=positive, default=1, metavar="N", help="batches of a step (default: 1)"
    )
    parser.add_argument("--out", type=ending(".py"), metavar="FILE", help="default: DIR's name.py")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = vars(parse_args(argv))
    root, task, given = args.pop("data"), args.pop("task"), args.pop("out")
    out = given or Path(f"{root.resolve().name}.py")
    if out.exists():
        raise ConfigError(f"{out} is there already; remove it, or name another file by --out")
    data = look_at(root, task)
    plan = own_config.make_plan(data, own_config.Choices(**args))
    with writing(out), atomic_write(out) as partial:
        partial.write_text(own_config.text_of(data, plan), "utf-8")
    names = ", ".join(data.classes)
    print(f"data: {data.train} training and {data.val} validation images; classes: {names}")
    weights = "random weights" if plan.from_scratch else f"pretrained/fcvit_{plan.arch}.pth"
    print(f"model: {own_config.method_of(data)} with FCViT-{plan.arch}, from {weights}")
    print(
        f"training: images of {plan.size} pixels, batches of {plan.batch}, {plan.epochs} epochs "
        f"({plan.iterations} iterations), lr {plan.lr}"
    )
    for note in data.notes:
        print(f"note: {note}")
    if not plan.from_scratch and not Path(weights).is_file():
        remedy = f"fcvit download {plan.arch} --out {weights} gets it; --from-scratch does without"
        print(f"note: {weights} is not there: {remedy}")
    print(f"config: {out}; to train: fcvit train {out}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
