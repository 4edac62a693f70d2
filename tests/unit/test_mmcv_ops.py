"""The stand-in for mmcv's compiled operators: how it is installed, and what it computes.

The figures of tests/data/mmcv_ops.npz are those of a compiled mmcv 2.3.6 on the CPU. What they
leave out is held against finite differences here, and against loops written from the operators'
definitions in tests/stress/test_ops_attack.py. Operators are called as users call them, through
mmcv.ops.
"""

import importlib
import importlib.util
import logging
import math
import re
import sys
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from fcvit_mm.mmcv_ext import import_hook, registry
from fcvit_mm.mmcv_ext.nms import nms
from fcvit_mm.mmcv_ext.registry import OPERATORS
from helpers import DATA, oracles
from helpers.operators import ATTENTION, HALVES, ops

pytestmark = pytest.mark.official

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
HALF_EPS = {torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(DATA / "mmcv_ops.npz") as file:
        return dict(file)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).to(dtype)


def uniform(seed: int, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).uniform(low, high, shape))


def assert_close(actual: Tensor, expected: Tensor | np.ndarray, tolerance: float = 1e-5) -> None:
    expected = torch.as_tensor(expected)
    assert actual.shape == expected.shape
    torch.testing.assert_close(
        actual.detach().cpu().to(expected.dtype), expected, rtol=tolerance, atol=tolerance
    )


# ---------------------------------------------------------------------------------- installing


class Said(list[tuple[int, str]]):
    """Stands in for MMEngine's print_log."""

    def __call__(self, message: str, logger: str, level: int) -> None:
        assert logger == "current"
        self.append((level, message))


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    monkeypatch.setattr(import_hook, "print_log", said := Said())
    return said


