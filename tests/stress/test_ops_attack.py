"""The stand-in for mmcv's compiled operators against drawn inputs, most of them unkind.

Operators are called through mmcv.ops and compared with the loops of oracles.py, and with
tests/data/mmcv_ops_unkind.npz, which mmcv 2.3.6's own CPU sources answered, compiled: boxes without
extent, upside down, huge, infinite and not a number, equal scores, maps of one pixel and of none,
tensors with gaps in memory, all types. The examples of each property are few and always the same;
`ATTACK=2000 python -m pytest tests/stress/test_ops_attack.py` draws that many, others in each run.
"""

import itertools
import os
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from helpers import DATA, oracles
from helpers.operators import ATTENTION, HALVES, ops

pytestmark = pytest.mark.official

EXAMPLES = int(os.environ.get("ATTACK", "0"))
attack = settings(
    max_examples=EXAMPLES or 50, derandomize=not EXAMPLES, deadline=None, database=None
)

NAN, INF = float("nan"), float("inf")
TYPES = [torch.float64, torch.float32, *HALVES]
EPS = {torch.float64: 1e-9, torch.float32: 2e-4, torch.float16: 4e-3, torch.bfloat16: 4e-2}

seeds = st.integers(0, 2**31)


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape))


def spread(tensor: Tensor) -> Tensor:
    """The same numbers, every second one in memory, the axes the other way round."""
    turned = tensor.permute(*reversed(range(tensor.ndim))).contiguous()
    return torch.stack((turned, turned), dim=-1)[..., 0].permute(*reversed(range(tensor.ndim)))


def same(actual: Tensor, expected: Tensor) -> bool:
    """To the last bit, nan at the same places."""
    return actual.dtype == expected.dtype and torch.allclose(
        actual, expected, rtol=0, atol=0, equal_nan=True
    )


def assert_equal_nan(actual: Tensor, expected: np.ndarray, eps: float) -> None:
    """Equal to eps of the greatest finite number, nan at the same places."""
    found = actual.detach().double().numpy()
    assert found.shape == expected.shape
    scale = max(1.0, np.abs(expected[np.isfinite(expected)]).max(initial=0))
    np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=eps)


# --------------------------------------------------------------------------------- suppression

# whole numbers, so that overlaps are often equal to each other and to thresholds
kind_corners = st.integers(0, 12).map(float)
unkind_corners = kind_corners | st.sampled_from(
    [7.5, 1e4, 33554432.0, 1e9, -1e9, 1e30, -3e38, INF, -INF, NAN]
)


@st.composite
def scored_boxes(draw: Any, unkind: bool = True) -> Any:
    """Boxes (K, 4) and scores (K,), float32: many equal, some not a number."""
    n = draw(st.integers(0, 12))
    boxes = []
    for _ in range(n):
        x1, y1, x2, y2 = (draw(kind_corners) for _ in range(4))
        boxes.append([min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)])
        if unkind and draw(st.integers(0, 3)) == 0:
            boxes[-1] = [draw(unkind_corners) for _ in range(4)]
    if n and draw(st.booleans()):
        boxes[draw(st.integers(0, n - 1))] = boxes[0]
    score = st.sampled_from([0.0, 0.05, 0.3, 0.5, 0.5, 0.9, 1.0]) | st.floats(0, 1, width=32)
    if draw(st.booleans()):
        score |= st.sampled_from([NAN, INF, -INF, -1.0])
    scores = draw(st.lists(score, min_size=n, max_size=n))
    return (
        torch.tensor(boxes, dtype=torch.float32).reshape(n, 4),
        torch.tensor(scores, dtype=torch.float32),
    )


thresholds = st.sampled_from([0.0, 0.1, 0.3, 1 / 3, 0.5, 0.7, 1.0]) | st.floats(0, 1)


def reached(boxes: Tensor, threshold: float, offset: int, seed: int) -> float:
    """The threshold, or in every second case the overlap of two boxes, as one would write it."""
    pairs = itertools.combinations(boxes.numpy(), 2)
    overlaps = [overlap for a, b in pairs if 0 < (overlap := oracles.iou(a, b, offset)) < 1]
    return float(str(overlaps[seed % len(overlaps)])) if overlaps and seed % 2 else threshold


