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
from fcvit_mm import FCViT, triton_ops
x = torch.ones(1, 8, 3, 3)
assert triton_ops.depthwise_conv(x, torch.ones(8, 1, 3, 3))[0, 0, 1, 1] == 9
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@needs_triton
def test_kernels_compile_for_a_gpu(tmp_path):
    """What the interpreter runs is Python; a GPU's compiler knows types. It needs no GPU."""
    script = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from fcvit_mm.kernels import context, depthwise, mixer, norm, residual

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

for module in (context, depthwise, mixer, norm, residual):
    module.launch = compile
layouts = (torch.channels_last, torch.float16), (torch.contiguous_format, torch.float32)
for layout, dtype in layouts:
    x = torch.ones(1, 64, 4, 4, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
    outs = [
        depthwise.DepthwiseConv.apply(x, ones(64, 1, 5, 5), ones(64)),
        context.GlobalContext.apply(
            dtype, x, ones(8), ones(8), ones(16, 64), ones(16), ones(64, 8), ones(64)
        ),
        norm.Norm.apply(x, ones(64), ones(64), 1e-5, dtype),
    ]
    if layout == torch.channels_last:
        outs += [
            mixer.ChannelMixer.apply(
                x, ones(128, 64, 1, 1), ones(128), ones(128, 1, 3, 3), ones(128),
                ones(64, 128, 1, 1), ones(64)
            ),
            residual.AddScaled.apply(x.detach().float().requires_grad_(), ones(64), x),
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
        "context_add_kernel",
        "context_context_grad_kernel",
        "context_context_kernel",
        "context_gap_grad_kernel",
        "context_similarity_kernel",
        "context_small_grads_kernel",
        "depthwise_conv_kernel",
        "depthwise_weight_kernel",
        "depthwise_weight_product_kernel",
        "mixer_conv_grad_kernel",
        "mixer_gelu_grad_kernel",
        "mixer_gelu_kernel",
        "norm_channel_sums_kernel",
        "norm_grad_kernel",
        "norm_moments_kernel",
        "norm_norm_kernel",
        "residual_scale_grad_kernel",
    ]


@needs_triton
@pytest.mark.parametrize("value", ["1", None])
def test_the_environment_turns_them_on(value):
    environment = {key: v for key, v in os.environ.items() if key != "FCVIT_TRITON"}
    if value is not None:
        environment["FCVIT_TRITON"] = value
    code = "from fcvit_mm import triton_ops; print(triton_ops._State.on)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == str(value == "1")
