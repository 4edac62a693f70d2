"""Tell whether layers run one by one on a CPU, where they may take forms of their own."""

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx import Proxy


def is_transformed() -> bool:
    """Tell whether a transform of torch.func, or forward-mode differentiation, is at work.

    They know PyTorch's operators, but neither our gradients nor all layouts.
    """
    return not torch.compiler.is_compiling() and (
        torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    )


def runs_on_cpu(x: Tensor) -> bool:
    """Tell whether layers run on x as they are called: on a CPU, in full precision, one by one.

    In a graph, of a compiler or for export, and in transforms, they stay PyTorch's.
    """
    return (
        not isinstance(x, Proxy)  # what torch.fx calls a layer with
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not is_transformed()
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
    )
