"""Sigmoid focal loss."""

import torch
from torch import Tensor

from .registry import register_operator, widen


@register_operator
def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """input (N, classes) logits, target (N,), weight (classes,) or empty, output (N, classes).

    Lin et al., arXiv 1708.02002, equation 5. A target of no class is background.
    """
    right, wrong, log_right, factor, _ = _focal_terms(input, target, weight, alpha)
    output.copy_(-factor * wrong**gamma * log_right)


@register_operator
def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    right, wrong, log_right, factor, sign = _focal_terms(input, target, weight, alpha)
    grad_input.copy_(-sign * factor * wrong**gamma * (wrong - gamma * right * log_right))


def _focal_terms(
    input: Tensor, target: Tensor, weight: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the terms of the loss of each logit, (N, classes) each.

    Probability of what is true, and of what is not; log of the first; factor; the direction (1 or
    -1) in which the logit raises the first.
    """
    logits, weights = widen(input, weight)
    classes = torch.arange(input.shape[1], device=input.device)
    positive = target[:, None] == classes
    p = logits.sigmoid()
    right, wrong = torch.where(positive, p, 1 - p), torch.where(positive, 1 - p, p)
    factor = torch.full_like(p, 1 - alpha).masked_fill_(positive, alpha)
    if len(weights):
        if not positive.any(dim=1).all():
            raise ValueError(
                "sigmoid_focal_loss has no weight for a target outside the "
                f"{len(weights)} classes: leave weight out where there is background"
            )
        factor = factor * weights[target][:, None]
    # the extension guards log against 0 with C's FLT_MIN, whatever the type
    log_right = right.clamp(min=torch.finfo(torch.float32).tiny).log()
    return right, wrong, log_right, factor, torch.where(positive, 1, -1)
