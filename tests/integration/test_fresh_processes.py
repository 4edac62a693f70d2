"""What importing the package does to mmcv and with Triton: each in a process of its own."""

import os
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from helpers import ROOT

needs_triton = pytest.mark.skipif(
    not find_spec("triton"), reason="PyTorch for macOS and Windows comes without Triton"
)


def run_python(code: str, **env: str) -> str:
    """What a fresh process prints, on both channels; it must succeed."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def lines_about_operators(output: str) -> list[str]:
    return [line for line in output.splitlines() if "compiled operators" in line]


@pytest.mark.official
def test_without_compiled_operators_everything_imports_and_one_line_says_so() -> None:
    output = run_python(
        "import fcvit_mm, importlib.util, sys\n"
        "assert not {'mmcv.ops', 'mmdet', 'mmseg', 'mmpretrain'} & set(sys.modules)\n"
        "assert importlib.util.find_spec('mmcv._ext').origin == 'fcvit_mm.mmcv_ext'\n"
        "from mmengine.utils.dl_utils import mmcv_full_available\n"
        "assert mmcv_full_available()\n"
        "import mmcv.ops, mmdet.models, mmdet.apis, mmseg.apis\n"
        "from mmcv.utils import collect_env\n"
        "print(collect_env()['MMCV Compiler'])\n"
    )
    (line,) = lines_about_operators(output)
    assert "INFO" in line and "no compiled operators" in line and "pip install" in line
    assert "none (fcvit_mm.mmcv_ext)" in output


BROKEN_OR_FAKE = (
    "import fcvit_mm, mmcv, warnings\n"
    "mmcv.__path__.append({folder!r})\n"
    "import mmcv.ops, mmcv._ext, torch\n"
    "print('kept', mmcv.ops.nms(torch.tensor([[0., 0, 9, 9]]), torch.ones(1), 0.5)[1].tolist())\n"
    "print('module', mmcv._ext.__file__ if hasattr(mmcv._ext, '__file__') else 'stand-in')\n"
)


@pytest.mark.official
def test_compiled_operators_that_do_not_load_are_replaced_with_one_warning(tmp_path: Path) -> None:
    library = tmp_path / f"_ext{EXTENSION_SUFFIXES[0]}"
    library.write_bytes(b"no library at all")
    output = run_python(BROKEN_OR_FAKE.format(folder=str(tmp_path)))
    (line,) = lines_about_operators(output)
    assert "WARNING" in line and str(library) in line and torch.__version__ in line
    assert "--no-build-isolation" in line and "--no-cache-dir" in line
    assert "kept [0]" in output and "module stand-in" in output


@pytest.mark.official
def test_compiled_operators_that_load_win(tmp_path: Path) -> None:
    (tmp_path / "_ext.py").write_text(
        "import torch\n"
        "def nms(boxes, scores, iou_threshold, offset):\n"
        "    return torch.tensor([0, 0, 0])\n"
        "def __getattr__(name):\n"
        "    if name.startswith('__'): raise AttributeError(name)\n"
        "    return None\n"
    )
    output = run_python(BROKEN_OR_FAKE.format(folder=str(tmp_path)))
    assert lines_about_operators(output) == []
    assert "kept [0, 0, 0]" in output and f"module {tmp_path / '_ext.py'}" in output


@pytest.mark.official
def test_import_without_triton():
    script = """
import sys
sys.modules["triton"] = None
import torch
from fcvit_mm import FCViT
from fcvit_mm.ops.triton import dispatch
x = torch.ones(1, 8, 3, 3)
assert dispatch.depthwise_conv(x, weight=torch.ones(8, 1, 3, 3))[0, 0, 1, 1] == 9
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.slow
@needs_triton
def test_kernels_compile_for_a_gpu(tmp_path):
    """What the interpreter runs is Python; a GPU's compiler knows types. It needs no GPU."""
    script = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from fcvit_mm.ops.triton import (
    channel_mixer, depthwise_conv, global_context, group_norm, layer_scale
)

NAMES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32",
         torch.float64: "*fp64"}
compiled = set()

def compile(kernel, grid, *arguments, **constants):
    constants.pop("num_stages", None)
    types = ["i32" if isinstance(a, int) else NAMES[a.dtype] for a in arguments]
    names = kernel.arg_names
    signature = dict(zip(names, types)) | {name: "constexpr" for name in constants}
    assert sorted(signature) == sorted(names)
    source = ASTSource(kernel, signature, constants)
    triton.compile(source, target=GPUTarget("cuda", 80, 32))
    compiled.add((kernel.fn.__module__.rpartition(".")[2] + kernel.fn.__name__))

def ones(*shape):
    return torch.ones(shape, requires_grad=True)

for module in (channel_mixer, depthwise_conv, global_context, group_norm, layer_scale):
    module.launch = compile
layouts = (torch.channels_last, torch.float16), (torch.contiguous_format, torch.float32)
for layout, dtype in layouts:
    x = torch.ones(1, 64, 4, 4, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
    outs = [
        depthwise_conv.DepthwiseConv.apply(x, ones(64, 1, 5, 5), ones(64)),
        global_context.GlobalContext.apply(
            dtype, x, ones(8), ones(8), ones(16, 64), ones(16), ones(64, 8), ones(64)
        ),
        group_norm.Norm.apply(x, ones(64), ones(64), 1e-5, dtype),
    ]
    if layout == torch.channels_last:
        outs += [
            channel_mixer.ChannelMixer.apply(
                x, ones(128, 64, 1, 1), ones(128), ones(128, 1, 3, 3), ones(128),
                ones(64, 128, 1, 1), ones(64)
            ),
            layer_scale.AddScaled.apply(x.detach().float().requires_grad_(), ones(64), x),
        ]
    for out in outs:
        out.sum().backward()
print(*sorted(compiled))
"""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        "channel_mixer_conv_grad_kernel",
        "channel_mixer_gelu_grad_kernel",
        "channel_mixer_gelu_kernel",
        "depthwise_conv_conv_kernel",
        "depthwise_conv_weight_kernel",
        "depthwise_conv_weight_product_kernel",
        "global_context_add_kernel",
        "global_context_context_grad_kernel",
        "global_context_context_kernel",
        "global_context_gap_grad_kernel",
        "global_context_similarity_kernel",
        "global_context_small_grads_kernel",
        "group_norm_channel_sums_kernel",
        "group_norm_grad_kernel",
        "group_norm_moments_kernel",
        "group_norm_norm_kernel",
        "layer_scale_scale_grad_kernel",
    ]


def test_models_import_neither_kernels_nor_toolboxes_nor_what_one_tool_needs():
    heavy = ("ops.triton", "models.triton_layers")
    optional = ("gdown", "huggingface_hub", "matplotlib", "mmdet", "mmseg", "mmpretrain")
    names = (*(f"fcvit_mm.{name}" for name in heavy), *optional)
    code = f"""
import sys
import fcvit_mm
import fcvit_mm.models.fcvit
print("found:", *[name for name in {names} if name in sys.modules])
import fcvit_mm.models.triton_layers
assert all(f"fcvit_mm.{{name}}" in sys.modules for name in {heavy})  # those are their names
"""
    assert run_python(code).splitlines()[-1] == "found:"


@pytest.mark.parametrize("script", ["tools/train.py", "mine.py"])
def test_ctrl_c_prints_no_traceback_of_a_tool_that_still_imports(script: str) -> None:
    """Of other programs it prints one as ever."""
    code = f"__file__ = {str(ROOT / script)!r}; import fcvit_mm, sys; print(sys.excepthook)"
    assert ("built-in function excepthook" in run_python(code)) == (script == "mine.py")
