"""The table of operators that stand in for mmcv's compiled ones."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_OPERATORS: dict[str, Callable[..., Any]] = {}


def _operator(function: Callable[..., Any]) -> Callable[..., Any]:
    _OPERATORS[function.__name__] = function
    return function


def _widen(*tensors: Tensor) -> list[Tensor]:
    """float16 and bfloat16 become float32; the first tensor decides for all."""
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return [tensor.to(dtype) for tensor in tensors]
