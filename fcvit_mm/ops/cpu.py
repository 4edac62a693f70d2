"""Tell whether layers run one by one on a CPU, where they may take forms of their own."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def runs_on_cpu(x: Tensor) -> bool:
    """Tell whether layers run on x as they are called: on a CPU, in full precision, one by one.

    In a graph, of a compiler or for export, they stay PyTorch's.
    """
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
    )


def gelu(x: Tensor) -> Tensor:
    """Compute GELU; in place in a prediction on a CPU, which then seldom needs new memory."""
    if torch.is_grad_enabled() or not runs_on_cpu(x):
        return F.gelu(x)
    return torch.ops.aten.gelu_(x)
