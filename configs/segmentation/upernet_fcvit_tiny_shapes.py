"""UperNet with FCViT-tiny on generated images, from random weights."""

_base_ = [
    "../_base_/models/upernet_fcvit.py",
    "../_base_/datasets/shapes_semantic.py",
    "../_base_/schedules/adamw_example.py",
    "../_base_/runtime_segmentation.py",
]

model = dict(
    data_preprocessor=dict(size=(128, 128)),
    # with the published 1e-6, a few hundred iterations from random weights change little
    backbone=dict(arch="tiny", layer_scale_init=0.1, init_cfg=None),
    decode_head=dict(in_channels=[32, 64, 160, 320], channels=64, num_classes=5),
    auxiliary_head=dict(in_channels=160, channels=64, num_classes=5),
)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=100))
