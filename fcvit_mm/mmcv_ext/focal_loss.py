"""Sigmoid and softmax focal loss."""

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


@register_operator
def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """input (N, classes) probabilities, target (N,), weight (classes,) or empty, output (N,).

    A target below 0 is ignored.
    """
    _, right, log_right, factor = _softmax_terms(input, target, weight, alpha)
    output.copy_((-factor * (1 - right) ** gamma * log_right).masked_fill_(target < 0, 0))


@register_operator
def softmax_focal_loss_backward(*tensors: Tensor, gamma: float, alpha: float) -> None:
    """Write the gradient of the logits, and in `buff` (N,) what all logits of a row share."""
    input, target, weight, buff, grad_input = tensors
    probability, right, log_right, factor = _softmax_terms(input, target, weight, alpha)
    wrong = 1 - right
    slope = gamma * wrong ** (gamma - 1) * right * log_right
    # 0 in the limit, for a gamma below 1 too
    shared = factor * (slope.masked_fill_(wrong == 0, 0) - wrong**gamma)
    shared.masked_fill_(target < 0, 0)
    positive = target[:, None] == torch.arange(input.shape[1], device=input.device)
    grad = shared[:, None] * (positive.to(shared) - probability)
    buff.copy_(shared)
    grad_input.copy_(grad.masked_fill_(target[:, None] < 0, 0))


def _softmax_terms(
    input: Tensor, target: Tensor, weight: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the probabilities (N, classes); that of what is true, its log and factor (N,)."""
    probability, weights = widen(input, weight)
    if (target >= input.shape[1]).any():
        raise ValueError(
            f"softmax_focal_loss has {input.shape[1]} classes and a target of {target.max()}"
        )
    label = target.clamp(min=0)
    right = probability.gather(1, label[:, None]).squeeze(1)
    factor = alpha * weights[label] if len(weights) else torch.full_like(right, alpha)
    return probability, right, right.clamp(min=torch.finfo(torch.float32).tiny).log(), factor
