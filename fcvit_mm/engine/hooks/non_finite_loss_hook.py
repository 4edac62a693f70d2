"""Name losses and gradients that are not finite, write them down and keep them from the weights.

One NaN that an optimizer takes spoils every weight it reaches; hours later the log says nan, and
nothing of where it came from. `NonFiniteLossHook` checks the gradient before each step of the
optimizer. As a hook it sees losses and gradients of any model and optimizer.
"""

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.dist import all_gather_object, master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor
from torch.nn.utils import get_total_norm

from ...datasets.checks.report import listed
from ...utils.errors import NonFiniteError
from ...utils.files import atomic_write
from ..preflight import unwrap

# How many names a sentence has.
SHOWN = 4


class _Batch(NamedTuple):
    """Hold what one process computed in one iteration.

    iteration: its number, as in the log. terms: the losses as the model returns them, () each.
    images: path and id of each.
    """

    iteration: int
    terms: dict[str, Tensor]
    images: list[dict[str, Any]]

    def record(self, rank: int) -> dict[str, Any]:
        """Return it as it is written down; JSON has no number for what is not finite."""
        losses = {name: _number(float(value.detach())) for name, value in self.terms.items()}
        wrong = [name for name, v in losses.items() if "loss" in name and isinstance(v, str)]
        return {
            "iteration": self.iteration,
            "rank": rank,
            "losses": losses,
            "non_finite": wrong,
            "images": self.images,
        }


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _images(data_batch: Any) -> list[dict[str, Any]]:
    """Return paths and ids of the images of a batch, which all tasks of OpenMMLab pack alike."""
    samples = data_batch.get("data_samples", []) if isinstance(data_batch, dict) else []
    return [
        {key: getattr(sample, key) for key in ("img_path", "img_id") if hasattr(sample, key)}
        for sample in samples
    ]


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
        self._batches: list[_Batch] = []
        self._images: list[dict[str, Any]] = []
        self._buffers: list[Tensor] = []
        self._step: Callable[..., None]

    def before_train(self, runner: Runner) -> None:
        """Wrap the model's computation of the loss and the optimizer's step."""
        model, optim_wrapper = unwrap(runner.model), runner.optim_wrapper
        parse_losses, step = model.parse_losses, optim_wrapper.step

        def noted(losses: dict) -> tuple[Tensor, dict[str, Tensor]]:
            loss, terms = parse_losses(losses)
            self._batches.append(_Batch(runner.iter + 1, terms, self._images))
            # 1 if it is finite, else NaN: an infinite loss, or a term without a graph, may have a
            # finite gradient
            value = loss.detach()
            return loss * (1 + (value - value)), terms

        # MMEngine's schedulers look for a mark on it
        @functools.wraps(step)
        def checked(**kwargs: Any) -> None:
            batches, self._batches = self._batches, []
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            norm = float(get_total_norm(gradients))
            if math.isfinite(norm) or not self._leave_out(runner, batches, norm):
                step(**kwargs)

        model.parse_losses, optim_wrapper.step = noted, checked
        self._step = step

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Note the images of the batch, and the buffers as they are before it."""
        self._images = _images(data_batch)
        if self.max_skips and not self._batches:
            self._buffers = [buffer.clone() for buffer in unwrap(runner.model).buffers()]

    def after_train(self, runner: Runner) -> None:
        """Leave model and optimizer as they were."""
        del unwrap(runner.model).parse_losses
        runner.optim_wrapper.step = self._step

    def _leave_out(self, runner: Runner, batches: list[_Batch], norm: float) -> bool:
        """Return whether to leave out a step whose gradient is not finite; all processes ask.

        Raises:
            NonFiniteError: there were too many.
        """
        mine = [batch.record(runner.rank) for batch in batches]
        records = [record for process in all_gather_object(mine) for record in process]
        wrong = [record for record in records if record["non_finite"]]
        scaler = getattr(runner.optim_wrapper, "loss_scaler", None)
        scale = scaler.get_scale() if scaler is not None else None
        if not wrong and scale is not None and scale > 1:
            runner.logger.info(
                f"iteration {runner.iter + 1}: mixed precision: the losses are finite, their "
                f"gradient overflows at a loss scale of {scale:g}; GradScaler leaves out this step "
                "and lowers the scale"
            )
            return False
        self.skips += 1
        for batch in batches:
            # they would be nan in the means of the log for a whole window
            for name in [name for name, v in batch.terms.items() if not v.isfinite()]:
                del batch.terms[name]
        path = Path(runner.log_dir) / f"nonfinite_iter_{runner.iter + 1}.json"
        names = [
            name
            for name, p in unwrap(runner.model).named_parameters()
            if p.grad is not None and not p.grad.isfinite().all()
        ]
        content = {
            "loss_scale": scale,
            "grad_norm": _number(norm),
            "non_finite_gradients": [] if wrong else names,
            "batches": wrong or records,
        }
        _write(path, runner, content)
        sentence = f"{_sentence(runner.iter + 1, records, names)}; written to {path}"
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


@master_only
def _write(path: Path, runner: Runner, content: dict[str, Any]) -> None:
    """Write what was not finite, and where the training was, as JSON."""
    optim_wrapper = runner.optim_wrapper
    content = {
        "iteration": runner.iter + 1,
        "epoch": runner.epoch + 1,
        "lr": {name: rates[0] for name, rates in optim_wrapper.get_lr().items()},
        "autocast": str(getattr(optim_wrapper, "cast_dtype", None)),
        **content,
    }
    with atomic_write(path) as file:
        file.write_text(json.dumps(content, indent=1) + "\n")


def _sentence(iteration: int, records: list[dict[str, Any]], parameters: list[str]) -> str:
    """What is not finite, and for which images."""
    wrong = [record for record in records if record["non_finite"]]
    if wrong:
        # the sum says nothing that its terms don't
        terms = {
            f"{name} is {record['losses'][name]}": None
            for record in wrong
            for name in record["non_finite"]
            if name != "loss" or record["non_finite"] == ["loss"]
        }
        what = listed(list(terms), SHOWN)
    else:
        what = f"the losses are finite, but the gradient of {listed(parameters, SHOWN)} is not"
    images = [
        str(image.get("img_path", image.get("img_id")))
        for record in wrong or records
        for image in record["images"]
    ]
    iteration = wrong[0]["iteration"] if wrong else iteration
    return f"iteration {iteration}: {what}, for the images {listed(images, SHOWN)}"