@attack
@given(scored_boxes(), thresholds, st.sampled_from([0, 1]), seeds)
def test_nms(boxes_scores: Any, threshold: float, offset: int, seed: int) -> None:
    boxes, scores = boxes_scores
    threshold = reached(boxes, threshold, offset, seed)
    expected = oracles.nms(boxes.numpy(), scores.numpy(), threshold, offset)
    dets, keep = ops.nms(boxes, scores, threshold, offset)
    assert keep.dtype == torch.int64 and keep.tolist() == expected
    kept = torch.cat((boxes, scores[:, None]), dim=1)[keep]
    assert same(dets, kept)
    assert ops.nms(spread(boxes), spread(scores), threshold, offset)[1].tolist() == expected


@pytest.fixture(scope="module")
def compiled() -> dict[str, Tensor]:
    with np.load(DATA / "mmcv_ops_unkind.npz") as file:
        return {name: torch.from_numpy(array) for name, array in file.items()}


@pytest.mark.parametrize("offset", [0, 1])
def test_suppression_equals_compiled(compiled: dict[str, Tensor], offset: int) -> None:
    """Some boxes and scores are not finite, some huge, the last 20 boxes lie far from 0."""
    boxes, scores = compiled["boxes"], compiled["scores"]
    keep = ops.nms(boxes, scores, 0.3, offset)[1]
    assert torch.equal(keep, compiled[f"nms/offset{offset}/keep"])
    for method in ("naive", "linear"):
        dets, keep = ops.soft_nms(boxes, scores, 0.3, 0.5, 0.01, method, offset)
        assert torch.equal(keep, compiled[f"soft_nms/{method}/offset{offset}/keep"])
        assert same(dets, compiled[f"soft_nms/{method}/offset{offset}/dets"])


def test_nms_with_an_offset_far_from_zero() -> None:
    """Two boxes of 5 x 5 pixels share one of them, where x + 1 is x in float32."""
    boxes = 2.0**25 + torch.tensor([[0.0, 0, 4, 4], [4, 4, 8, 8]])
    for threshold, kept in ((0.01, [0]), (0.03, [0, 1])):
        assert ops.nms(boxes, torch.tensor([0.9, 0.8]), threshold, 1)[1].tolist() == kept


@attack
@given(scored_boxes(), thresholds, st.integers(1, 5), thresholds)
def test_nms_of_some(boxes_scores: Any, threshold: float, most: int, least: float) -> None:
    boxes, scores = boxes_scores
    (valid,) = np.nonzero(scores.numpy() > np.float32(least)) if least else (np.arange(len(boxes)),)
    expected = oracles.nms(boxes.numpy()[valid], scores.numpy()[valid], threshold, 0)
    keep = ops.nms(boxes, scores, threshold, score_threshold=least, max_num=most)[1]
    assert keep.tolist() == valid[expected][:most].tolist()


@attack
@given(
    scored_boxes(),
    thresholds,
    st.sampled_from([0.1, 0.5, 2.0]),
    st.sampled_from([0.0, 0.01, 0.3]),
    st.sampled_from(["naive", "linear", "gaussian"]),
    st.sampled_from([0, 1]),
    seeds,
)
def test_soft_nms(
    boxes_scores: Any,
    threshold: float,
    sigma: float,
    least: float,
    method: str,
    offset: int,
    seed: int,
) -> None:
    boxes, scores = boxes_scores
    threshold = reached(boxes, threshold, offset, seed)
    chosen = (threshold, sigma, least, method, offset)
    expected, expected_keep = oracles.soft_nms(boxes.numpy(), scores.numpy(), *chosen)
    for dets, keep in (
        ops.soft_nms(boxes, scores, *chosen),
        ops.soft_nms(spread(boxes), spread(scores), *chosen),
    ):
        assert keep.dtype == torch.int64 and keep.tolist() == expected_keep
        np.testing.assert_allclose(dets.numpy(), expected, rtol=1e-5, atol=1e-6)


