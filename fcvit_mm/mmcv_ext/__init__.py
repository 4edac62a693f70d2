"""A stand-in for `mmcv._ext`, the compiled operators of mmcv.

Installed from a package index, mmcv often comes without its compiled operators, or with some that
were built for another PyTorch; MMDetection and MMSegmentation cannot be imported then. The
operators here give the same results from torchvision's compiled operators, or from plain PyTorch
where torchvision has no equal, on the CPU and on CUDA. `install` makes them available.

| operator of the extension                         | here                                        |
|---------------------------------------------------|---------------------------------------------|
| nms                                               | torchvision (offset 1: PyTorch)             |
| softnms                                           | PyTorch                                     |
| roi_align_forward, _backward: average             | torchvision (huge or not finite: PyTorch)   |
| deform_conv_forward, _backward_input, _parameters | torchvision                                 |
| modulated_deform_conv_forward, _backward          | torchvision                                 |
| ms_deform_attn_forward, _backward                 | mmcv's own form in PyTorch, for the CPU     |
| sigmoid_focal_loss_forward, _backward             | PyTorch                                     |
| get_compiler_version, get_compiling_cuda_version  | say that nothing is compiled                |
| any other; roi_align: maximum                     | NotImplementedError, when it is called      |

Names and order of the arguments are those of the extension (mmcv/ops/csrc/pytorch/pybind.cpp),
which writes most results into tensors that the caller hands over. Half-precision inputs are
computed in float32 and rounded once, at the end; float64 stays float64. docs/operators.md says what
is promised, and where results differ from the extension's on purpose.

Letters of shapes: B images, C channels, H x W pixels, K boxes, P x Q bins of a box.
"""

from .import_hook import install

__all__ = ["install"]
