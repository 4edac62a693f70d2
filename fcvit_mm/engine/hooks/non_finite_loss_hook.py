"""Name losses and gradients that are not finite, write them down and keep them from the weights.

One NaN that an optimizer takes spoils every weight it reaches; hours later the log says nan, and
nothing of where it came from.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor
from torch.nn.utils import get_total_norm

from ...datasets.checks.report import listed
from ...utils.errors import NonFiniteError
from ...utils.files import write_json
from ..preflight import unwrap

# How many names a sentence has.
SHOWN = 4
# iteration, rank, losses, images: path and ID of each.
Batch = dict[str, Any]


@HOOKS.register_module()
class NonFiniteLossHook(Hook):
    """Stop a training, or leave a step out, where the loss or the gradient is not finite.

    This comes before the optimizer's step, so that no weight has changed; all loss terms and the
    images are written to `nonfinite_iter_N.json` next to the run's log. Several processes decide
    alike: a loss that is not finite makes the gradient so, and the gradient is shared.
    In mixed precision a gradient that is not finite, with finite losses and a loss scale above 1,
    is an overflow of half precision: GradScaler leaves out the step and lowers the scale, and the
    log says so.

    With `accumulative_counts` a step has several batches; all of them are left out.

    Args:
        max_skips: how many steps of a run may be left out; the next one stops it. BatchNorm's
            statistics, which the batch has spoiled by then, are set back.

    Raises:
        NonFiniteError: in training, more than `max_skips` times; in all processes.
    """

    def __init__(self, max_skips: int = 0) -> None:
        if not isinstance(max_skips, int) or max_skips < 0:
            raise ValueError(f"max_skips={max_skips!r} must be a whole number of at least 0")
        self.max_skips = max_skips
        self.skips = 0
        self._batches: list[Batch] = []
        self._images: list[dict[str, Any]] = []
        self._buffers: list[Tensor] = []
        self._step: Callable[..., None]

    def before_train(self, runner: Runner) -> None:
        """Wrap the model's computation of the loss and the optimizer's step."""
        model, optim_wrapper = unwrap(runner.model), runner.optim_wrapper
        parse_losses, step = model.parse_losses, optim_wrapper.step

        def noted(losses: dict) -> tuple[Tensor, dict[str, Tensor]]:
            loss, terms = parse_losses(losses)
            about = dict(iteration=runner.iter + 1, rank=runner.rank, images=self._images)
            self._batches.append(dict(about, losses=terms))
            # 1 if it is finite, else NaN: an infinite loss, or a term without a graph, may have a
            # finite gradient
            value = loss.detach()
            return loss * (1 + (value - value)), terms

        # MMEngine's schedulers look for a mark on it
        @functools.wraps(step)
        def checked(**kwargs: Any) -> None:
            batches, self._batches = self._batches, []
            norm = get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            if norm.isfinite() or not self._leave_out(runner, batches, float(norm)):
                step(**kwargs)

        model.parse_losses, optim_wrapper.step = noted, checked
        self._step = step

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Note the images of the batch, and the buffers as they are before it."""
        samples = data_batch.get("data_samples", []) if isinstance(data_batch, dict) else []
        self._images = [
            {key: getattr(sample, key) for key in ("img_path", "img_id") if hasattr(sample, key)}
            for sample in samples
        ]
        if self.max_skips and not self._batches:
            self._buffers = [buffer.clone() for buffer in unwrap(runner.model).buffers()]

    def after_train(self, runner: Runner) -> None:
        """Leave model and optimizer as they were."""
        del unwrap(runner.model).parse_losses
        runner.optim_wrapper.step = self._step

    def _leave_out(self, runner: Runner, batches: list[Batch], norm: float) -> bool:
        """Return whether to leave out a step whose gradient is not finite; all processes ask.

        Raises:
            NonFiniteError: there were too many.
        """
        for batch in batches:
            terms = batch["losses"]
            batch["losses"] = {name: _number(float(v.detach())) for name, v in terms.items()}
            wrong = [name for name, value in batch["losses"].items() if isinstance(value, str)]
            batch["non_finite"] = [name for name in wrong if "loss" in name]
            for name in wrong:  # they would be nan in the means of the log for a whole window
                del terms[name]
        batches = [batch for process in all_gather_object(batches) for batch in process]
        spoiled = [batch for batch in batches if batch["non_finite"]]
        scaler = getattr(runner.optim_wrapper, "loss_scaler", None)
        scale = scaler.get_scale() if scaler is not None else None
        if not spoiled and scale is not None and scale > 1:
            runner.logger.info(
                f"iteration {runner.iter + 1}: mixed precision: the losses are finite, their "
                f"gradient overflows at a loss scale of {scale:g}; GradScaler leaves out this step "
                "and lowers the scale"
            )
            return False
        self.skips += 1
        sentence = _write(runner, spoiled or batches, norm, scale)
        if self.skips > self.max_skips:
            is_half = scaler is not None and runner.optim_wrapper.cast_dtype != torch.bfloat16
            half = "set optim_wrapper.dtype=bfloat16, " if is_half else ""
            raise NonFiniteError(
                f"{sentence}. No weight was changed by it. Inspect these images and their "
                f"annotations; where they are sound, {half}lower the learning rate or set "
                "optim_wrapper.clip_grad, and --resume from the last checkpoint. "
                f"default_hooks.nonfinite.max_skips, now {self.max_skips}, is how many such steps "
                "may be left out instead"
            )
        for buffer, before in zip(unwrap(runner.model).buffers(), self._buffers, strict=True):
            buffer.copy_(before)
        runner.logger.warning(
            f"{sentence}. The step is left out, {self.skips} of at most {self.max_skips}"
        )
        return True


def _number(value: float) -> float | str:
    """Return a number, or its name where JSON has none for it."""
    return value if math.isfinite(value) else str(value)


def _write(runner: Runner, batches: list[Batch], norm: float, scale: float | None) -> str:
    """Write what was not finite, and where the training was, as JSON; say it in a sentence."""
    iteration, optim_wrapper = runner.iter + 1, runner.optim_wrapper
    # the sum of the losses says nothing that its terms don't
    terms = {
        f"{name} is {batch['losses'][name]}": None
        for batch in batches
        for name in batch["non_finite"]
        if name != "loss" or batch["non_finite"] == ["loss"]
    }
    parameters = [
        name
        for name, p in unwrap(runner.model).named_parameters()
        if not terms and p.grad is not None and not p.grad.isfinite().all()
    ]
    path = Path(runner.log_dir) / f"nonfinite_iter_{iteration}.json"
    content = {
        "iteration": iteration,
        "epoch": runner.epoch + 1,
        "lr": {name: rates[0] for name, rates in optim_wrapper.get_lr().items()},
        "autocast": str(getattr(optim_wrapper, "cast_dtype", None)),
        "loss_scale": scale,
        "grad_norm": _number(norm),
        "non_finite_gradients": parameters,
        "batches": batches,
    }
    if runner.rank == 0:
        write_json(path, content)
    images = [
        str(image.get("img_path", image.get("img_id")))
        for batch in batches
        for image in batch["images"]
    ]
    what = f"the losses are finite, but the gradient of {listed(parameters, SHOWN)} is not"
    if terms:
        iteration, what = batches[0]["iteration"], listed(list(terms), SHOWN)
    return (
        f"iteration {iteration}: {what}, for the images {listed(images, SHOWN)}; written to {path}"
    )