@attack
@given(scored_boxes(), seeds, thresholds, st.booleans())
def test_batched_nms(boxes_scores: Any, seed: int, threshold: float, split: bool) -> None:
    """Each class by itself. What is not finite, mmcv adds to all boxes: there, no promise."""
    boxes, scores = boxes_scores
    classes = torch.from_numpy(np.random.RandomState(seed).randint(0, 3, len(boxes)))
    settings = {"type": "nms", "iou_threshold": threshold, "split_thr": 1 if split else 10000}
    assume(len(boxes))  # mmcv asks for their greatest coordinate
    dets, keep = ops.batched_nms(boxes, scores, classes, settings)
    assert len(set(keep.tolist())) == len(keep) <= len(boxes)
    assert same(dets[:, :4], boxes[keep])
    tame = bool(((boxes >= 0) & (boxes < 100)).all())
    if tame and scores.isfinite().all():
        expected = [
            int(i)
            for c in range(3)
            for i in np.nonzero(classes.numpy() == c)[0][
                oracles.nms(
                    boxes.numpy()[classes.numpy() == c],
                    scores.numpy()[classes.numpy() == c],
                    threshold,
                    0,
                )
            ]
        ]
        assert sorted(keep.tolist()) == sorted(expected)


@attack
@given(scored_boxes(unkind=False), thresholds, st.sampled_from([0, 1]), seeds)
def test_boxes_that_are_not_finite_disturb_no_others(
    boxes_scores: Any, threshold: float, offset: int, seed: int
) -> None:
    boxes, _ = boxes_scores
    # all different: of equal ones, more boxes might make another one the first
    scores = torch.from_numpy(np.random.RandomState(seed).permutation(len(boxes)) + 1) / 20
    strange = [[NAN, 0, 9, 9], [0, 0, INF, INF], [-INF, -INF, INF, INF], [0, 0, 9, NAN]]
    more = torch.cat((torch.tensor(strange), boxes)), torch.cat((2 * torch.ones(4), scores))
    keep = ops.nms(*more, threshold, offset)[1]
    assert set(range(4)) <= set(keep.tolist())
    alone = ops.nms(boxes, scores, threshold, offset)[1]
    assert [i - 4 for i in keep.tolist() if i >= 4] == alone.tolist()
    assume(np.float32(threshold) > 0)  # else boxes that share nothing are lowered
    for method in ("naive", "linear", "gaussian"):
        chosen = (threshold, 0.5, 0.01, method, offset)
        dets, keep = ops.soft_nms(*more, *chosen)
        expected, alone = ops.soft_nms(boxes, scores, *chosen)
        assert [i - 4 for i in keep.tolist() if i >= 4] == alone.tolist()
        assert torch.equal(dets[keep >= 4], expected)


@attack
@given(scored_boxes(), st.sampled_from(TYPES), st.sampled_from([0, 1]))
def test_suppression_in_every_type(boxes_scores: Any, dtype: torch.dtype, offset: int) -> None:
    boxes, scores = (tensor.to(dtype) for tensor in boxes_scores)
    dets, keep = ops.nms(boxes, scores, 0.5, offset)
    assert dets.dtype == dtype
    assert keep.tolist() == ops.nms(boxes.float(), scores.float(), 0.5, offset)[1].tolist()
    dets, keep = ops.soft_nms(boxes, scores, 0.3, method="linear", offset=offset)
    assert dets.dtype == dtype
    expected = ops.soft_nms(boxes.float(), scores.float(), 0.3, method="linear", offset=offset)[1]
    assert keep.tolist() == expected.tolist()


# ------------------------------------------------------------------------------------- regions


