"""Let `import mmcv._ext` find the stand-in where no compiled extension can be loaded."""

import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from logging import INFO, WARNING
from multiprocessing import parent_process
from types import ModuleType

import torch
from mmengine.logging import print_log

# imported for the operators that they register
from . import deform, focal_loss, nms, roi  # noqa: F401
from .registry import OPERATORS, build_command, missing_operator

_EXTENSION = "mmcv._ext"


def install() -> None:
    """Let the import of `mmcv._ext` find the stand-in wherever no compiled one can be loaded.

    Cheap: the file is looked for when `mmcv._ext` is first imported, which `import mmcv.ops` does.
    A second call does nothing. Without mmcv it has no effect.
    """
    if not any(isinstance(finder, _ExtensionFinder) for finder in sys.meta_path):
        # ahead of the finder of files, which would hand out an extension that cannot be loaded
        sys.meta_path.insert(0, _ExtensionFinder())


class _ExtensionFinder(MetaPathFinder):
    """Find `mmcv._ext`, whether or not there is a file of that name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _EXTENSION:
            return None
        compiled = PathFinder.find_spec(fullname, path)
        origin = compiled.origin if compiled else __package__
        return ModuleSpec(fullname, _ExtensionLoader(compiled), origin=origin)


class _ExtensionLoader(Loader):
    """Load the compiled extension; the stand-in where there is none or where it fails to load."""

    def __init__(self, compiled: ModuleSpec | None) -> None:
        self.compiled = compiled

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        level, reason = INFO, "mmcv has no compiled operators here"
        if self.compiled and self.compiled.loader:  # neither nothing nor a mere folder
            try:
                module = module_from_spec(self.compiled)
                self.compiled.loader.exec_module(module)
                return module
            except (ImportError, OSError) as error:
                level = WARNING
                reason = (
                    f"mmcv's compiled operators ({self.compiled.origin}) cannot be loaded: "
                    f"{error}. Most often they were built for another PyTorch than the installed "
                    f"{torch.__version__}"
                )
        self.compiled, spec.origin = None, __package__
        # once per machine: neither in its other ranks nor in worker processes
        rank = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
        if rank == "0" and parent_process() is None:
            message = (
                f"{reason}. {__package__}, built on torchvision's, is used instead; there is "
                f"nothing to do. To compile mmcv's own: {build_command()}"
            )
            print_log(message, logger="current", level=level)
        return None

    def exec_module(self, module: ModuleType) -> None:
        if self.compiled is None:
            import torchvision  # noqa: F401  registers torch.ops.torchvision

            vars(module).update(OPERATORS, __doc__=__doc__, __getattr__=_get_attribute)


def _get_attribute(name: str) -> object:
    """Be the stand-in's `__getattr__`: what the table lacks fails only when it is called."""
    if name.startswith("_"):
        raise AttributeError(f"module {_EXTENSION!r} has no attribute {name!r}")
    return missing_operator(name)
