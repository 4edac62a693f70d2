"""Both configs for binary segmentation of docs/custom_data.md tell object from background."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from PIL import Image

from fcvit_mm.datasets import shapes
from fcvit_mm.datasets.checks import check
from fcvit_mm.utils.config import load_config
from helpers import ROOT

PAGE = (ROOT / "docs/custom_data.md").read_text()
(SECTION,) = re.findall(r"^## Binary segmentation\n(.*?)^## ", PAGE, re.DOTALL | re.MULTILINE)
REWRITE, *CONFIGS = re.findall(r"^```python\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)
NAMES = ("softmax", "sigmoid")
LOADERS = ("train_dataloader", "val_dataloader")
SMALL = {
    "model.backbone.arch": dict(
        _delete_=True, layers=(1, 1, 1, 1), dims=(16, 32, 48, 64), mlp_ratios=(2,) * 4
    ),
    "model.backbone.init_cfg": None,
    "model.backbone.layer_scale_init": 0.1,
    "model.neck.in_channels": [16, 32, 48, 64],
    "model.neck.out_channels": 32,
    "model.decode_head.in_channels": [32] * 4,
    "model.decode_head.channels": 32,
    "model.decode_head.norm_cfg.type": "BN",
    "model.decode_head.dropout_ratio": 0,
    "model.data_preprocessor.size": (64, 64),
    "train_dataloader.dataset.pipeline.2.scale": (128, 64),
    "train_dataloader.dataset.pipeline.2.ratio_range": (1, 1),
    "train_dataloader.dataset.pipeline.3.crop_size": (64, 64),
    "val_dataloader.dataset.pipeline.1.scale": (128, 64),
    **{f"{loader}.num_workers": 0 for loader in LOADERS},
    **{f"{loader}.persistent_workers": False for loader in LOADERS},
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """A user's directory, whose label maps hold 0 and 255."""
    directory = tmp_path_factory.mktemp("binary")
    shapes.generate(directory / "data/parts", train=32, val=4, size=(64, 64), seed=0)
    for path in (directory / "data/parts/label_maps").rglob("*.png"):
        labels = np.array(Image.open(path))
        Image.fromarray(np.where(labels > 0, 255, 0).astype(np.uint8)).save(path)
    for name, text in zip(NAMES, CONFIGS, strict=True):
        (directory / f"{name}.py").write_text(text)
    return directory


def test_the_page_rewrites_label_maps_of_0_and_255(directory, monkeypatch):
    """The check refuses them before, and passes both configs after; run before the trainings."""
    monkeypatch.chdir(directory)
    for name in NAMES:
        for report in check(load_config(f"{name}.py"), LOADERS):
            assert ["255 is ignored" in error for error in report.errors] == [True]
    exec(REWRITE, {})
    for name in NAMES:
        assert [one.errors for one in check(load_config(f"{name}.py"), LOADERS)] == [[], []]


def iou(predicted: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Return the IoU of the object."""
    a, b = (torch.cat([one.flatten() for one in maps]).bool() for maps in (predicted, expected))
    return ((a & b).sum() / (a | b).sum()).item()


@pytest.mark.parametrize("name", NAMES)
def test_both_configs_learn(directory, monkeypatch, name):
    monkeypatch.chdir(directory)
    exec(REWRITE, {})
    cfg = load_config(f"{name}.py", {**SMALL, "randomness.seed": 3})
    init_default_scope(cfg.default_scope)
    runner = Runner.from_cfg(cfg)
    model = runner.model
    model.init_weights()
    optim_wrapper = OptimWrapper(torch.optim.AdamW(model.parameters(), 6e-3))
    model.train()
    batches = iter(runner.train_loop.dataloader)
    losses = [
        model.train_step(next(batches), optim_wrapper)["decode.loss_ce"].item() for _ in range(40)
    ]
    assert np.mean(losses[-5:]) < 0.85 * np.mean(losses[:5])

    model.eval()
    with torch.no_grad():
        found = [one for batch in runner.val_loop.dataloader for one in model.val_step(batch)]
    expected = [one.gt_sem_seg.data for one in found]
    reached = iou([one.pred_sem_seg.data for one in found], expected)
    # what calling every pixel the object would reach
    assert reached > 1.2 * iou([torch.ones_like(one) for one in expected], expected)