def load_extension(folder: Path) -> ModuleType:
    """Load mmcv._ext once more, looking for a compiled one in folder, without publishing it."""
    spec = import_hook._ExtensionFinder().find_spec("mmcv._ext", [str(folder)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_install_twice_is_install_once() -> None:
    before = list(sys.meta_path)
    import_hook.install()
    assert sys.meta_path == before
    assert sum(isinstance(finder, import_hook._ExtensionFinder) for finder in before) == 1


def test_without_mmcv_nothing_happens(monkeypatch: pytest.MonkeyPatch, said: Said) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "mmcv"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mmcv", None)
    others = [f for f in sys.meta_path if not isinstance(f, import_hook._ExtensionFinder)]
    monkeypatch.setattr(sys, "meta_path", others)
    import_hook.install()
    with pytest.raises(ModuleNotFoundError, match="mmcv"):
        importlib.import_module("mmcv._ext")
    assert said == []


def test_only_the_extension_is_found() -> None:
    finder = import_hook._ExtensionFinder()
    assert finder.find_spec("mmcv.ops", []) is None
    assert finder.find_spec("_ext", []) is None


@pytest.mark.parametrize("error", [ImportError, OSError])
def test_any_failure_to_load_is_named(tmp_path: Path, said: Said, error: type[Exception]) -> None:
    reason = "undefined symbol: _ZN3c10"
    (tmp_path / "_ext.py").write_text(f"raise {error.__name__}({reason!r})")
    module = load_extension(tmp_path)
    ((level, message),) = said
    assert level == logging.WARNING and reason in message
    assert module.nms is nms


def test_a_folder_of_that_name_is_no_extension(tmp_path: Path, said: Said) -> None:
    (tmp_path / "_ext").mkdir()
    assert load_extension(tmp_path).nms is nms
    assert [level for level, _ in said] == [logging.INFO]


def test_other_errors_of_an_extension_are_not_hidden(tmp_path: Path, said: Said) -> None:
    (tmp_path / "_ext.py").write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):
        load_extension(tmp_path)


@pytest.mark.parametrize(
    ("env", "is_worker"),
    [({"LOCAL_RANK": "1"}, False), ({"SLURM_LOCALID": "3"}, False), ({"LOCAL_RANK": "0"}, True)],
)
def test_other_ranks_and_worker_processes_are_silent(
    tmp_path: Path,
    said: Said,
    monkeypatch: pytest.MonkeyPatch,
    env: dict[str, str],
    is_worker: bool,
) -> None:
    load_extension(tmp_path)
    assert len(said) == 1
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(import_hook, "parent_process", lambda: object() if is_worker else None)
    load_extension(tmp_path)
    assert len(said) == 1


@pytest.mark.parametrize(
    ("installed", "command"),
    [
        ("onedl-mmcv", "--no-binary onedl-mmcv onedl-mmcv==2.3.6"),
        ("mmcv-lite", "pip uninstall -y mmcv-lite; .* --no-binary mmcv mmcv==2.1.0"),
    ],
)
def test_the_way_out_suits_the_distribution(
    monkeypatch: pytest.MonkeyPatch, installed: str, command: str
) -> None:
    def version(name: str) -> str:
        if name != installed:
            raise registry.PackageNotFoundError(name)
        return "2.3.6"

    monkeypatch.setattr(registry, "version", version)
    assert re.search(command, registry.build_command())


# ---------------------------------------------------------------- operators that are not provided


def test_every_name_that_mmcv_uses_is_there() -> None:
    extension = importlib.import_module("mmcv._ext")
    folder = Path(ops.__path__[0])
    source = "".join(path.read_text() for path in folder.glob("*.py"))
    asked = {
        name
        for names in re.findall(r"load_ext\(\s*'_ext',\s*\[(.*?)\]", source, re.DOTALL)
        for name in re.findall(r"'(\w+)'", names)
    }
    assert len(asked) > 100 and set(OPERATORS) < asked
    for name in asked:
        assert hasattr(extension, name)
    for name in asked - set(OPERATORS):
        with pytest.raises(NotImplementedError, match=f"'{name}' .*--no-build-isolation"):
            getattr(extension, name)(torch.ones(1), anything=3)


def test_a_missing_operator_is_named_through_mmcvs_function() -> None:
    with pytest.raises(NotImplementedError, match="'nms_rotated'.*pip install"):
        ops.nms_rotated(torch.tensor([[5.0, 5, 4, 4, 0]]), torch.ones(1), 0.5)


def test_the_maximum_of_roi_align_is_missing() -> None:
    with pytest.raises(NotImplementedError, match="pool_mode='max'.*pip install"):
        ops.roi_align(torch.ones(1, 1, 3, 3), torch.zeros(1, 5), 2, 1.0, 0, "max")


def test_no_special_name_is_made_up() -> None:
    extension = importlib.import_module("mmcv._ext")
    for name in ("__path__", "__wrapped__", "_private"):
        with pytest.raises(AttributeError, match=name):
            getattr(extension, name)


# --------------------------------------------------------------------------------- suppression


@pytest.mark.parametrize("device", DEVICES)
def test_nms_equals_compiled(golden: dict[str, np.ndarray], device: str) -> None:
    boxes, scores, classes = (
        torch.from_numpy(golden[f"nms/{name}"]).to(device)
        for name in ("boxes", "scores", "classes")
    )
    for offset, threshold in product((0, 1), (0.3, 0.5, 0.7)):
        dets, keep = ops.nms(boxes, scores, threshold, offset)
        assert_same_indices(keep, golden[f"nms/offset{offset}/iou{threshold}/keep"])
        assert torch.equal(dets, torch.cat((boxes, scores[:, None]), 1)[keep])
    keep = ops.nms(boxes, scores, 0.5, score_threshold=0.3, max_num=10)[1]
    assert_same_indices(keep, golden["nms/score0.3_max10/keep"])
    dets, keep = ops.batched_nms(boxes, scores, classes, {"type": "nms", "iou_threshold": 0.5})
    assert_same_indices(keep, golden["batched_nms/keep"])
    assert_close(dets, golden["batched_nms/dets"])


def assert_same_indices(actual: Tensor, expected: np.ndarray | list[int]) -> None:
    assert actual.dtype == torch.int64
    assert actual.tolist() == list(expected)


@pytest.mark.parametrize("offset", [0, 1])
def test_nms_keeps_an_overlap_that_equals_the_threshold(offset: int) -> None:
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 3, 1], [0, 0, 7, 1]])
    boxes[:, 2:] -= offset
    scores = torch.tensor([0.9, 0.8, 0.7])
    # the second shares 3/10 with the first, and the third 3/7 with the second, 7/10 with the first
    assert_same_indices(ops.nms(boxes, scores, 0.3, offset)[1], [0, 1])
    assert_same_indices(ops.nms(boxes, scores, 0.29, offset)[1], [0])
    assert_same_indices(ops.nms(boxes, scores, 0.7, offset)[1], [0, 1, 2])


