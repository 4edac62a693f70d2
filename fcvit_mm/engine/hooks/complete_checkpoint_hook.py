"""Refuse checkpoints that do not fit the model."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...checkpoint.mmengine_backends import find_address
from ...checkpoint.reader import fetch
from ...models.weights import OUTPUT_NORM, check_fit, model_weights
from ...utils.files import sha256
from ..preflight import unwrap


class CompleteCheckpointHook(Hook):
    """Refuse a checkpoint that does not fit, where MMEngine would only warn in its log.

    In test and on resume every tensor must fit; in training with `load_from` the backbone must,
    but for the output norms of stages that only one of both has, while heads of other classes may
    differ.
    """

    def __init__(self, filename: str, whole: bool) -> None:
        self.filename = filename
        self.whole = whole

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the keys and shapes of the file with the model's, before they are loaded."""
        wanted = unwrap(runner.model).state_dict()
        given = model_weights(checkpoint, wanted)
        if not self.whole:
            given, wanted = (
                {
                    key: value
                    for key, value in state.items()
                    if key.startswith("backbone.")
                    and (key in other or not OUTPUT_NORM.match(key.removeprefix("backbone.")))
                }
                for state, other in ((given, wanted), (wanted, given))
            )
        check_fit(self.filename, given, wanted)
        part = "the whole model" if self.whole else "the backbone, and of other parts what fits,"
        digest = sha256(fetch(find_address(self.filename)))
        runner.logger.info(f"FCViT: {part} comes from {self.filename}, SHA-256 {digest}")
