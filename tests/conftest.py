"""What several test files share: the example data, and the tools as subprocesses."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Two test processes, or a test and the tool that it runs, share two cores. To be set before torch
# is imported.
os.environ["OMP_NUM_THREADS"] = "1"
# Triton's kernels run on the CPU, unless a GPU is to be tested.
os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).parents[1]

Tool = Callable[..., subprocess.CompletedProcess]


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_smallest(model: Any) -> None:
    """Give a config's model the least FCViT there is."""
    model.backbone.arch = dict(layers=(1,) * 4, dims=(8, 16, 16, 32), mlp_ratios=(2,) * 4)
    if "neck" in model and "in_channels" in model.neck:
        model.neck.in_channels = list(model.backbone.arch["dims"])
    else:
        model.head.in_channels = model.backbone.arch["dims"][-1]


@pytest.fixture(scope="session")
def example_data(tmp_path_factory) -> Path:
    """A directory with data/shapes and data/shapes_classification, 8 and 4 images each."""
    from fcvit_mm.datasets import shapes

    directory = tmp_path_factory.mktemp("example")
    data = directory / "data"
    shapes.generate(data / "shapes", train=8, val=4, size=(64, 64))
    shapes.generate(data / "shapes_classification", 8, 4, (32, 32), task="classification")
    return directory


@pytest.fixture(scope="session")
def tool(example_data) -> Tool:
    """Run a script of tools/ in the directory of the example data, as a user would."""

    def run(name: str, *arguments: object, timeout: float = 600) -> subprocess.CompletedProcess:
        script = str(ROOT / "tools" / name)
        command = [script] if name.endswith(".sh") else [sys.executable, script]
        return subprocess.run(
            [*command, *map(str, arguments)],
            cwd=example_data,
            env={
                **os.environ,
                "PYTHON": sys.executable,
                "PORT": str(free_port()),
            },
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> dict[str, str]:
    """Checkpoints with random weights, by scope; their configs are `test_inferencers.CONFIGS`."""
    import torch
    from test_inferencers import CONFIGS, saved

    folder = tmp_path_factory.mktemp("weights")
    for scope in CONFIGS:
        saved(scope, folder / f"{scope}.pth")
    # untrained scores are all but equal, and rounding would decide on their order
    content = torch.load(folder / "mmdet.pth", weights_only=True)
    for name in ("rpn_head.rpn_cls.weight", "roi_head.bbox_head.fc_cls.weight"):
        content["state_dict"][name] *= 100
    torch.save(content, folder / "mmdet.pth")
    return {scope: str(folder / f"{scope}.pth") for scope in CONFIGS}


@pytest.fixture(scope="module")
def predictors(weights) -> dict:
    """The models of `weights` as Predictors; the detector keeps every score."""
    import torch
    from test_inferencers import CONFIGS

    from fcvit_mm.apis.predictor import Predictor
    from fcvit_mm.utils.config import load_config

    found = {}
    for scope, config in CONFIGS.items():
        options = {"model.test_cfg.rcnn.score_thr": 0.0} if scope == "mmdet" else None
        cfg = load_config(str(config), options)
        found[scope] = Predictor(cfg, weights[scope], torch.device("cpu"))
    return found