def test_the_first_of_equal_boxes_is_kept() -> None:
    boxes, scores = torch.tensor([[1.0, 1, 5, 5]]).repeat(4, 1), torch.full((4,), 0.5)
    assert_same_indices(ops.nms(boxes, scores, 0.5)[1], [0])
    assert_same_indices(ops.soft_nms(boxes, scores, 0.5, method="naive")[1], [0])


@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_suppression_of_nothing(kind: str) -> None:
    boxes, scores = torch.zeros(0, 4), torch.zeros(0)
    inputs: tuple[Any, Any] = (
        (boxes, scores) if kind == "tensor" else (boxes.numpy(), scores.numpy())
    )
    for function in (ops.nms, ops.soft_nms):
        dets, keep = function(*inputs, 0.5)
        assert type(dets) is type(inputs[0]) and dets.shape == (0, 5) and keep.shape == (0,)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float64])
def test_suppression_takes_every_type(golden: dict[str, np.ndarray], dtype: torch.dtype) -> None:
    boxes = torch.from_numpy(golden["nms/boxes"]).to(dtype)
    scores = torch.from_numpy(golden["nms/scores"]).to(dtype)
    dets, keep = ops.nms(boxes, scores, 0.3)
    assert dets.dtype == dtype
    assert torch.equal(keep, ops.nms(boxes.float(), scores.float(), 0.3)[1])
    dets, keep = ops.soft_nms(boxes, scores, 0.3)
    expected, expected_keep = ops.soft_nms(boxes.float(), scores.float(), 0.3)
    assert dets.dtype == dtype
    assert torch.equal(keep, expected_keep) and torch.equal(dets, expected.to(dtype))


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
def test_soft_nms_equals_compiled(golden: dict[str, np.ndarray], method: str, offset: int) -> None:
    boxes, scores = (torch.from_numpy(golden[f"nms/{name}"]) for name in ("boxes", "scores"))
    dets, keep = ops.soft_nms(boxes, scores, 0.3, 0.5, 0.01, method, offset)
    assert_same_indices(keep, golden[f"soft_nms/{method}/offset{offset}/keep"])
    assert_close(dets, golden[f"soft_nms/{method}/offset{offset}/dets"])


# ------------------------------------------------------------------------------------- regions


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sampling", [0, 2])
@pytest.mark.parametrize("aligned", [0, 1])
def test_roi_align_equals_compiled(
    golden: dict[str, np.ndarray], aligned: int, sampling: int, device: str
) -> None:
    features = torch.from_numpy(golden["roi/input"]).to(device).requires_grad_()
    rois = torch.from_numpy(golden["roi/rois"]).to(device)
    output = ops.RoIAlign(7, 0.25, sampling, "avg", bool(aligned))(features, rois)
    expected = f"roi_align/aligned{aligned}/sampling{sampling}/avg"
    assert_close(output, golden[f"{expected}/output"])
    output.backward(normal(5, *output.shape).to(output))
    assert features.grad is not None
    assert_close(features.grad, golden[f"{expected}/grad_input"])


