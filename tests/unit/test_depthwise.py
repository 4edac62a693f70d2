"""Training large depthwise convolutions through the Fourier transform."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fcvit_mm.ops import depthwise_conv


def loops(x: Tensor, grad: Tensor, kernel: int) -> Tensor:
    """The weight gradient by its definition."""
    reach = kernel // 2
    _, channels, height, width = x.shape
    out = torch.zeros(channels, 1, kernel, kernel, dtype=x.dtype)
    for i in range(kernel):
        for j in range(kernel):
            for y in range(max(0, reach - i), min(height, height + reach - i)):
                for z in range(max(0, reach - j), min(width, width + reach - j)):
                    product = x[:, :, y + i - reach, z + j - reach] * grad[:, :, y, z]
                    out[:, 0, i, j] += product.sum(0)
    return out


@pytest.mark.parametrize("kernel", [1, 3, 7, 11, 13])
@pytest.mark.parametrize("shape", [(1, 2, 1, 1), (2, 3, 5, 8), (1, 1, 1, 17), (3, 2, 13, 4)])
def test_weight_gradient_is_that_of_its_definition(shape, kernel):
    torch.manual_seed(0)
    x, grad = torch.randn(2, *shape, dtype=torch.float64)
    found = depthwise_conv.weight_gradient(x, grad, kernel)
    torch.testing.assert_close(found, loops(x, grad, kernel), rtol=0, atol=1e-13)


@pytest.mark.parametrize("kernel", [9, 11, 13])
@pytest.mark.parametrize("shape", [(1, 4, 16, 16), (2, 3, 17, 31), (2, 3, 1, 300), (1, 2, 5, 64)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_outputs_and_gradients_are_those_of_pytorch(shape, kernel, layout):
    torch.manual_seed(0)
    x = torch.randn(*shape[:3], 2 * shape[3], dtype=torch.float64)[..., ::2]
    if layout != "strided":
        formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
        x = x.contiguous(memory_format=formats[layout])
    weight, bias = torch.randn(shape[1], 1, kernel, kernel), torch.randn(shape[1])
    ours, theirs = (
        [one.detach().double().clone().requires_grad_() for one in (x, weight, bias)]
        for _ in range(2)
    )
    out = depthwise_conv.depthwise_conv2d(ours[0], weight=ours[1], bias=ours[2])
    assert type(out.grad_fn).__name__ == "_DepthwiseConvBackward"
    expected = F.conv2d(theirs[0], theirs[1], theirs[2], padding=kernel // 2, groups=shape[1])
    assert out.is_contiguous(memory_format=torch.channels_last) or layout != "channels_last"
    grad = torch.randn_like(expected)
    out.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-11)


@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_single_precision_is_as_exact_as_it_can_be(mean):
    """Also where large terms make the sums: a part in a million of the largest gradient."""
    torch.manual_seed(0)
    x, grad = torch.randn(2, 2, 8, 40, 56) + mean
    expected = depthwise_conv.weight_gradient(x.double(), grad.double(), 11)
    error = (depthwise_conv.weight_gradient(x, grad, 11) - expected).abs().max()
    assert error < 1e-6 * expected.abs().max()


def test_only_the_gradients_that_are_asked_for():
    for needed in range(1, 8):
        tensors = [torch.randn(2, 3, 16, 16), torch.randn(3, 1, 11, 11), torch.randn(3)]
        for index, tensor in enumerate(tensors):
            tensor.requires_grad_(bool(needed >> index & 1))
        out = depthwise_conv.depthwise_conv2d(tensors[0], weight=tensors[1], bias=tensors[2])
        # a weight that stays gains nothing
        assert ("_DepthwiseConv" in type(out.grad_fn).__name__) == bool(needed >> 1 & 1)
        out.sum().backward()
        for index, tensor in enumerate(tensors):
            assert (tensor.grad is not None) == bool(needed >> index & 1)
    out = depthwise_conv.depthwise_conv2d(
        torch.randn(1, 3, 16, 16), weight=torch.randn(3, 1, 11, 11).requires_grad_(), bias=None
    )
    out.sum().backward()


def test_elsewhere_it_is_pytorch_s():
    weight = torch.randn(2, 1, 11, 11, requires_grad=True)
    x = torch.randn(1, 2, 16, 16)

    def is_ours(x: Tensor, weight: Tensor) -> bool:
        return (
            "_DepthwiseConv"
            in type(depthwise_conv.depthwise_conv2d(x, weight=weight, bias=None).grad_fn).__name__
        )

    assert is_ours(x, weight)
    assert not is_ours(x[:, :, 1:], weight)  # small maps
    assert not is_ours(x, torch.randn(2, 1, 7, 7, requires_grad=True))
    assert not is_ours(x.bfloat16(), weight.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_ours(x, weight)
    with torch.no_grad():
        assert depthwise_conv.depthwise_conv2d(x, weight=weight, bias=None).grad_fn is None


def norm(tensors) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors]).square().sum()


def test_second_derivatives_are_those_of_pytorch():
    torch.manual_seed(0)
    shapes = (1, 2, 16, 17), (2, 1, 9, 9), (2,)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    found = []
    for conv in (
        lambda x, w, b: depthwise_conv.depthwise_conv2d(x, weight=w, bias=b),
        lambda x, w, b: F.conv2d(x, w, b, padding=4, groups=2),
    ):
        loss = conv(*inputs).pow(3).sum()
        first = torch.autograd.grad(loss, inputs, create_graph=True)
        second = torch.autograd.grad(norm(first), inputs, create_graph=True)
        third = torch.autograd.grad(norm(second), inputs)
        found.append([*first, *second, *third])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)
