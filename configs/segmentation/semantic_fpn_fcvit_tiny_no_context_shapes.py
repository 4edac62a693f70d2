"""Ablation: no global context."""

_base_ = "./semantic_fpn_fcvit_tiny_shapes.py"

model = dict(backbone=dict(global_context=False))
