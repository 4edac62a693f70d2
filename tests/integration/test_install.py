"""What importing the package does, with and without OpenMMLab."""

import subprocess
import sys

import pytest

import fcvit_mm


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_without_openmmlab_the_import_says_which_command_installs_it():
    result = python("import sys; sys.modules['mmengine'] = None; import fcvit_mm")
    (line,) = [text for text in result.stderr.splitlines() if text.startswith("ImportError")]
    assert "pip install 'fcvit-mm[openmmlab]'" in line and "openmmlab-official" in line


@pytest.mark.official
def test_the_import_needs_mmengine_alone():
    hidden = ["mmcv", "mmdet", "mmseg", "mmpretrain"]
    result = python(
        f"import sys; sys.modules.update(dict.fromkeys({hidden}))\n"
        "import fcvit_mm, torch\n"
        "print(len(fcvit_mm.FCViT('tiny')(torch.rand(2, 3, 32, 32))))"
    )
    assert result.returncode == 0 and result.stdout.strip().endswith("4"), result.stderr


def test_the_version_is_the_distributions():
    from importlib.metadata import version

    assert version("fcvit-mm") == fcvit_mm.__version__