HEIGHT, WIDTH = 10, 12
# whole and broken coordinates, partly and entirely outside, thin ones, one without extent
ROIS = torch.tensor(
    [
        [0.0, 2.3, 3.1, 30.7, 25.2],
        [1.0, -9.0, -7.5, 12.6, 21.9],
        [1.0, 20.2, 11.7, 70.3, 60.1],
        [0.0, 13.4, 5.3, 15.2, 37.8],
        [1.0, 4.1, 17.3, 45.8, 18.0],
        [0.0, 300.0, 300.0, 340.0, 330.0],
        [0.0, 9.7, 9.7, 9.7, 9.7],
    ],
    dtype=torch.float64,
)


@pytest.mark.parametrize("sampling", [0, 3])
@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align_equals_loop(aligned: bool, sampling: int) -> None:
    features = normal(0, 2, 3, HEIGHT, WIDTH).requires_grad_()
    settings = ((3, 2), 0.25, sampling)
    output = ops.roi_align(features, ROIS, *settings, "avg", aligned)
    grad = normal(1, *output.shape)
    output.backward(grad)
    expected = oracles.roi_align(
        features.detach().numpy(), ROIS.numpy(), grad.numpy(), *settings, aligned
    )
    assert features.grad is not None
    assert_close(output, expected[0], 1e-12)
    assert_close(features.grad, expected[1], 1e-12)


@pytest.mark.parametrize("threads", [2, 3, 5, 8])
def test_roi_align_has_the_same_bits_on_any_number_of_threads(threads: int) -> None:
    """Each takes some of the 7 channels; with more threads than channels one takes all."""
    features = normal(0, 2, 7, HEIGHT, WIDTH).requires_grad_()
    before, found = torch.get_num_threads(), []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            output = ops.roi_align(features, ROIS, (3, 2), 0.25, 0, "avg", True)
            (grad,) = torch.autograd.grad(output, features, normal(1, *output.shape))
            found.append((output, grad))
    finally:
        torch.set_num_threads(before)
    for one, several in zip(*found, strict=True):
        assert one.abs().max() > 0.1 and torch.equal(one, several)


@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align_gradient(aligned: bool) -> None:
    features = normal(2, 2, 2, 6, 7).requires_grad_()
    assert gradcheck(
        lambda features: ops.roi_align(features, ROIS[:5], (2, 2), 0.2, 2, "avg", aligned), features
    )


def align(features: Tensor, rois: Tensor) -> Tensor:
    return ops.roi_align(features, rois, (3, 2), 0.25, 0, "avg", True)


def test_regions_without_boxes() -> None:
    features = normal(6, 2, 3, 5, 5, dtype=torch.float32).requires_grad_()
    output = align(features, torch.zeros(0, 5))
    assert output.shape == (0, 3, 3, 2)
    output.sum().backward()
    assert features.grad is not None and not features.grad.any()


@pytest.mark.parametrize("dtype", HALVES)
def test_regions_in_half_precision(dtype: torch.dtype) -> None:
    half = normal(9, 2, 3, HEIGHT, WIDTH).to(dtype).requires_grad_()
    wide = half.detach().float().requires_grad_()
    rois = ROIS.to(dtype)
    outputs = [align(half, rois), align(wide, rois.float())]
    assert outputs[0].dtype == dtype
    assert_close(outputs[0], outputs[1].detach(), HALF_EPS[dtype])
    grad = normal(10, *outputs[0].shape).to(dtype)
    outputs[0].backward(grad)
    outputs[1].backward(grad.float())
    assert half.grad is not None and wide.grad is not None and half.grad.dtype == dtype
    assert_close(half.grad, wide.grad, HALF_EPS[dtype])


# ---------------------------------------------------------------------- deformable convolution


