"""A stand-in for `mmcv._ext`, the compiled operators of mmcv.

Installed from a package index, mmcv often comes without its compiled operators, or with some that
were built for another PyTorch; MMDetection and MMSegmentation cannot be imported then. The
operators below give the same results from torchvision's compiled operators, or from plain PyTorch
where torchvision has no equal, on the CPU and on CUDA.

| operator of the extension                         | here                                        |
|---------------------------------------------------|---------------------------------------------|
| nms                                               | torchvision (offset 1: PyTorch)             |
| softnms                                           | PyTorch                                     |
| roi_align_forward, _backward: average             | torchvision (huge or not finite: PyTorch)   |
| roi_align_forward, _backward: maximum             | PyTorch                                     |
| roi_pool_forward, _backward                       | PyTorch (torchvision's rounds the boxes)    |
| deform_conv_forward, _backward_input, _parameters | torchvision                                 |
| modulated_deform_conv_forward, _backward          | torchvision                                 |
| ms_deform_attn_forward, _backward                 | mmcv's own form in PyTorch, for the CPU     |
| sigmoid_focal_loss_forward, _backward             | PyTorch                                     |
| get_compiler_version, get_compiling_cuda_version  | say that nothing is compiled                |
| any other                                         | NotImplementedError, when it is called      |

Names and order of the arguments are those of the extension (mmcv/ops/csrc/pytorch/pybind.cpp),
which writes most results into tensors that the caller hands over. Half-precision inputs are
computed in float32 and rounded once, at the end; float64 stays float64. docs/operators.md says what
is promised, and where results differ from the extension's on purpose.

Letters of shapes: B images, C channels, H x W pixels, K boxes, P x Q bins of a box.
"""

import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, version
from importlib.util import module_from_spec
from logging import INFO, WARNING
from multiprocessing import parent_process
from types import ModuleType
from typing import Any

import torch
from mmengine.logging import print_log

# imported for the operators that they register
from . import deform, focal_loss, nms, roi  # noqa: F401
from .registry import _OPERATORS, _operator

_EXTENSION = "mmcv._ext"


def install() -> None:
    """Let the import of `mmcv._ext` find the stand-in wherever no compiled one can be loaded.

    Cheap: what is there is looked at when `mmcv._ext` is first imported, which `import mmcv.ops`
    does. A second call does nothing. Without mmcv it has no effect.
    """
    if not any(isinstance(finder, _ExtensionFinder) for finder in sys.meta_path):
        # ahead of the finder of files, which would hand out an extension that cannot be loaded
        sys.meta_path.insert(0, _ExtensionFinder())


class _ExtensionFinder(MetaPathFinder):
    """Finds `mmcv._ext`, whether or not there is a file of that name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _EXTENSION:
            return None
        compiled = PathFinder.find_spec(fullname, path)
        origin = compiled.origin if compiled else __package__
        return ModuleSpec(fullname, _ExtensionLoader(compiled), origin=origin)


class _ExtensionLoader(Loader):
    """Loads the compiled extension; the stand-in where there is none or where it fails to load."""

    def __init__(self, compiled: ModuleSpec | None) -> None:
        self.compiled = compiled

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        if self.compiled is None or self.compiled.loader is None:  # nothing, or a mere folder
            self.compiled = None
            _say(
                INFO,
                f"mmcv has no compiled operators here: {__package__}, built on torchvision's, "
                f"stands in for them. To compile them: {_build_command()}",
            )
            return None
        try:
            module = module_from_spec(self.compiled)
            self.compiled.loader.exec_module(module)
            return module
        except (ImportError, OSError) as error:
            _say(
                WARNING,
                f"mmcv's compiled operators ({self.compiled.origin}) cannot be loaded: {error}. "
                f"Most often they were built for another PyTorch than the installed "
                f"{torch.__version__}. {__package__}, built on torchvision's, stands in for them. "
                f"To rebuild them: {_build_command()}",
            )
            self.compiled, spec.origin = None, __package__
            return None

    def exec_module(self, module: ModuleType) -> None:
        if self.compiled is None:
            import torchvision  # noqa: F401  registers torch.ops.torchvision

            vars(module).update(_OPERATORS, __doc__=__doc__, __getattr__=_unimplemented)


def _say(level: int, message: str) -> None:
    """Log in one process of each machine: not in its other ranks, nor in worker processes."""
    rank = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
    if rank == "0" and parent_process() is None:
        print_log(message, logger="current", level=level)


def _build_command() -> str:
    # neither what pip builds in isolation nor the wheel in its cache would fit the installed torch
    pip = "pip install --no-build-isolation --no-cache-dir --no-deps --force-reinstall --no-binary"
    try:
        return f"{pip} onedl-mmcv onedl-mmcv=={version('onedl-mmcv')}"
    except PackageNotFoundError:
        # mmcv 2.1.0 is the last that mmdet 3.3.0 and mmsegmentation 1.2.2 accept
        return f"pip uninstall -y mmcv-lite; pip install 'setuptools<82'; {pip} mmcv mmcv==2.1.0"


def _unimplemented(name: str) -> Callable[..., Any]:
    """The stand-in's `__getattr__`: mmcv asks for all its operators at import and calls few."""
    if name.startswith("_"):
        raise AttributeError(f"module {_EXTENSION!r} has no attribute {name!r}")

    def operator(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            f"mmcv's compiled operator '{name}' was called, which {__package__} does not provide. "
            f"To compile mmcv for the installed PyTorch {torch.__version__} (with a C++ compiler, "
            f"for CUDA also nvcc): {_build_command()}"
        )

    return operator


@_operator
def get_compiler_version() -> str:
    return f"none ({__package__})"


@_operator
def get_compiling_cuda_version() -> str:
    return "not available"
