"""FCViT (arXiv 2212.12552) for OpenMMLab: a backbone for detection and segmentation.

Importing this package registers `FCViT` in MMEngine's registry and changes what `register_all`
lists.
"""

# ruff: noqa: E402, since the imports below are those that take long

import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

__version__ = "0.1.0"

# Ctrl-C in the seconds that these imports take ends a program as ever, but without a traceback.
_excepthook = sys.excepthook
sys.excepthook = lambda kind, *rest: kind is KeyboardInterrupt or _excepthook(kind, *rest)

if find_spec("mmengine") is None:
    raise ImportError(
        "fcvit_mm needs OpenMMLab, which is not installed: pip install 'fcvit-mm[openmmlab]' "
        "(the maintained packages) or 'fcvit-mm[openmmlab-official]' (the last official releases)"
    )

from .apis import load
from .checkpoint.mmengine_backends import register_safe_loaders, write_checkpoints_atomically
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


def register_all() -> None:
    """Change in MMEngine, and in Python's imports, what the package relies on.

    `import fcvit_mm` calls it; nothing else is changed at import. A second call does nothing.

    - `FCViT` and the other classes of the package are registered by importing their modules.
    - The import of `mmcv._ext` finds `mmcv_ext` where mmcv was installed without its compiled
      operators, since neither MMDetection nor MMSegmentation can be imported without them.
    - MMEngine reads checkpoints by `read_checkpoint`: its own loaders unpickle whatever a file
      says, which may run code.
    - MMEngine's `save_checkpoint` writes local files under another name first: a killed training
      leaves no half of a checkpoint under the name of a whole one. All else it writes as before.
    - A `_base_` may begin with `fcvit_mm::`, which MMEngine allows to OpenMMLab's packages alone.
    - The import paths of 0.1 lead to the modules' new places, with a warning.
    - MMDetection's warning that faster_coco_eval is not installed is not shown: it comes at every
      start, whether or not a config asks for that metric.
    """
    import_hook.install()
    register_safe_loaders()
    write_checkpoints_atomically()
    mim.install()
    moved.install()
    warnings.filterwarnings("ignore", message="faster_coco_eval is not installed")


register_all()
# a tool imports more after this
_script = getattr(sys.modules.get("__main__"), "__file__", None)
if not _script or not Path(_script).resolve().is_relative_to((mim.MIM / "tools").resolve()):
    sys.excepthook = _excepthook

__all__ = [
    "CheckpointError",
    "FCViT",
    "FCViTLayerDecayOptimWrapperConstructor",
    "NonFiniteError",
    "NonFiniteLossHook",
    "__version__",
    "config_path",
    "fuse",
    "load",
    "load_pretrained",
    "read_checkpoint",
    "register_all",
]
