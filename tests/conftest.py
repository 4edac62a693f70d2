"""What several test files share: the example data, and the tools as subprocesses."""

import gc
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import ROOT, warm
from helpers.tools import free_port

# Two test processes, or a test and the tool that it runs, share two cores. To be set before torch
# is imported.
os.environ["OMP_NUM_THREADS"] = "1"
# Triton's kernels run on the CPU, unless a GPU is to be tested.
os.environ.setdefault("TRITON_INTERPRET", "1")
# Before a test file imports mmcv, whose operators the package provides.
import fcvit_mm  # noqa: F401

# In the background a shell has Ctrl-C ignored, and processes that tests interrupt inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Spare the tests MMEngine's formatting of configs. Before xdist starts its processes: at the first
# import yapf writes a cache, which another process may read half-written.
warm.leave_configs_unformatted()
warm.read_configs_once()

Tool = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="module", autouse=True)
def imports_uncollected() -> None:
    """Leave what is imported by now out of garbage collections.

    OpenMMLab's datasets and runners ask for one each, which takes half a second with all of it.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_instances() -> None:
    """Forget other tests' loggers, scalars and visualizers, which MMEngine finds by the second."""
    from mmengine.logging import MessageHub, MMLogger
    from mmengine.visualization import Visualizer

    for kind in (MMLogger, MessageHub, Visualizer, *Visualizer.__subclasses__()):
        kind._instance_dict.clear()


@pytest.fixture(scope="session", autouse=True)
def own_downloads(tmp_path_factory) -> None:
    """Keep the note of checked datasets, and what torch downloads, out of the user's folder."""
    os.environ["TORCH_HOME"] = str(tmp_path_factory.mktemp("torch"))


@pytest.fixture(scope="session")
def example_data(tmp_path_factory) -> Path:
    """A directory with data/shapes and data/shapes_classification, 8 and 4 images each."""
    from fcvit_mm.datasets import shapes

    directory = tmp_path_factory.mktemp("example")
    data = directory / "data"
    shapes.generate(data / "shapes", train=8, val=4, size=(64, 64))
    shapes.generate(data / "shapes_classification", 8, 4, (32, 32), task="classification")
    return directory


@pytest.fixture
def data(example_data, tmp_path, monkeypatch) -> Path:
    """A copy of the example data in the current directory."""
    shutil.copytree(example_data / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data/shapes"


@pytest.fixture(scope="session")
def tool(example_data) -> Tool:
    """Run a script of tools/ in the directory of the example data, as a user would."""

    def run(name: str, *arguments: object, timeout: float = 600) -> subprocess.CompletedProcess:
        (script,) = (ROOT / "tools").rglob(name)
        environment = {**os.environ, "PYTHON": sys.executable, "PORT": str(free_port())}
        if name.endswith(".py"):
            return warm.run([script, *arguments], example_data, environment, timeout)
        return subprocess.run(
            [script, *map(str, arguments)],
            cwd=example_data,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> dict[str, str]:
    """Checkpoints with random weights, by scope; their configs are `helpers.models.CONFIGS`."""
    import torch

    from helpers.models import CONFIGS, saved

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

    from fcvit_mm.apis.predictor import Predictor
    from fcvit_mm.utils.config import load_config
    from helpers.models import CONFIGS

    found = {}
    for scope, config in CONFIGS.items():
        options = {"model.test_cfg.rcnn.score_thr": 0.0} if scope == "mmdet" else None
        cfg = load_config(str(config), options)
        found[scope] = Predictor(cfg, weights[scope], torch.device("cpu"))
    return found
