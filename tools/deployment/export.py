"""Export a model to ONNX, OpenVINO or torch.export."""

import argparse
import sys
from collections.abc import Sequence

from fcvit_mm.apis import export
from fcvit_mm.apis.predictor import Predictor
from fcvit_mm.utils.cli import (
    add_config,
    check_writable,
    ending,
    fraction,
    parse_model,
    run_tool,
)
from fcvit_mm.utils.config import load_config

import torch

FORMATS = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
# for bf16 and int8
MAX_DROP = 0.01


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config(parser, checkpoint=True)
    parser.add_argument(
        "out",
        type=ending(*FORMATS.values()),
        help="file.onnx, file.xml for OpenVINO (with file.bin), or file.pt2 for torch.export",
    )
    parser.add_argument(
        "--part",
        choices=("whole", "features"),
        default="whole",
        help="features: backbone and neck alone",
    )
    parser.add_argument("--format", choices=FORMATS, help="default: by the suffix")
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "int8"),
        default="fp32",
        help="of the computation; int8 is calibrated with images of the training set",
    )
    parser.add_argument(
        "--max-drop",
        type=fraction,
        metavar="DROP",
        help="measure file and model, as test does, and write none that loses more mAP, "
        f"mIoU or top-1, 0 to 1 (default: {MAX_DROP} for bf16 and int8; fp32 is not measured)",
    )
    args = parse_model(parser, argv)
    if args.format and args.out.suffix != FORMATS[args.format]:
        parser.error(f"a file of --format {args.format} must end in {FORMATS[args.format]}")
    if args.max_drop is None and args.precision != "fp32":
        args.max_drop = MAX_DROP
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    check_writable("OUT", args.out)
    cfg = load_config(args.config, args.cfg_options)
    export.kind_of(cfg, args.part)
    predictor = Predictor(cfg, args.checkpoint, torch.device("cpu"))
    print("exporting, then comparing with PyTorch on several images ...", flush=True)
    found = export.run(predictor, args.out, args.part, args.precision, args.max_drop)
    for name, values in found.accuracy.items():
        print(f"{name}: {values['model']:.4f} of the model, {values['file']:.4f} of the file")
    print(
        f"saved {args.out}: largest difference from PyTorch in fp32 {found.difference:.1e} of the "
        "largest value"
    )


if __name__ == "__main__":
    sys.exit(run_tool(main))
