"""A page in the browser for a model: python tools/app.py CONFIG CHECKPOINT."""

import argparse

from fcvit_mm import predict, runtime


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="A page in the browser: what a model finds in a picture, and where it looks."
    )
    predict.add_arguments(parser)
    parser.add_argument("--port", type=runtime.whole_number(1), default=7860)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    runtime.require("gradio", "app")
    from fcvit_mm import app

    cfg = runtime.load_config(args.config, args.cfg_options)
    predictor = predict.Predictor(cfg, args.checkpoint, predict.find_device(args.device))
    app.run(
        predictor,
        f"{args.config}, {args.checkpoint}",
        args.port,
        lambda address: print(f"page: {address} (Ctrl-C ends it)", flush=True),
    )


if __name__ == "__main__":
    runtime.run_tool(main)
