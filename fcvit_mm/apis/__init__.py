"""Predict with a trained model, and export it."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .predictor import Predictor


def load(
    path: str | Path, checkpoint: str | Path | None = None, device: str | None = None
) -> "Predictor":
    """Load a trained model for images in memory.

    Args:
        path: a work directory, whose config and best checkpoint are taken; a folder that `fcvit
            publish` wrote; or a config, with a checkpoint.
        checkpoint: path, URL, `hf://ORG/REPO/FILE@REVISION`, or the name of a released model.
        device: such as cuda:1 or cpu (default: the GPU if there is one).

    Returns:
        A predictor; call it with an image or a list of images.

    Raises:
        ConfigError: the config can't be built, or there is no such device.
        CheckpointError: the checkpoint can't be read, or does not fit the model.
    """
    # `import fcvit_mm` loads neither matplotlib nor a toolbox
    from ..utils import work_dir
    from ..utils.config import load_config
    from .model import find_device
    from .predictor import Predictor

    if checkpoint is None:
        path, checkpoint = work_dir.find(path)
    return Predictor(load_config(str(path)), str(checkpoint), find_device(device))
