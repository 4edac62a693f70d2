"""Run the evaluation that was due when the resumed checkpoint was written."""

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner


class DueEvaluationHook(Hook):
    """Run the evaluation that was due when the resumed checkpoint was written.

    The checkpoint comes first, so that a training may have been killed before the evaluation, and
    MMEngine goes on with the next iteration.
    """

    priority = "LOWEST"
    amid_epoch = False

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Tell a checkpoint of `StopHook` amid an epoch from one at its end."""
        self.amid_epoch = any(checkpoint["meta"].get("batches", ()))

    def before_train(self, runner: Runner) -> None:
        """Evaluate if the loop would have after the iteration or epoch of the checkpoint."""
        loop = runner.train_loop
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        done, last = (loop.epoch, loop.max_epochs) if by_epoch else (loop.iter, loop.max_iters)
        loop._decide_current_val_interval()
        is_due = done >= max(loop.val_begin, 1) and (done % loop.val_interval == 0 or done == last)
        if is_due and not self.amid_epoch and runner.val_loop is not None:
            runner.val_loop.run()
