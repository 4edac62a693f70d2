"""Ablation: token mixers with 3x3 depthwise convolutions instead of 11x11."""

_base_ = "./semantic_fpn_fcvit_tiny_shapes.py"

model = dict(backbone=dict(kernel_size=3))
