"""Semantic FPN with FCViT-tiny on generated images, from random weights.

`make demo TASK=segmentation` trains it.
"""

_base_ = [
    "../_base_/models/semantic_fpn_fcvit.py",
    "../_base_/datasets/shapes_semantic.py",
    "../_base_/schedules/adamw_example.py",
    "../_base_/runtime_segmentation.py",
]

channels = 64
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    # with the published 1e-6, a few hundred iterations from random weights change little
    backbone=dict(arch="tiny", layer_scale_init=0.1, init_cfg=None),
    neck=dict(in_channels=[32, 64, 160, 320], out_channels=channels),
    decode_head=dict(in_channels=[channels] * 4, channels=channels, num_classes=5),
)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=100))