@st.composite
def regions(draw: Any) -> Any:
    """Features (B, C, H, W) and boxes (K, 5) in float64, some far larger than the map."""
    shape = [draw(st.integers(*limits)) for limits in ((1, 3), (0, 2), (0, 6), (0, 7))]
    features = numbers(draw(seeds), *shape)
    inside = st.floats(-4, 12, width=16)
    outside = inside | st.floats(-60, 60, width=16) | st.sampled_from([NAN, INF, -INF, 1e9, -1e30])
    boxes = []
    for _ in range(draw(st.integers(0, 4))):
        x1, y1, x2, y2 = (draw(draw(st.sampled_from([inside, outside]))) for _ in range(4))
        if draw(st.integers(0, 3)):  # upside down is the exception
            x1, x2, y1, y2 = *sorted((x1, x2)), *sorted((y1, y2))
        boxes.append([draw(st.integers(0, shape[0] - 1)), x1, y1, x2, y2])
    return features, torch.tensor(boxes, dtype=torch.float64).reshape(-1, 5)


def can_be_looped(boxes: Tensor) -> bool:
    """Not so large that a loop over all samples would not end; what is not finite has none."""
    extent = (boxes[:, 3:] - boxes[:, 1:3]).abs()
    return bool((~extent.isfinite() | (extent < 200)).all())


bins = st.tuples(st.integers(1, 3), st.integers(1, 3))
scales = st.sampled_from([1.0, 0.5, 0.3])
densities = st.sampled_from([0, 0, 1, 2])


