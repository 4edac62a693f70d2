"""FCViT in other people's hands: each toolbox's own configs and its own tools/train.py."""

import math
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from fcvit_mm import FCViT, read_checkpoint
from helpers import ROOT

# What a user writes: our backbone in a config of the toolbox's, which is named by its path because
# `mmseg::` cannot be used with the maintained packages.
CONFIGS = {
    "mmdet": """
_base_ = "CONFIGS/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"
custom_imports = dict(imports=["fcvit_mm"])
model = dict(
    backbone=dict(_delete_=True, type="FCViT", arch="tiny"),
    neck=dict(in_channels=[32, 64, 160, 320]),
    roi_head=dict(bbox_head=dict(num_classes=4), mask_head=dict(num_classes=4)),
)
train_dataloader = dict(
    dataset=dict(
        data_root="data/shapes",
        metainfo=dict(classes=("circle", "square", "triangle", "star")),
        ann_file="annotations/instances_train.json",
        data_prefix=dict(img="images/train"),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
            dict(type="PackDetInputs"),
        ],
    )
)
train_cfg = dict(_delete_=True, type="IterBasedTrainLoop", max_iters=2)
""",
    "mmseg": """
_base_ = "CONFIGS/sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py"
custom_imports = dict(imports=["fcvit_mm"])
model = dict(
    pretrained=None,  # of the ResNet that is replaced
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(_delete_=True, type="FCViT", arch="tiny"),
    neck=dict(in_channels=[32, 64, 160, 320]),
    decode_head=dict(num_classes=5, norm_cfg=dict(type="BN")),  # SyncBN needs a GPU
)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="BaseSegDataset",
        data_root="data/shapes",
        metainfo=dict(classes=("ground", "circle", "square", "triangle", "star")),
        data_prefix=dict(img_path="images/train", seg_map_path="label_maps/train"),
        img_suffix=".png",
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations"),
            dict(type="PackSegInputs"),
        ],
    )
)
train_cfg = dict(max_iters=2)
""",
    "mmpretrain": """
_base_ = "CONFIGS/resnet/resnet50_8xb32_in1k.py"
custom_imports = dict(imports=["fcvit_mm"])
data_preprocessor = dict(num_classes=4)
model = dict(
    backbone=dict(_delete_=True, type="FCViT", arch="tiny", out_indices=(3,)),
    head=dict(num_classes=4, in_channels=320, topk=(1,)),
)
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        _delete_=True,
        type="CustomDataset",
        data_root="data/shapes_classification/train",
        pipeline=[dict(type="LoadImageFromFile"), dict(type="PackInputs")],
    ),
)
train_cfg = dict(_delete_=True, type="IterBasedTrainLoop", max_iters=2)
""",
}
# A config of ours in MMDetection's hands, which reads the `_base_` before any `custom_imports`.
INHERITED = """
_base_ = __import__("fcvit_mm").config_path("detection/mask_rcnn_fcvit_tiny_shapes.py")
train_dataloader = dict(batch_size=2)
train_cfg = dict(max_iters=2)
"""
# Two iterations, no evaluation, no processes for loading.
SHORT = """
train_dataloader.update(num_workers=0, persistent_workers=False)
param_scheduler = []
val_cfg = val_dataloader = val_evaluator = None
default_hooks = dict(
    logger=dict(interval=1), checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=2)
)
log_processor = dict(by_epoch=False)
"""


@pytest.mark.official
@pytest.mark.parametrize(
    ("toolbox", "config"),
    [
        ("mmdet", CONFIGS["mmdet"]),
        pytest.param("mmseg", CONFIGS["mmseg"], marks=pytest.mark.slow),
        pytest.param("mmpretrain", CONFIGS["mmpretrain"], marks=pytest.mark.slow),
        pytest.param("mmdet", INHERITED, marks=pytest.mark.slow),
    ],
)
def test_trains_by_the_toolboxs_own_tool(toolbox, config, example_data, tmp_path):
    origin = find_spec(toolbox).origin
    assert origin is not None
    mim = Path(origin).parent / ".mim"
    (tmp_path / "mine.py").write_text(config.replace("CONFIGS", str(mim / "configs")) + SHORT)
    result = subprocess.run(
        [sys.executable, mim / "tools/train.py", tmp_path / "mine.py", "--work-dir", tmp_path],
        cwd=example_data,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    losses = re.findall(r"\bloss: (\S+)", result.stdout + result.stderr)
    assert len(losses) == 2 and all(math.isfinite(float(loss)) for loss in losses)
    weights = read_checkpoint(tmp_path / "iter_2.pth")["state_dict"]
    backbone = FCViT("tiny", out_indices=(3,) if toolbox == "mmpretrain" else (0, 1, 2, 3))
    names = {name.removeprefix("backbone.") for name in weights if name.startswith("backbone.")}
    assert names == set(backbone.state_dict())
