"""mmcv's operators, as they run without its compiled ones."""

import importlib

import torch

import fcvit_mm  # noqa: F401  puts the stand-in for mmcv._ext in place

# not by an import statement, which a sorter of imports would put before that of fcvit_mm
ops = importlib.import_module("mmcv.ops")
ATTENTION = ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction
HALVES = [torch.float16, torch.bfloat16]
