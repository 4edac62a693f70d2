"""Import paths of 0.1, which lead to the modules' new places until 0.3."""

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any

PACKAGE = "fcvit_mm."
# Those that configs and docs named.
MOVED = {
    "arch": "models.arch",
    "backbone": "models.fcvit",
    "coins": "datasets.coins",
    "confusion": "evaluation.confusion_matrix",
    "launch": "engine.launch",
    "layers": "models.layers",
    "mmcv_ops": "mmcv_ext",
    "shapes": "datasets.shapes",
    "triton_ops": "models.triton_layers",
    "tta": "models.tta",
}


class MovedModules(MetaPathFinder, Loader):
    """Find a module by its old path, with a warning that names the new one."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Answer for the old paths alone."""
        if name.startswith(PACKAGE) and name.removeprefix(PACKAGE) in MOVED:
            return ModuleSpec(name, self)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module of the new path itself; the import system overwrites its `__spec__`."""
        module = import_module(self._warn(spec.name))
        self.kept = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Execute nothing a second time."""
        module.__spec__ = self.kept

    def get_code(self, name: str) -> CodeType:
        """Return the code that `python -m` runs."""
        run = f"import runpy; runpy.run_module({self._warn(name)!r}, None, '__main__', True)"
        return compile(run, name, "exec")

    @staticmethod
    def _warn(name: str) -> str:
        new = PACKAGE + MOVED[name.removeprefix(PACKAGE)]
        # a FutureWarning is shown to users, a DeprecationWarning to developers alone
        warnings.warn(f"{name} is now {new}; the old path ends with 0.3", FutureWarning, 5)
        return new


def install() -> None:
    """Let the old paths be imported; a second call does nothing."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