def differentiated(function: Any, features: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    leaf = features.detach().requires_grad_()
    output = function(leaf)
    (gradient,) = torch.autograd.grad(output, leaf, grad.to(output))
    return output.detach(), gradient


@attack
@given(regions(), bins, scales, densities, st.booleans(), seeds, st.booleans())
def test_roi_align(
    drawn: Any,
    size: tuple[int, int],
    scale: float,
    density: int,
    aligned: bool,
    seed: int,
    gaps: bool,
) -> None:
    features, boxes = drawn
    assume(can_be_looped(boxes))
    grad = numbers(seed, len(boxes), features.shape[1], *size)
    expected = oracles.roi_align(
        features.numpy(), boxes.numpy(), grad.numpy(), size, scale, density, aligned
    )
    if gaps:
        features, boxes, grad = map(spread, (features, boxes, grad))
    found = differentiated(
        lambda leaf: ops.roi_align(leaf, boxes, size, scale, density, "avg", aligned),
        features,
        grad,
    )
    for actual, loop in zip(found, expected, strict=True):
        assert_equal_nan(actual, loop, EPS[torch.float64])


@attack
@given(regions(), bins, densities, st.sampled_from(TYPES))
def test_regions_in_every_type(
    drawn: Any, size: tuple[int, int], density: int, dtype: torch.dtype
) -> None:
    """Halves are computed in float32. Whatever the box: the result is nan or no greater than the
    features, and that of the other boxes is what it is without it."""
    features, boxes = (tensor.to(dtype) for tensor in drawn)

    def function(features: Tensor, boxes: Tensor) -> Tensor:
        return ops.roi_align(features, boxes, size, 0.5, density, "avg", True)

    output, gradient = differentiated(
        lambda leaf: function(leaf, boxes),
        features,
        torch.ones(len(boxes), features.shape[1], *size),
    )
    assert output.dtype == gradient.dtype == dtype and gradient.isfinite().all()
    greatest = features.abs().max() if features.numel() else 0
    assert (output.isnan() | (output.abs() <= greatest * 1.01)).all()
    for k in range(len(boxes)):
        assert same(function(features, boxes[k : k + 1])[0], output[k])
    if dtype in HALVES:
        wide = function(features.float(), boxes.float())
        assert same(output, wide.to(dtype))


@attack
@given(regions(), st.sampled_from([NAN, INF, -1.0, 3.0, 1e30]))
def test_a_box_of_no_image_is_an_error(drawn: Any, image: float) -> None:
    features, boxes = drawn
    boxes = torch.cat((boxes, torch.tensor([[image, 0, 0, 3, 3]])))
    with pytest.raises(ValueError, match=f"images 0 to {len(features) - 1}"):
        ops.roi_align(features, boxes, 2, 1.0, 0)


@attack
@given(seeds, scales, st.sampled_from([0, 2]), st.booleans())
def test_roi_align_gradient(seed: int, scale: float, density: int, aligned: bool) -> None:
    random = np.random.RandomState(seed)
    features = torch.from_numpy(random.permutation(40).reshape(1, 2, 4, 5) / 7.0).requires_grad_()
    corners = random.uniform(-2, 12, (3, 2, 2))
    corners[0] *= 5  # larger than the map
    corners.sort(axis=1)
    boxes = torch.from_numpy(np.concatenate((np.zeros((3, 1)), corners.reshape(3, 4)), axis=1))
    assert gradcheck(
        lambda leaf: ops.roi_align(leaf, boxes, (2, 2), scale, density, "avg", aligned),
        features,
        fast_mode=True,
    )


HUGE = torch.tensor(
    [[0, -1e9, -1e9, 1e9, 1e9], [0, 2.0, -1e12, 4.0, 1e12], [0, -3.0, 0.0, 1e7, 3.0]],
    dtype=torch.float64,
)


@pytest.mark.parametrize("dtype", TYPES)
def test_huge_boxes_cost_what_the_map_costs(dtype: torch.dtype) -> None:
    features = numbers(0, 1, 2, 6, 7).to(dtype)
    output, gradient = differentiated(
        lambda leaf: ops.roi_align(leaf, HUGE.to(dtype), 2, 1.0, 0, "avg", True),
        features,
        torch.ones(3, 2, 2, 2),
    )
    assert gradient.isfinite().all()
    # in half precision the first two have no finite corners
    assert (output.isnan() | (output.abs() <= features.abs().max())).all()
    if dtype == torch.float64:
        # each bin's mean is the map's integral over the bin's area, but for the border
        _, _, height, width = features.shape
        assert output[0].abs().max() < features.abs().sum() / 1e17
        assert output[2, :, :, 1].abs().max() == 0


def test_large_boxes_have_the_loops_result() -> None:
    """Where torchvision would be given as many samples as fit into memory, the map's size bounds
    them: the result stays."""
    features = numbers(1, 1, 1, 3, 4)
    boxes = torch.tensor([[0, -90.0, -70.0, 110.5, 120.25]], dtype=torch.float64)
    grad = numbers(2, 1, 1, 2, 3)
    found = differentiated(
        lambda leaf: ops.roi_align(leaf, boxes, (2, 3), 1.0, 0, "avg", True), features, grad
    )
    expected = oracles.roi_align(
        features.numpy(), boxes.numpy(), grad.numpy(), (2, 3), 1.0, 0, True
    )
    for actual, loop in zip(found, expected, strict=True):
        assert_equal_nan(actual, loop, EPS[torch.float64])


# ---------------------------------------------------------------------- deformable convolution


@st.composite
def convolutions(draw: Any) -> Any:
    """Tensors and geometry of a deformable convolution, offsets partly far away or no number."""
    deform_groups, groups = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2]))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride, dilation = (draw(st.tuples(st.integers(1, 2), st.integers(1, 2))) for _ in range(2))
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    size = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    out = [
        (size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    ]
    assume(min(out) > 0)
    batch, seed = draw(st.sampled_from([1, 2])), draw(seeds)
    taps = deform_groups * kernel[0] * kernel[1]
    offset = draw(st.sampled_from([0.0, 1.0, 3.0])) * numbers(seed, batch, 2 * taps, *out)
    if draw(st.booleans()):
        offset = offset.round()  # samples on pixels, on the border and one pixel outside
    far = draw(st.lists(st.sampled_from([1e9, -1e30, INF, -INF, NAN, NAN]), max_size=3))
    for i, value in enumerate(far):
        offset.view(-1)[(seed + 7 * i) % offset.numel()] = value
    tensors = {
        "input": numbers(seed + 1, batch, 4, *size),
        "offset": offset,
        "mask": numbers(seed + 2, batch, taps, *out).sigmoid(),
        "weight": numbers(seed + 3, 2, 4 // groups, *kernel),
        "bias": numbers(seed + 4, 2),
    }
    return tensors, (stride, padding, dilation, groups, deform_groups)


@attack
@given(convolutions(), st.booleans(), st.booleans(), st.sampled_from([1, 32]))
def test_deform_conv(drawn: Any, modulated: bool, gaps: bool, step: int) -> None:
    tensors, geometry = drawn
    if not modulated:
        tensors = {
            **tensors,
            "mask": torch.ones_like(tensors["mask"]),
            "bias": torch.zeros_like(tensors["bias"]),
        }
    expected = oracles.deform_conv(**{k: t.numpy() for k, t in tensors.items()}, geometry=geometry)
    leaves = {
        name: (spread(tensor) if gaps else tensor.clone()).requires_grad_()
        for name, tensor in tensors.items()
    }
    if modulated:
        output = ops.modulated_deform_conv2d(*leaves.values(), *geometry)
    else:
        del leaves["mask"], leaves["bias"]
        # mmcv's forward takes no input that is smaller than the kernel
        pad = [tensors["weight"].shape[i] > tensors["input"].shape[i] for i in (2, 3)]
        assume(not any(pad))
        output = ops.deform_conv2d(*leaves.values(), *geometry, False, step)
    assert_equal_nan(output, expected, EPS[torch.float64])
    gradients = torch.autograd.grad(output.nan_to_num(nan=0).sum(), list(leaves.values()))
    for name, gradient in zip(leaves, gradients, strict=True):
        assert gradient.isfinite().all(), name
    # what lies outside has no gradient, not even one pixel outside, where the border begins
    offset_gradient = gradients[list(leaves).index("offset")]
    assert not offset_gradient[outside(tensors, geometry)].any()


def test_modulated_deform_conv_equals_compiled(compiled: dict[str, Tensor]) -> None:
    """Offsets that are whole, infinite, huge, and more than the output has places."""
    names = ("input", "offset", "mask", "weight", "bias")
    leaves = [compiled[f"dcn/{name}"].clone().requires_grad_() for name in names]
    output = ops.modulated_deform_conv2d(*leaves, 1, 1)
    assert_equal_nan(output, compiled["dcn/output"].numpy(), 1e-6)
    grad = torch.from_numpy(np.random.RandomState(8).standard_normal(output.shape)).float()
    for name, gradient in zip(names, torch.autograd.grad(output, leaves, grad), strict=True):
        assert_equal_nan(gradient, compiled[f"dcn/grad_{name}"].numpy(), 1e-6)


def test_modulated_deform_conv_reads_the_first_of_too_many_offsets() -> None:
    """As the extension does, which knows the output's size alone: DyHead depends on it."""
    tensors = [numbers(i, *shape) for i, shape in enumerate([(2, 1, 4, 5), (2, 18, 6, 7)])]
    input, offset = (tensor.requires_grad_() for tensor in tensors)
    mask, weight = numbers(2, 2, 9, 6, 7).sigmoid().requires_grad_(), numbers(3, 2, 1, 3, 3)
    read = [
        tensor.detach().flatten(1)[:, : n * 20].reshape(2, n, 4, 5).requires_grad_()
        for tensor, n in ((offset, 18), (mask, 9))
    ]
    output = ops.modulated_deform_conv2d(input, offset, mask, weight, None, 1, 1)
    expected = ops.modulated_deform_conv2d(input, *read, weight, None, 1, 1)
    assert torch.equal(output, expected)
    found = torch.autograd.grad(output.square().sum(), (offset, mask))
    wanted = torch.autograd.grad(expected.square().sum(), read)
    for gradient, part in zip(found, wanted, strict=True):
        first, rest = gradient.flatten(1).split(
            [part[0].numel(), gradient[0].numel() - part[0].numel()], 1
        )
        assert torch.equal(first, part.flatten(1)) and part.any() and not rest.any()
    with pytest.raises(ValueError, match="must not be smaller"):
        ops.modulated_deform_conv2d(input, offset[..., :3], mask, weight, None, 1, 1)


def outside(tensors: dict[str, Tensor], geometry: tuple) -> Tensor:
    """Which offsets (B, 2 * taps, H, W) lead outside of the input, by the extension's rule."""
    stride, padding, dilation, _, _ = geometry
    offset, (height, width) = tensors["offset"], tensors["input"].shape[2:]
    kernel_w = tensors["weight"].shape[3]
    kernel_size = tensors["weight"].shape[2] * kernel_w
    found = torch.zeros_like(offset, dtype=torch.bool)
    for n, tap, y, x in np.ndindex(len(offset), offset.shape[1] // 2, *offset.shape[2:]):
        i, j = divmod(tap % kernel_size, kernel_w)
        row = y * stride[0] - padding[0] + i * dilation[0] + float(offset[n, 2 * tap, y, x])
        column = x * stride[1] - padding[1] + j * dilation[1] + float(offset[n, 2 * tap + 1, y, x])
        found[n, 2 * tap : 2 * tap + 2, y, x] = not (-1 < row < height and -1 < column < width)
    return found


@attack
@given(convolutions(), st.booleans())
def test_deform_conv_gradients(drawn: Any, modulated: bool) -> None:
    tensors, geometry = drawn
    # finite differences know no kinks: keep away from pixels, where the slopes change
    offset = tensors["offset"].nan_to_num(nan=0.3).clamp(-50, 50)
    offset = offset.floor() + 0.1 + 0.8 * (offset - offset.floor())
    leaves = [t.requires_grad_() for t in {**tensors, "offset": offset}.values()]
    if modulated:
        assert gradcheck(
            lambda *leaves: ops.modulated_deform_conv2d(*leaves, *geometry), leaves, fast_mode=True
        )
    elif all(tensors["weight"].shape[i] <= tensors["input"].shape[i] for i in (2, 3)):
        input, offset, _, weight, _ = leaves
        assert gradcheck(
            lambda *leaves: ops.deform_conv2d(*leaves, *geometry),
            (input, offset, weight),
            fast_mode=True,
        )


@attack
@given(convolutions(), st.sampled_from([torch.float32, *HALVES]))
def test_deform_conv_in_every_type(drawn: Any, dtype: torch.dtype) -> None:
    tensors, geometry = drawn
    rounded = [tensor.to(dtype) for tensor in tensors.values()]
    output = ops.modulated_deform_conv2d(*rounded, *geometry)
    assert output.dtype == dtype
    wide = ops.modulated_deform_conv2d(*[t.float() for t in rounded], *geometry)
    assert same(output, wide.to(dtype))
    exact = ops.modulated_deform_conv2d(*[t.double() for t in rounded], *geometry)
    assert_equal_nan(wide, exact.numpy(), EPS[torch.float32])


# ------------------------------------------------------------------------- deformable attention


@st.composite
def attentions(draw: Any) -> Any:
    """Value, level shapes, starts, locations and weights; some locations far away or no number."""
    shapes = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3))
    batch, queries, heads, points, width, seed = (
        *(draw(st.integers(*limits)) for limits in ((0, 2), (0, 3), (1, 2), (1, 2), (1, 3))),
        draw(seeds),
    )
    order = draw(st.permutations(range(len(shapes))))
    starts, keys = [0] * len(shapes), 0
    for level in order:
        starts[level] = keys
        keys += shapes[level][0] * shapes[level][1] + draw(st.integers(0, 2))
    locations = numbers(seed, batch, queries, heads, len(shapes), points, 2) * 0.5 + 0.5
    far = draw(st.lists(st.sampled_from([1e9, -1e30, INF, -INF, NAN]), max_size=3))
    for i, value in enumerate(far if locations.numel() else []):
        locations.view(-1)[(seed + 7 * i) % locations.numel()] = value
    return (
        numbers(seed + 1, batch, keys, heads, width),
        shapes,
        starts,
        locations,
        numbers(seed + 2, batch, queries, heads, len(shapes), points).sigmoid(),
    )


@attack
@given(attentions(), st.booleans())
def test_deformable_attention(drawn: Any, gaps: bool) -> None:
    value, shapes, starts, locations, weights = drawn
    expected = oracles.deformable_attention(
        value.numpy(), shapes, starts, locations.numpy(), weights.numpy()
    )
    leaves = [
        (spread(t) if gaps else t.clone()).requires_grad_() for t in (value, locations, weights)
    ]
    levels = torch.tensor(shapes), torch.tensor(starts)
    output = ATTENTION.apply(leaves[0], *levels, *leaves[1:], 64)
    assert_equal_nan(output, expected, EPS[torch.float64])
    for gradient in torch.autograd.grad(output.sum(), leaves):
        assert gradient.isfinite().all()


@attack
@given(attentions())
def test_deformable_attention_gradients(drawn: Any) -> None:
    value, shapes, starts, locations, weights = drawn
    assume(locations.numel())
    # away from the kinks at the pixels' centers, (i + 0.5) / size
    sizes = torch.tensor(shapes).flip(1)[:, None]
    at = locations.nan_to_num(nan=0).clamp(-3, 3) * sizes - 0.5
    at = at.floor() + 0.1 + 0.8 * (at - at.floor())
    leaves = [t.requires_grad_() for t in (value, (at + 0.5) / sizes, weights)]
    levels = torch.tensor(shapes), torch.tensor(starts)
    assert gradcheck(
        lambda value, *others: ATTENTION.apply(value, *levels, *others, 64), leaves, fast_mode=True
    )


def test_deformable_attention_of_points_outside_has_no_gradient() -> None:
    value = numbers(0, 1, 4, 1, 1)
    # exactly one pixel outside of the 2 x 2 map, where the border begins
    locations = torch.full((1, 1, 1, 1, 1, 2), -0.25, dtype=torch.float64, requires_grad=True)
    weights = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
    output = ATTENTION.apply(
        value, torch.tensor([[2, 2]]), torch.tensor([0]), locations, weights, 64
    )
    (gradient,) = torch.autograd.grad(output.sum(), locations)
    assert not output.any() and not gradient.any()


# ---------------------------------------------------------------------------------- focal loss


@st.composite
def classifications(draw: Any) -> Any:
    n, classes = draw(st.integers(0, 4)), draw(st.integers(1, 4))
    logit = st.floats(-12, 12, width=16) | st.sampled_from([1e3, -1e3, INF, -INF])
    logits = [[draw(logit) for _ in range(classes)] for _ in range(n)]
    weighted = draw(st.booleans())
    target = [
        draw(st.integers(0, classes - 1) if weighted else st.integers(-1, classes))
        for _ in range(n)
    ]
    weight = [draw(st.floats(0, 3, width=16)) for _ in range(classes)] if weighted else []
    gamma, alpha = (
        draw(st.sampled_from([0.0, 1.0, 1.5, 2.0])),
        draw(st.sampled_from([0.25, 0.5, 1.0])),
    )
    return (
        torch.tensor(logits, dtype=torch.float64).reshape(n, classes),
        target,
        weight,
        gamma,
        alpha,
    )


@attack
@given(classifications(), st.booleans(), st.sampled_from(TYPES))
def test_focal_loss(drawn: Any, gaps: bool, dtype: torch.dtype) -> None:
    logits, target, weight, gamma, alpha = drawn
    logits = logits.to(dtype)
    expected = oracles.focal_loss(logits.double().numpy(), target, weight, gamma, alpha)
    leaf = (spread(logits) if gaps else logits.clone()).requires_grad_()
    loss = ops.sigmoid_focal_loss(
        leaf,
        torch.tensor(target, dtype=torch.long),
        gamma,
        alpha,
        torch.tensor(weight, dtype=dtype) if weight else None,
        "none",
    )
    assert loss.dtype == dtype
    # 1 - p keeps few digits of a float32's p near 1; beyond some 16 it keeps none
    certain = (logits.abs() > (30 if dtype == torch.float64 else 5)).numpy()
    assert_equal_nan(loss, np.where(certain, loss.detach().double().numpy(), expected), EPS[dtype])
    assert loss.isfinite().all()
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    assert gradient.isfinite().all()


@attack
@given(classifications())
def test_focal_loss_gradient(drawn: Any) -> None:
    logits, target, weight, gamma, alpha = drawn
    assert gradcheck(
        lambda leaf: ops.sigmoid_focal_loss(
            leaf,
            torch.tensor(target, dtype=torch.long),
            gamma,
            alpha,
            torch.tensor(weight, dtype=torch.float64) if weight else None,
            "sum",
        ),
        logits.clamp(-12, 12).requires_grad_(),
    )
