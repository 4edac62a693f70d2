"""A stand-in for `mmcv._ext`, the compiled operators of mmcv, which `install` makes available.

Results are those of the extension, from torchvision's compiled operators or, where it has no equal,
from plain PyTorch, on the CPU and on CUDA; docs/operators.md says what is promised, and where they
differ on purpose. Names and order of the arguments are the extension's
(mmcv/ops/csrc/pytorch/pybind.cpp), which writes most results into tensors that the caller hands
over. Half-precision inputs are computed in float32 and rounded once, at the end; float64 stays.

Letters of shapes: B images, C channels, H x W pixels, K boxes, P x Q bins of a box.
"""

from .import_hook import install

__all__ = ["install"]
