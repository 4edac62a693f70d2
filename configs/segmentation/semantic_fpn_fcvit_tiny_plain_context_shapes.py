"""Ablation: the same global context for every position, S' = 1."""

_base_ = "./semantic_fpn_fcvit_tiny_shapes.py"

model = dict(backbone=dict(weighted_context=False))
