"""What importing the models must not import."""

import subprocess
import sys

HEAVY = (
    "fcvit_mm.ops.dispatch",
    "fcvit_mm.ops.triton",
    "matplotlib",
    "mmdet",
    "mmseg",
    "mmpretrain",
)


def test_models_import_neither_kernels_nor_toolboxes_nor_matplotlib():
    code = f"""
import sys
import fcvit_mm
import fcvit_mm.models.fcvit
print(*[name for name in {HEAVY} if name in sys.modules])
fcvit_mm.FCViT("tiny", triton=True)
assert "fcvit_mm.ops.triton" in sys.modules  # that is its name
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == []
