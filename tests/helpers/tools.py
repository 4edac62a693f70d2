"""To run the tools: short trainings, and what a refusal looks like."""

import socket
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from helpers import ROOT

CONFIGS = {
    "mask_rcnn": ROOT / "configs/detection/mask_rcnn_fcvit_tiny_shapes.py",
    "semantic_fpn": ROOT / "configs/segmentation/semantic_fpn_fcvit_tiny_shapes.py",
    "upernet": ROOT / "configs/segmentation/upernet_fcvit_tiny_shapes.py",
}
TASKS = {"detection": CONFIGS["mask_rcnn"], "segmentation": CONFIGS["semantic_fpn"]}
# Four iterations of two images, a checkpoint and an evaluation after the second and the fourth.
SHORT = [
    "train_cfg.max_iters=4",
    "train_cfg.val_interval=2",
    "default_hooks.checkpoint.interval=2",
    "default_hooks.logger.interval=1",
    "train_dataloader.batch_size=2",
    "train_dataloader.num_workers=0",
    "train_dataloader.persistent_workers=False",
    "val_dataloader.num_workers=0",
    "val_dataloader.persistent_workers=False",
]
TEST = ["test_dataloader.num_workers=0", "test_dataloader.persistent_workers=False"]


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def assert_sentence(result, *words: str) -> None:
    """One clear sentence and exit status 2."""
    assert result.returncode == 2, result.stderr[-2000:]
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in line


def load_tool(name: str) -> ModuleType:
    """Import a script of tools/ by its name."""
    (path,) = (ROOT / "tools").rglob(f"{name}.py")
    spec = spec_from_file_location(name, path)
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_exported(model: Path, source: Path, out: Path) -> subprocess.CompletedProcess:
    """Run run_exported.py where neither PyTorch, OpenMMLab nor another runtime can be imported."""
    other = "onnxruntime" if model.suffix == ".xml" else "openvino"
    refused = ("torch", "torchvision", "mmengine", "mmcv", "fcvit_mm", other)
    code = f"""
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {refused}:
            raise ImportError(f'{{name}} is not to be needed')
sys.meta_path.insert(0, Refuse())
sys.argv = ['run_exported.py', {str(model)!r}, {str(source)!r}, {str(out)!r}]
runpy.run_path({str(ROOT / "tools/deployment/run_exported.py")!r}, run_name='__main__')
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