@pytest.mark.parametrize("device", DEVICES)
def test_deform_conv_equals_compiled(golden: dict[str, np.ndarray], device: str) -> None:
    leaves = {
        name: torch.from_numpy(golden[f"dcn/{name}"]).to(device).requires_grad_()
        for name in ("input", "offset", "weight")
    }
    output = ops.deform_conv2d(*leaves.values(), 1, 1, 1, 1, 1)
    assert_close(output, golden["deform_conv2d/output"])
    output.backward(normal(6, *output.shape).to(output))
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        assert_close(leaf.grad, golden[f"deform_conv2d/grad_{name}"])


@pytest.mark.parametrize("device", DEVICES)
def test_modulated_deform_conv_equals_compiled(golden: dict[str, np.ndarray], device: str) -> None:
    leaves = {
        name: torch.from_numpy(golden[f"dcn/{name}"]).to(device).requires_grad_()
        for name in ("input", "offset", "mask", "weight", "bias")
    }
    output = ops.modulated_deform_conv2d(*leaves.values(), 1, 1, 1, 1, 1)
    assert_close(output, golden["modulated_deform_conv2d/output"])
    output.backward(normal(6, *output.shape).to(output))
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        assert_close(leaf.grad, golden[f"modulated_deform_conv2d/grad_{name}"])


# stride, padding, dilation (rows, columns each), groups, deformable groups
GEOMETRIES = [
    ((1, 1), (1, 1), (1, 1), 1, 1),
    ((2, 1), (1, 2), (1, 2), 2, 1),
    ((1, 2), (0, 1), (2, 1), 1, 2),
    ((1, 1), (2, 0), (1, 1), 2, 4),
]


