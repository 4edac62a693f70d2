"""Memory does not rise with iterations and images; a dead loader process is named.

Here in a short form, by the number of Python's objects, which a leak of any size changes; in the
long one, `make test-long`, by the bytes that a process takes.
"""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook

from fcvit_mm.datasets import shapes
from helpers import ROOT
from helpers.stress import slow
from helpers.tools import SHORT, assert_sentence

memory = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks/memory.py")))
TOTAL, SAMPLES = 48, 12  # iterations, and images


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("long") / "shapes"
    shapes.generate(folder, 8, TOTAL, memory.SIZE)
    return folder


class Leak(Hook):
    """What a leak is: something that is kept of every iteration and image."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def after_train_iter(self, runner: Any, *_: Any, outputs: Any = None, **__: Any) -> None:
        self.kept.append(dict(outputs))

    def after_test_iter(self, runner: Any, *_: Any, outputs: Any = None, **__: Any) -> None:
        self.kept.append(list(outputs))


@pytest.mark.official
@pytest.mark.slow
@pytest.mark.parametrize("task", memory.CONFIGS)
def test_nothing_is_kept_of_iterations_and_images(data, tmp_path, task):
    for phase in ("training", "evaluation"):
        curve = memory.measure(task, phase, data, tmp_path, TOTAL, SAMPLES)
        assert len(curve.steps) == SAMPLES and min(curve.memory) > 1e8
        assert curve.slope("objects") < 0.5, (phase, curve.objects)
        leaking = memory.measure(task, phase, data, tmp_path, TOTAL, SAMPLES, [Leak()])
        assert leaking.slope("objects") > 0.9, (phase, leaking.objects)
    # and what a metric keeps by design is seen
    kept = memory.measure(task, "evaluation with results", data, tmp_path, TOTAL, SAMPLES)
    assert kept.slope("objects") > 0.9


@pytest.mark.parametrize(("rise", "flat"), [(0, True), (2048, True), (6144, False)])
def test_a_rise_of_memory_is_told_from_noise_and_warm_up(rise, flat):
    steps = np.arange(20, 2020, 20)
    noise = np.random.default_rng(0).normal(0, 1e6, steps.size)
    warm_up = 1e8 * np.minimum(steps / 400, 1)
    curve = memory.Curve([*steps], [*(5e8 + warm_up + rise * steps + noise)])
    assert memory.is_flat(curve) == flat


# ------------------------------------------------------------------------- dying processes

KILLER = """
import os, signal
from mmengine.registry import TRANSFORMS

@TRANSFORMS.register_module()
class Die:
    def __init__(self, way):
        self.way = way

    def __call__(self, results):
        if results["img_path"].endswith("00001.png"):
            os._exit(3) if self.way == "exit" else os.kill(os.getpid(), getattr(signal, self.way))
        return results
"""


@pytest.mark.official
@pytest.mark.parametrize(
    ("script", "way", "words"),
    [
        slow("train.py", "SIGKILL", "was killed by the signal 'Killed'"),
        slow("train.py", "exit", "ended by itself"),
        slow("test.py", "SIGBUS", "was killed by the signal 'Bus error'"),
    ],
)
def test_a_process_that_dies_loading_images_is_named(example_data, tmp_path, script, way, words):
    config = ROOT / "configs/segmentation/semantic_fpn_fcvit_tiny_shapes.py"
    (tmp_path / "killer.py").write_text(KILLER)
    split = "train" if script == "train.py" else "test"
    (tmp_path / "config.py").write_text(
        f"_base_ = {str(config)!r}\n"
        "custom_imports = dict(imports=['fcvit_mm', 'killer'])\n"
        f"{split}_pipeline = [*_base_.{split}_pipeline]\n"
        f"{split}_pipeline.insert(1, dict(type='Die', way={way!r}))\n"
        f"{split}_dataloader = dict(num_workers=2, dataset=dict(pipeline={split}_pipeline))\n"
    )
    arguments = [ROOT / "tools" / script, tmp_path / "config.py"]
    if split == "test":
        from mmengine.registry import MODELS, init_default_scope

        from fcvit_mm.utils.config import adapt, load_config

        cfg = load_config(str(config))
        adapt(cfg)
        init_default_scope("mmseg")
        torch.save({"state_dict": MODELS.build(cfg.model).state_dict()}, tmp_path / "w.pth")
        arguments.append(tmp_path / "w.pth")
        options = []
    else:
        options = ["--cfg-options", *(one for one in SHORT if "train_dataloader.n" not in one)]
        options = [one for one in options if "train_dataloader.persistent" not in one]
    result = subprocess.run(
        [sys.executable, *map(str, arguments), "--work-dir", str(tmp_path / "run"), *options],
        cwd=example_data,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert_sentence(result, words, "num_workers", "/dev/shm", "--resume")
    assert re.search(r"the process \d+, a DataLoader worker of rank 0, was|ended", result.stderr)
