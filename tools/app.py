"""A page in the browser for a model: python tools/app.py CONFIG CHECKPOINT."""

import argparse

from fcvit_mm.apis import predictor as predictor_module
from fcvit_mm.engine import runner


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="A page in the browser: what a model finds in a picture, and where it looks."
    )
    predictor_module.add_arguments(parser)
    parser.add_argument("--port", type=runner.whole_number(1), default=7860)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    runner.require("gradio", "app")
    from fcvit_mm.demos import app

    cfg = runner.load_config(args.config, args.cfg_options)
    predictor = predictor_module.Predictor(
        cfg, args.checkpoint, predictor_module.find_device(args.device)
    )
    app.run(
        predictor,
        f"{args.config}, {args.checkpoint}",
        args.port,
        lambda address: print(f"page: {address} (Ctrl-C ends it)", flush=True),
    )


if __name__ == "__main__":
    runner.run_tool(main)