def deform_tensors(geometry: tuple, batch: int = 4) -> dict[str, Tensor]:
    """Input with 4 channels, kernels 3 x 2 for 6, and offsets that reach over the border."""
    stride, padding, dilation, groups, deform_groups = geometry
    size, kernel = (6, 7), (3, 2)
    out = [
        (size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    ]
    taps = deform_groups * kernel[0] * kernel[1]
    return {
        "input": normal(11, batch, 4, *size),
        "offset": 1.5 * normal(12, batch, 2 * taps, *out),
        "mask": uniform(13, batch, taps, *out),
        "weight": normal(14, 6, 4 // groups, *kernel),
        "bias": normal(15, 6),
    }


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_deform_conv_gradients(geometry: tuple) -> None:
    tensors = deform_tensors(geometry, batch=1)
    leaves = [tensor.requires_grad_() for tensor in tensors.values()]
    assert gradcheck(
        lambda *leaves: ops.modulated_deform_conv2d(*leaves, *geometry), leaves, fast_mode=True
    )
    assert gradcheck(
        lambda *leaves: ops.modulated_deform_conv2d(*leaves, None, *geometry),
        leaves[:4],
        fast_mode=True,
    )
    leaves = [tensors[name] for name in ("input", "offset", "weight")]
    assert gradcheck(lambda *leaves: ops.deform_conv2d(*leaves, *geometry), leaves, fast_mode=True)


@pytest.mark.parametrize("kind", ["DCN", "DCNv2"])
def test_deform_conv_modules_train_on_small_maps(kind: str) -> None:
    module = {"DCN": ops.DeformConv2dPack, "DCNv2": ops.ModulatedDeformConv2dPack}[kind](
        4, 6, 3, padding=1, deform_groups=2
    )
    # smaller than the kernels
    module(normal(16, 2, 4, 2, 5, dtype=torch.float32)).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("modulated", [False, True])
def test_deform_conv_in_half_precision(modulated: bool, dtype: torch.dtype) -> None:
    tensors = deform_tensors(GEOMETRIES[1])
    if not modulated:
        tensors = {name: tensors[name] for name in ("input", "offset", "weight")}
    function = ops.modulated_deform_conv2d if modulated else ops.deform_conv2d
    results = []
    for compute in (dtype, torch.float32):
        # mmcv goes by the type of the offsets, which autocast lowers, the weights stay as they are
        leaves = [
            tensor.to(dtype).to(torch.float32 if name in ("weight", "bias") else compute)
            for name, tensor in tensors.items()
        ]
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        output = function(*leaves, *GEOMETRIES[1])
        assert output.dtype == compute
        grad = normal(17, *output.shape).to(dtype)
        results.append([output, *torch.autograd.grad(output, leaves, grad.to(compute))])
    for half, wide in zip(*results, strict=True):
        assert_close(half.float() / wide.abs().max(), wide / wide.abs().max(), HALF_EPS[dtype])


# ------------------------------------------------------------------------- deformable attention


SHAPES = [(5, 4), (3, 2), (1, 2)]


def attention_tensors() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Value (2, 31, 3, 4), shapes, starts, locations (2, 6, 3, 3, 2, 2) and weights.

    The levels lie apart in value and not in order: the operator goes by their starts.
    """
    weights = uniform(19, 2, 6, 3, 3, 2)
    return (
        normal(18, 2, 31, 3, 4),
        torch.tensor(SHAPES),
        torch.tensor([8, 0, 29]),
        uniform(20, 2, 6, 3, 3, 2, 2, low=-0.2, high=1.2),
        weights / weights.sum(dim=(-1, -2), keepdim=True),
    )


@pytest.mark.parametrize("device", DEVICES)
def test_deformable_attention_equals_loop(device: str) -> None:
    value, shapes, starts, locations, weights = attention_tensors()
    tensors = [t.to(device) for t in (value, shapes, starts, locations, weights)]
    expected = oracles.deformable_attention(
        value.numpy(), SHAPES, starts.tolist(), locations.numpy(), weights.numpy()
    )
    assert_close(ATTENTION.apply(*tensors, 64), expected, 1e-12)
    singles = [t.float() if t.is_floating_point() else t for t in tensors]
    assert_close(ATTENTION.apply(*singles, 64), expected)


def test_deformable_attention_gradients() -> None:
    value, shapes, starts, locations, weights = attention_tensors()
    assert gradcheck(
        lambda value, locations, weights: ATTENTION.apply(
            value, shapes, starts, locations, weights, 64
        ),
        [t.requires_grad_() for t in (value, locations, weights)],
        fast_mode=True,
    )


@pytest.mark.parametrize("dtype", HALVES)
def test_deformable_attention_in_half_precision(dtype: torch.dtype) -> None:
    value, shapes, starts, locations, weights = attention_tensors()
    results = []
    for compute in (dtype, torch.float32):
        leaves = [t.to(dtype).to(compute).requires_grad_() for t in (value, locations, weights)]
        output = ATTENTION.apply(leaves[0], shapes, starts, *leaves[1:], 64)
        assert output.dtype == compute
        results.append([output, *torch.autograd.grad((output.float() ** 2).sum(), leaves)])
    for half, wide in zip(*results, strict=True):
        assert_close(half.float() / wide.abs().max(), wide / wide.abs().max(), HALF_EPS[dtype])


def test_deformable_attention_without_queries() -> None:
    value, shapes, starts, locations, weights = attention_tensors()
    output = ATTENTION.apply(value, shapes, starts, locations[:, :0], weights[:, :0], 64)
    assert output.shape == (2, 0, 12)


@pytest.mark.parametrize("device", DEVICES)
def test_deformable_attention_module_trains(device: str) -> None:
    torch.manual_seed(0)
    module = ops.MultiScaleDeformableAttention(16, num_heads=2, num_levels=3, batch_first=True)
    module.to(device)
    shapes = torch.tensor(SHAPES, device=device)
    starts = torch.cat((shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]))
    query = normal(21, 2, 28, 16, dtype=torch.float32).to(device)
    points = uniform(22, 2, 28, 3, 2).float().to(device)
    output = module(query, reference_points=points, spatial_shapes=shapes, level_start_index=starts)
    assert output.shape == query.shape
    (output**2).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or name.startswith(("sampling_offsets", "attention")), name


# ---------------------------------------------------------------------------------- focal loss


# 3 and -1 are none of the three classes
TARGETS = {"background": [0, 2, 1, 3, 3, -1, 0], "weighted": [0, 2, 1, 1, 2, 0, 0]}
WEIGHTS: dict[str, list[float]] = {"background": [], "weighted": [0.5, 2.0, 3.0]}


def reductions(losses: np.ndarray) -> dict[str, np.ndarray]:
    """The losses of samples, reduced in each way that mmcv has."""
    return {"none": losses, "sum": losses.sum(), "mean": losses.sum() / len(losses)}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (1.5, 0.7), (0.0, 0.5)])
@pytest.mark.parametrize("case", TARGETS)
def test_focal_loss_equals_loop(case: str, gamma: float, alpha: float, device: str) -> None:
    logits, target = 3 * normal(23, 7, 3), torch.tensor(TARGETS[case], device=device)
    expected = oracles.focal_loss(logits.numpy(), TARGETS[case], WEIGHTS[case], gamma, alpha)
    weight = torch.tensor(WEIGHTS[case], device=device) if WEIGHTS[case] else None
    for reduction, reduced in reductions(expected).items():
        loss = ops.SigmoidFocalLoss(gamma, alpha, weight, reduction).to(device)
        assert_close(loss(logits.to(device), target), reduced, 1e-7)
        assert_close(loss(logits.to(device).float(), target), reduced)


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (1.5, 0.7), (0.0, 0.5)])
@pytest.mark.parametrize("case", TARGETS)
def test_focal_loss_gradient(case: str, gamma: float, alpha: float) -> None:
    target = torch.tensor(TARGETS[case])
    weight = torch.tensor(WEIGHTS[case], dtype=torch.float64) if WEIGHTS[case] else None
    assert gradcheck(
        lambda logits: ops.sigmoid_focal_loss(logits, target, gamma, alpha, weight, "sum"),
        (3 * normal(24, 7, 3)).requires_grad_(),
    )


def test_focal_loss_of_certain_logits_is_finite() -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    loss = ops.sigmoid_focal_loss(logits, torch.tensor([0, 0]), 2.0, 0.25, None, "none")
    loss.sum().backward()
    # where the ground truth has probability 0, the logarithm is that of the smallest normal float32
    limit = -math.log(np.finfo(np.float32).tiny)
    assert_close(loss, np.array([[0, 0], [0.25 * limit, 0.75 * limit]], dtype=np.float32))
    assert logits.grad is not None
    assert_close(logits.grad, np.array([[0, 0], [-0.25, 0.75]], dtype=np.float32))


@pytest.mark.parametrize("target", [-1, 2])
def test_focal_loss_needs_a_weight_for_every_target(target: int) -> None:
    with pytest.raises(ValueError, match="outside the 2 classes"):
        ops.sigmoid_focal_loss(
            torch.zeros(2, 2), torch.tensor([0, target]), 2.0, 0.25, torch.ones(2), "sum"
        )


def test_focal_loss_of_nothing_and_of_gaps_in_memory() -> None:
    empty = torch.zeros(0, 3, requires_grad=True)
    ops.sigmoid_focal_loss(
        empty, torch.zeros(0, dtype=torch.long), 2.0, 0.25, None, "sum"
    ).backward()
    assert empty.grad is not None and empty.grad.shape == (0, 3)
    logits, target = normal(25, 3, 7).T, torch.tensor([0, 0, 2, 1, 3, 2, 0, 1, 1, 0, 3, 2, 1, 0])
    assert torch.equal(
        ops.sigmoid_focal_loss(logits, target[::2], 2.0, 0.25, None, "none"),
        ops.sigmoid_focal_loss(logits.contiguous(), target[::2].clone(), 2.0, 0.25, None, "none"),
    )


@pytest.mark.parametrize("dtype", HALVES)
def test_focal_loss_in_half_precision(dtype: torch.dtype) -> None:
    target, results = torch.tensor(TARGETS["background"]), []
    for compute in (dtype, torch.float32):
        logits = (3 * normal(26, 7, 3)).to(dtype).to(compute).requires_grad_()
        loss = ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, None, "none")
        assert loss.dtype == compute
        results.append((loss, *torch.autograd.grad(loss.sum(), logits)))
    for half, wide in zip(*results, strict=True):
        assert_close(half, wide.detach(), HALF_EPS[dtype])


SOFTMAX_CASES = {
    "ignored": ([0, 2, 1, -1, 2, -1, 0], []),
    "weighted": ([0, 2, 1, 1, 2, 0, -1], [0.5, 2.0, 3.0]),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (1.5, 0.7), (0.5, 1.0), (0.0, 0.5)])
@pytest.mark.parametrize("case", SOFTMAX_CASES)
def test_softmax_focal_loss(case: str, gamma: float, alpha: float, device: str) -> None:
    """The loss is that of a loop, its gradient the loss's; a target below 0 is ignored."""
    logits, (target, weights) = 3 * normal(27, 7, 3), SOFTMAX_CASES[case]
    expected = np.zeros(7)
    for n, label in enumerate(target):
        if label >= 0:
            p = math.exp(logits[n, label]) / sum(math.exp(logit) for logit in logits[n])
            expected[n] = -alpha * (1 - p) ** gamma * math.log(p)
            expected[n] *= weights[label] if weights else 1
    weight = torch.tensor(weights, device=device) if weights else None
    labels = torch.tensor(target, device=device)
    for reduction, reduced in reductions(expected).items():
        loss = ops.SoftmaxFocalLoss(gamma, alpha, weight, reduction).to(device)
        assert_close(loss(logits.to(device), labels), reduced, 1e-7)
        assert_close(loss(logits.to(device).float(), labels), reduced)
        if reduction != "none":  # mmcv has no gradient for it
            assert gradcheck(
                lambda x, loss=loss: loss(x, labels), logits.to(device).requires_grad_()
            )


def test_softmax_focal_loss_of_certain_logits_nothing_and_absent_classes() -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    loss = ops.softmax_focal_loss(logits, torch.tensor([0, 0]), 0.5, 0.25, None, "sum")
    loss.backward()
    assert_close(loss, np.array(-0.25 * math.log(np.finfo(np.float32).tiny), dtype=np.float32))
    assert logits.grad is not None
    assert_close(logits.grad, np.array([[0, 0], [-0.25, 0.25]], dtype=np.float32))
    empty = torch.zeros(0, 3, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.long)
    ops.softmax_focal_loss(empty, nothing, 2.0, 0.25, None, "sum").backward()
    assert empty.grad is not None and empty.grad.shape == (0, 3)
    with pytest.raises(ValueError, match="2 classes and a target of 2"):
        ops.softmax_focal_loss(logits, torch.tensor([0, 2]), 2.0, 0.25, None, "sum")


# ------------------------------------------------------------------------------- mixed precision


def test_operators_train_under_autocast() -> None:
    torch.manual_seed(0)
    before = torch.nn.Conv2d(3, 4, 3, padding=1)
    deform = ops.ModulatedDeformConv2dPack(4, 4, 3, padding=1)
    pool = ops.RoIAlign(2, 0.5, 0)
    rois = ROIS.float()
    with torch.autocast("cpu", torch.bfloat16):
        features = deform(before(normal(27, 2, 3, HEIGHT, WIDTH, dtype=torch.float32)))
        loss = pool(features, rois.type_as(features)).float().square().mean()
    assert features.dtype == torch.bfloat16
    loss.backward()
    for name, parameter in [*before.named_parameters(), *deform.named_parameters()]:
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
