"""Ablation: depthwise 5x5 and 7x7 in the token mixers, which fit the paper's parameter counts."""

_base_ = "./semantic_fpn_fcvit_tiny_shapes.py"

model = dict(backbone=dict(kernel_size=(5, 7)))
