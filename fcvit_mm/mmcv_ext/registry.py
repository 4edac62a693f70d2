"""The table of operators that stand in for mmcv's compiled ones."""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

OPERATORS: dict[str, Callable[..., Any]] = {}


def register_operator(function: Callable[..., Any]) -> Callable[..., Any]:
    """Enter a function in the table under its own name, which is the extension's."""
    OPERATORS[function.__name__] = function
    return function


def missing_operator(name: str) -> Callable[..., Any]:
    """Return a function that raises NotImplementedError: mmcv asks for all, and calls few."""

    def operator(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            f"mmcv's compiled operator '{name}' was called, which {__package__} does not provide. "
            f"To compile mmcv for the installed PyTorch {torch.__version__} (with a C++ compiler, "
            f"for CUDA also nvcc): {build_command()}"
        )

    return operator


def build_command() -> str:
    """Return the command that compiles the operators for the installed mmcv and PyTorch."""
    # neither what pip builds in isolation nor the wheel in its cache would fit the installed torch
    pip = "pip install --no-build-isolation --no-cache-dir --no-deps --force-reinstall --no-binary"
    try:
        return f"{pip} onedl-mmcv onedl-mmcv=={version('onedl-mmcv')}"
    except PackageNotFoundError:
        # mmcv 2.1.0 is the last that mmdet 3.3.0 and mmsegmentation 1.2.2 accept
        return f"pip uninstall -y mmcv-lite; pip install 'setuptools<82'; {pip} mmcv mmcv==2.1.0"


def widen(*tensors: Tensor) -> list[Tensor]:
    """Turn float16 and bfloat16 into float32; the first tensor decides for all."""
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return [tensor.to(dtype) for tensor in tensors]


@register_operator
def get_compiler_version() -> str:
    return f"none ({__package__})"


@register_operator
def get_compiling_cuda_version() -> str:
    return "not available"
