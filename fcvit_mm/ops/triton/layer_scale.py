"""Layer scale and residual addition: its backward pass in one, in channels_last."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .common import dense, jit, launch, rows, sum_dtype, tl, tl_sum_dtype, triton

# Programs that sum up, at most, and a program's tile, positions x channels.
PARTS, POSITIONS, CHANNELS = 256, 64, 32


@jit
def _scale_grad_kernel(
    grad: tl.tensor,
    branch: tl.tensor,
    scale: tl.tensor,
    out: tl.tensor,
    partial: tl.tensor,
    positions: tl.tensor,
    channels: tl.tensor,
    block_p: tl.constexpr,
    block_c: tl.constexpr,
    dtype: tl.constexpr,
) -> None:
    """Gradient of the branch, grad * scale, and sums over some positions of grad * branch."""
    channel = tl.program_id(1) * block_c + tl.arange(0, block_c)[None, :]
    factor = tl.load(scale + channel, mask=channel < channels, other=0).to(dtype)
    total = tl.zeros((block_p, block_c), dtype)
    for start in range(tl.program_id(0) * block_p, positions, tl.num_programs(0) * block_p):
        position = start + tl.arange(0, block_p)[:, None]
        valid = (position < positions) & (channel < channels)
        offset = position.to(tl.int64) * channels + channel
        slope = tl.load(grad + offset, mask=valid, other=0).to(dtype)
        total += slope * tl.load(branch + offset, mask=valid, other=0).to(dtype)
        tl.store(out + offset, (slope * factor).to(out.dtype.element_ty), mask=valid)
    place = tl.program_id(0) * channels + channel
    tl.store(partial + place, tl.sum(total, 0, keep_dims=True), mask=channel < channels)


class AddScaled(torch.autograd.Function):
    """x + scale * branch; x and branch (B, d, H, W) in channels_last, scale (d,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, branch: Tensor) -> Tensor:
        ctx.save_for_backward(scale, branch)
        return torch.addcmul(x, scale[:, None, None], branch)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        scale, branch = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again, which a kernel can't be
            return grad, (grad * branch).sum((0, 2, 3)), grad * scale[:, None, None]
        grad, branch = (dense(each, channels_last=True) for each in (grad, branch))
        positions, channels = rows(grad).shape
        parts = min(PARTS, triton.cdiv(positions, POSITIONS))
        out = torch.empty_like(branch)
        partial = branch.new_empty((parts, channels), dtype=sum_dtype(branch))
        launch(
            _scale_grad_kernel,
            (parts, triton.cdiv(channels, CHANNELS)),
            *(grad, branch, scale, out, partial, positions, channels),
            block_p=POSITIONS,
            block_c=CHANNELS,
            dtype=tl_sum_dtype(branch),
        )
        return grad, partial.sum(0), out
