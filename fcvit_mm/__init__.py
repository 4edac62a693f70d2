"""FCViT (arXiv 2212.12552) for OpenMMLab: a backbone for detection and segmentation.

Importing this package registers `FCViT` in MMEngine's registry, stands in for mmcv's compiled
operators where there are none, makes MMEngine read checkpoints safely and write them whole, and
lets configs inherit from ours as `fcvit_mm::...`.
"""

from importlib.util import find_spec

__version__ = "0.1.0"

if find_spec("mmengine") is None:
    raise ImportError(
        "fcvit_mm needs OpenMMLab, which is not installed: pip install 'fcvit-mm[openmmlab]' "
        "(the maintained packages) or 'fcvit-mm[openmmlab-official]' (the last official releases)"
    )

from .checkpoint.mmengine_backends import register_atomic_local_backend, register_safe_loaders
from .checkpoint.reader import read_checkpoint
from .engine.hooks.non_finite_loss_hook import NonFiniteLossHook
from .engine.layer_decay import FCViTLayerDecayOptimWrapperConstructor
from .mmcv_ext import import_hook
from .models.fcvit import FCViT
from .models.fuse import fuse
from .models.weights import load_pretrained
from .utils import mim, moved
from .utils.errors import CheckpointError, NonFiniteError
from .utils.mim import config_path

import_hook.install()
register_safe_loaders()
register_atomic_local_backend()
mim.install()
moved.install()

__all__ = [
    "CheckpointError",
    "FCViT",
    "FCViTLayerDecayOptimWrapperConstructor",
    "NonFiniteError",
    "NonFiniteLossHook",
    "__version__",
    "config_path",
    "fuse",
    "load_pretrained",
    "read_checkpoint",
]
