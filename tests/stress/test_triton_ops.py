"""The Triton kernels against plain torch in float64, and the choice between the two.

The kernels run in Triton's interpreter, or on a GPU with TRITON_INTERPRET=0. The interpreter takes
its time: of most cases the smallest are in every run and the others slow.
"""

import copy
import os

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils.checkpoint import checkpoint

pytest.importorskip("triton", reason="PyTorch for macOS and Windows comes without Triton")

from fcvit_mm import FCViT
from fcvit_mm.models import triton_layers
from fcvit_mm.models.triton_layers import use_triton
from fcvit_mm.ops.triton import channel_mixer, common, dispatch, global_context, layer_scale
from fcvit_mm.ops.triton import depthwise_conv as depthwise_conv_module
from fcvit_mm.ops.triton import group_norm as group_norm_module
from helpers.stress import slow

INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
assert INTERPRETED or torch.cuda.is_available(), "TRITON_INTERPRET=0 needs a GPU"

HEADS = 8
SMALL = dict(layers=(1, 1, 1, 1), dims=(16, 16, 24, 32), mlp_ratios=(2, 2, 2, 2))
HALF = (torch.float16, torch.bfloat16)
SOME_DTYPES = pytest.mark.parametrize(
    "dtype",
    [slow(torch.float16), torch.bfloat16, slow(torch.float32), slow(torch.float64)],
    ids=str,
)


@pytest.fixture
def kernels():
    """Every operation that can takes its kernel."""
    dispatch.set_timer(lambda form, run: form == "plain")
    yield
    dispatch.set_timer()


def refuse(form, run):
    raise AssertionError("the kernels were to stay out of this")


def depthwise_conv(x, weight, bias=None):
    return dispatch.depthwise_conv(x, weight=weight, bias=bias)


def make(shape, layout="contiguous", dtype=torch.float32):
    """Random numbers in a layout; the same numbers in each."""
    torch.manual_seed(0)
    b, d, h, w = shape
    x = torch.randn(shape, dtype=torch.float64).to(DEVICE, dtype)
    if layout == "contiguous":
        return x
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.mT.contiguous().mT
    if layout == "sliced":
        whole = x.new_full((b, d + 3, h + 2, 2 * w + 1), 9)
        part = whole[:, 2:-1, 1:-1, 1::2]
    elif layout == "channels_last sliced":
        whole = x.new_full((b, h + 2, 2 * w + 1, d + 3), 9)
        part = whole.permute(0, 3, 1, 2)[:, 2:-1, 1:-1, 1::2]
    part.copy_(x)
    assert part.data_ptr() != whole.data_ptr() and part.shape == x.shape
    return part


def near(actual, expected, roundings):
    """Whether no value errs by more than some roundings of the largest one."""
    error = (actual.double() - expected.double()).abs().max().item()
    bound = roundings * torch.finfo(actual.dtype).eps * expected.double().abs().max().item()
    assert error <= bound, (error, bound)


def assert_layout(out, x):
    channels_last = x.stride(1) < x.stride(3)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert out.is_contiguous(memory_format=layout)


def leaves(*tensors):
    return [t.detach().requires_grad_() for t in tensors]


def doubled(*tensors):
    return leaves(*(t.double() for t in tensors))


def check_depthwise(x, k):
    d = x.shape[1]
    weight = torch.randn(d, 1, k, k, dtype=x.dtype, device=DEVICE)
    bias = torch.randn(d, dtype=x.dtype, device=DEVICE)
    inputs = leaves(x, weight, bias)
    inputs[0] = x.detach().requires_grad_()  # with x's strides
    out = depthwise_conv(*inputs)
    grad = torch.randn(out.shape, dtype=torch.float64, device=DEVICE).to(x.dtype)
    grads = torch.autograd.grad(out, inputs, grad)

    exact = doubled(x, weight, bias)
    expected = F.conv2d(exact[0], exact[1], exact[2], padding=k // 2, groups=d)
    expected_grads = torch.autograd.grad(expected, exact, grad.double())
    assert type(out.grad_fn).__name__ == "DepthwiseConvBackward"
    for a, e in zip((out, *grads), (expected, *expected_grads), strict=True):
        assert a.dtype == x.dtype
        near(a, e, 1 if x.dtype in HALF else 4)
    assert_layout(out, x)


# The interpreter takes its time for each program, and contiguous a channel is one.
@pytest.mark.parametrize(("layout", "dim"), [("contiguous", 2), ("channels_last", 8)])
@pytest.mark.parametrize("k", [3, slow(5), 7, slow(9), slow(11), slow(13)])
def test_depthwise_of_every_kernel_size(kernels, k, layout, dim):
    check_depthwise(make((2, dim, 7, 5), layout), k)


@pytest.mark.parametrize("dtype", [*HALF, torch.float64], ids=str)
@pytest.mark.parametrize("layout", [slow("contiguous"), "channels_last"])
def test_depthwise_of_every_dtype(kernels, layout, dtype):
    check_depthwise(make((2, 8, 5, 6), layout, dtype), 3)


@pytest.mark.parametrize(("dim", "k"), [slow(64, 11), slow(128, 7), (320, 3), slow(512, 3)])
def test_depthwise_of_the_networks_widths(kernels, dim, k):
    check_depthwise(make((1, dim, 4, 3), "channels_last"), k)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "shape", [(1, 8, 1, 9), slow((2, 8, 9, 1)), slow((1, 8, 1, 1)), (2, 2, 29, 18)]
)
def test_depthwise_of_odd_sizes(kernels, shape, layout):
    # the last has more than one chunk of positions, and no multiple of any block
    check_depthwise(make(shape, layout), 3)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("k", "shape"), [(3, (2, 24, 29, 18)), slow(11, (1, 8, 11, 33))])
def test_weight_gradient_as_products(monkeypatch, k, shape, channels_last):
    """In half precision; more rows, channels and columns than one program takes."""
    monkeypatch.setattr(depthwise_conv_module, "ROWS_OF_PROGRAM", 32)
    layout = "channels_last" if channels_last else "contiguous"
    x = make(shape, layout, torch.float16)
    grad = torch.randn_like(x)
    actual = depthwise_conv_module.weight_grad(x, grad, k, channels_last)
    weight = torch.zeros(shape[1], 1, k, k, dtype=torch.float64, device=DEVICE).requires_grad_()
    out = F.conv2d(x.double(), weight, padding=k // 2, groups=shape[1])
    (expected,) = torch.autograd.grad(out, weight, grad.double())
    near(actual, expected, 16)


@pytest.mark.parametrize("layout", [slow("transposed"), "sliced", "channels_last sliced"])
def test_depthwise_of_other_strides(kernels, layout):
    check_depthwise(make((2, 8, 6, 5), layout), 3)


def test_depthwise_without_bias_and_with_an_expanded_gradient(kernels):
    inputs = leaves(make((2, 8, 4, 5)), torch.randn(8, 1, 3, 3, device=DEVICE))
    grads = torch.autograd.grad(depthwise_conv(*inputs).sum(), inputs)
    exact = doubled(*inputs)
    expected = torch.autograd.grad(F.conv2d(exact[0], exact[1], padding=1, groups=8).sum(), exact)
    for a, e in zip(grads, expected, strict=True):
        near(a, e, 4)


def test_depthwise_under_autocast(kernels):
    inputs = leaves(make((1, 8, 4, 5)), torch.randn(8, 1, 3, 3, device=DEVICE))
    with torch.autocast(DEVICE, torch.bfloat16):
        out = depthwise_conv(*inputs)
    assert out.dtype == torch.bfloat16
    exact = doubled(*inputs)
    expected = F.conv2d(exact[0], exact[1], padding=1, groups=8)
    near(out, expected, 4)
    grads = torch.autograd.grad(out.float().square().sum(), inputs)
    expected = torch.autograd.grad(expected.square().sum(), exact)
    for a, e in zip(grads, expected, strict=True):
        assert a.dtype == torch.float32
        near(a.bfloat16(), e, 4)


class Context(nn.Module):
    """The global context by the paper's equations, with torch's operators."""

    def __init__(self, dim):
        super().__init__()
        torch.manual_seed(1)
        self.alpha, self.beta = nn.Parameter(torch.randn(HEADS)), nn.Parameter(torch.randn(HEADS))
        self.fc1, self.fc2 = nn.Linear(dim, dim // 4), nn.Linear(dim // 8, dim)

    def plain(self, x):
        b, d, h, w = x.shape
        tokens = x.reshape(b, HEADS, d // HEADS, h * w)
        gap = tokens.mean(3)
        s = torch.einsum("bhen,bhe->bhn", tokens, gap) / (d // HEADS) ** 0.5
        std, mean = torch.std_mean(s, dim=(1, 2), keepdim=True)
        s = self.alpha[:, None] * (s - mean) / (std + 1e-5) + self.beta[:, None]
        first, second = self.fc1(gap.flatten(1)).chunk(2, dim=1)
        global_context = self.fc2(torch.maximum(first, second)).reshape(b, HEADS, -1)
        return x + torch.einsum("bhn,bhe->bhen", s, global_context).reshape(x.shape)

    def forward(self, x):
        return dispatch.add_global_context(
            x,
            plain=self.plain,
            alpha=self.alpha,
            beta=self.beta,
            weight1=self.fc1.weight,
            bias1=self.fc1.bias,
            weight2=self.fc2.weight,
            bias2=self.fc2.bias,
        )


def check_context(x, roundings):
    layer = Context(x.shape[1]).to(DEVICE, x.dtype)
    x = x.detach().requires_grad_()
    out = layer(x)
    assert type(out.grad_fn).__name__ == "GlobalContextBackward"
    grad = torch.randn(out.shape, dtype=torch.float64, device=DEVICE).to(x.dtype)
    grads = torch.autograd.grad(out, [x, *layer.parameters()], grad)

    layer.double()
    (exact,) = doubled(x)
    expected = layer.plain(exact)
    expected_grads = torch.autograd.grad(expected, [exact, *layer.parameters()], grad.double())
    for a, e in zip((out, *grads), (expected, *expected_grads), strict=True):
        assert a.dtype == x.dtype and a.shape == e.shape
        near(a, e, roundings)
    assert_layout(out, x)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dim", [slow(32), 64, slow(128), slow(320), slow(512)])
def test_context_of_the_networks_widths(kernels, dim, layout):
    check_context(make((2, dim, 7, 5), layout), 16)


@pytest.mark.parametrize("dtype", [*HALF, torch.float64], ids=str)
@pytest.mark.parametrize("layout", [slow("contiguous"), "channels_last"])
def test_context_of_every_dtype(kernels, layout, dtype):
    check_context(make((1, 64, 5, 6), layout, dtype), 4 if dtype in HALF else 16)


@pytest.mark.parametrize("layout", [slow("contiguous"), "channels_last"])
@pytest.mark.parametrize("shape", [(1, 64, 1, 9), (2, 64, 1, 1), (1, 512, 12, 13), (1, 24, 5, 1)])
def test_context_of_odd_sizes(kernels, shape, layout):
    # one position leaves the deviation over the heads; 156 positions are two partial sums
    check_context(make(shape, layout), 16)


@pytest.mark.parametrize("layout", [slow("transposed"), slow("sliced"), "channels_last sliced"])
def test_context_of_other_strides(kernels, layout):
    check_context(make((2, 64, 4, 5), layout), 16)


@pytest.mark.parametrize("dtype", [torch.float32, slow(torch.float64)], ids=str)
def test_context_of_a_constant_image(kernels, dtype):
    """Every similarity equal: their deviation is 0, and its slope is not infinite."""
    check_context(torch.ones(2, 64, 3, 5, dtype=dtype, device=DEVICE), 16)


def test_context_of_positions_that_differ_little(kernels):
    """The deviation is a ten-thousandth of the mean; a mean of squares would lose its digits."""
    x = 0.01 * make((1, 64, 6, 7)).double()
    layer = Context(64).to(DEVICE)
    # Equal means: heads that differ would hide the positions' deviation.
    x = (x - x.mean((2, 3), keepdim=True) + 100).float()
    out = layer(x)
    near(out - x, layer.double().plain(x.double()) - x.double(), 16000)


def test_context_under_autocast(kernels):
    layer = Context(64).to(DEVICE)
    x = make((1, 64, 5, 6), dtype=torch.bfloat16).requires_grad_()
    with torch.autocast(DEVICE, torch.bfloat16):
        out = layer(x)
    grads = torch.autograd.grad(out.float().square().sum(), [x, *layer.parameters()])
    assert out.dtype == x.dtype
    layer.double()
    (exact,) = doubled(x)
    expected = layer.plain(exact)
    near(out, expected, 4)
    expected = torch.autograd.grad(expected.square().sum(), [exact, *layer.parameters()])
    for a, e in zip(grads, expected, strict=True):
        near(a.bfloat16(), e, 8)


def test_second_derivatives_are_those_of_the_plain_forms(kernels):
    """Kernels have none of their own: PyTorch's operators take over where they are asked for."""
    x = make((2, 8, 3, 4), dtype=torch.float64)
    last = x.contiguous(memory_format=torch.channels_last)
    weight, vector, branch = torch.randn(8, 1, 3, 3).to(x), torch.randn(8).to(x), last.sin()
    context, mixer = Context(8).to(x), mixer_parameters(8, 16, x.dtype)

    def mix(x, weight1, bias1, weight, bias, weight2, bias2):
        hidden = F.conv2d(F.conv2d(x, weight1, bias1), weight, bias, padding=1, groups=16)
        return F.conv2d(F.gelu(hidden), weight2, bias2)

    for kernel, plain, inputs in (
        (depthwise_conv, lambda x, w: F.conv2d(x, w, padding=1, groups=8), (x, weight)),
        (lambda x, *_: context(x), lambda x, *_: context.plain(x), (x, *context.parameters())),
        (
            lambda *tensors: group_norm_module.Norm.apply(*tensors, 1e-5, x.dtype),
            lambda x, w, b: F.group_norm(x, 1, w, b),
            (x, vector, vector),
        ),
        (
            layer_scale.AddScaled.apply,
            lambda x, scale, branch: x + scale[:, None, None] * branch,
            (last, vector, branch),
        ),
        (channel_mixer.ChannelMixer.apply, mix, (last, *mixer)),
    ):
        found = []
        for form in (kernel, plain):
            given = [t if t.requires_grad else t.detach().requires_grad_() for t in inputs]
            grads = torch.autograd.grad(form(*given).square().sum(), given, create_graph=True)
            total = torch.stack([grad.square().sum() for grad in grads]).sum()
            found.append((*grads, *torch.autograd.grad(total, given)))
        for actual, expected in zip(*found, strict=True):
            near(actual, expected, 1000)


def test_channels_that_are_no_heads(kernels):
    with pytest.raises(ValueError, match="12 channels"):
        Context(16).to(DEVICE)(make((1, 12, 3, 3)))


# The other layers


def mixer_parameters(d, hidden, dtype=torch.float32):
    """Weights and biases of a channel mixer, with outputs of about the size 1."""
    torch.manual_seed(2)
    found = []
    for shape in [(hidden, d, 1, 1), (hidden, 1, 3, 3), (d, hidden, 1, 1)]:
        fan_in = shape[1] * shape[2] * shape[3]
        found += [torch.randn(shape) / fan_in**0.5, torch.randn(shape[0])]
    return leaves(*(t.to(DEVICE, dtype) for t in found))


def check(kernel, plain, inputs, roundings, bounds=None):
    """A kernel's outputs and gradients against the plain form's in float64."""
    out = kernel(*inputs)
    grad = torch.randn(out.shape, dtype=torch.float64, device=DEVICE).to(out.dtype)
    grads = torch.autograd.grad(out, inputs, grad)
    exact = doubled(*inputs)
    expected = plain(*exact)
    expected_grads = torch.autograd.grad(expected, exact, grad.double())
    for a, e in zip((out, *grads), (expected, *expected_grads), strict=True):
        assert a.shape == e.shape
        # what is rounded to half precision on the way errs by its roundings
        near(a if a.dtype == out.dtype else a.to(out.dtype), e, roundings)
    assert_layout(out, inputs[0])


def group_norm(x, weight, bias):
    return F.group_norm(x, 1, weight, bias)


@SOME_DTYPES
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", slow("channels_last sliced")])
@pytest.mark.parametrize("shape", [(2, 24, 5, 7), slow((1, 8, 1, 1)), (3, 40, 33, 31)])
def test_norm(shape, layout, dtype):
    # the last has tiles, and parts of channels, that are not full
    x = make(shape, layout, dtype).requires_grad_()
    weights = leaves(*torch.randn(2, shape[1], dtype=dtype, device=DEVICE))
    check(
        lambda *inputs: group_norm_module.Norm.apply(*inputs, 1e-5, dtype),
        group_norm,
        [x, *weights],
        8,
    )


def test_norm_of_small_deviations():
    """The epsilon under the root is ten times this variance."""
    x = 1e-3 * make((1, 16, 5, 7))
    ones = torch.ones(16, device=DEVICE)
    out = group_norm_module.Norm.apply(x, ones, 0 * ones, 1e-5, torch.float32)
    near(out, group_norm(x.double(), ones.double(), 0 * ones.double()), 8)


def test_norm_of_a_large_mean(monkeypatch):
    """A mean of squares would lose the deviation's digits, which are 1e-4 of the mean."""
    monkeypatch.setattr(group_norm_module, "PARTS", 2)  # each program merges several tiles
    x = (1e4 + make((1, 64, 16, 17)).double()).float()
    ones = torch.ones(64, device=DEVICE)
    out = group_norm_module.Norm.apply(x, ones, 0 * ones, 1e-5, torch.float32)
    near(out, group_norm(x.double(), ones.double(), 0 * ones.double()), 1e4)


def test_norm_of_parts_with_means_of_their_own(monkeypatch):
    monkeypatch.setattr(group_norm_module, "PARTS", 2)
    ramp = torch.linspace(-9, 9, 64, device=DEVICE)[:, None, None]
    x = make((1, 64, 16, 17)) + ramp  # tiles are runs of channels
    ones = torch.ones(64, device=DEVICE)
    out = group_norm_module.Norm.apply(x, ones, 0 * ones, 1e-5, torch.float32)
    near(out, group_norm(x.double(), ones.double(), 0 * ones.double()), 8)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_norm_under_autocast(kernels, dtype, narrow):
    x = make((2, 16, 5, 7), "channels_last", dtype)
    weight = torch.randn(16, device=DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        out = dispatch.group_norm(x, weight=weight, bias=weight, eps=1e-5, narrow=narrow)
    assert out.dtype == (torch.bfloat16 if narrow else torch.float32)
    near(out, group_norm(x.double(), weight.double(), weight.double()), 8)


def test_the_plain_norm_keeps_the_layout(timed, monkeypatch):
    """On a GPU PyTorch's returns contiguous maps."""
    timed[0]["triton"] = 3.0
    real = F.group_norm
    monkeypatch.setattr(dispatch.F, "group_norm", lambda *a: real(*a).contiguous())
    x = make((2, 16, 5, 7), "channels_last")
    weight = torch.randn(16, device=DEVICE)
    out = dispatch.group_norm(x, weight=weight, bias=weight, eps=1e-5)
    assert_layout(out, x)
    near(out, group_norm(x.double(), weight.double(), weight.double()), 8)


def plain_mixer(x, weight1, bias1, weight, bias, weight2, bias2):
    x = F.conv2d(x, weight1, bias1)
    x = F.conv2d(x, weight, bias, padding=1, groups=len(weight))
    return F.conv2d(F.gelu(x), weight2, bias2)


@SOME_DTYPES
@pytest.mark.parametrize(("dim", "hidden", "size"), [(8, 72, (5, 19)), slow(16, 64, (35, 3))])
def test_channel_mixer(dim, hidden, size, dtype):
    # more hidden channels, columns or rows than one program takes
    x = make((2, dim, *size), "channels_last", dtype).requires_grad_()
    weights = mixer_parameters(dim, hidden, torch.promote_types(dtype, torch.float32))
    check(channel_mixer.ChannelMixer.apply, plain_mixer, [x, *weights], 32)


@pytest.mark.parametrize("dtype", [*HALF, torch.float64], ids=str)
def test_residual(dtype):
    x, branch = (make((2, 40, 9, 11), "channels_last", dtype).requires_grad_() for _ in range(2))
    (scale,) = leaves(torch.randn(40, dtype=dtype, device=DEVICE))

    def plain(x, scale, branch):
        return x + scale[:, None, None] * branch

    check(layer_scale.AddScaled.apply, plain, [x, scale, branch], 8)


def test_the_mixer_in_half_precision_and_channels_last_alone(kernels):
    weights = mixer_parameters(16, 16)

    def took_the_kernel(x):
        names = ("weight1", "bias1", "weight", "bias", "weight2", "bias2")
        named = dict(zip(names, weights, strict=True))
        out = dispatch.channel_mixer(x, plain=lambda x: plain_mixer(x, *weights), **named)
        return type(out.grad_fn).__name__ == "ChannelMixerBackward"

    x = make((1, 16, 3, 4), "channels_last").requires_grad_()
    assert not took_the_kernel(x)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert took_the_kernel(x)
        assert not took_the_kernel(make((1, 16, 3, 4)).requires_grad_())


def launches(monkeypatch):
    """The names of the kernels that are launched from here on."""
    found = []
    for module in (
        global_context,
        depthwise_conv_module,
        channel_mixer,
        group_norm_module,
        layer_scale,
    ):

        def launch(kernel, *rest, **more):
            found.append(kernel.fn.__name__)
            common.launch(kernel, *rest, **more)

        monkeypatch.setattr(module, "launch", launch)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True], ids=["float64", "mixed precision"])
def test_the_network_runs_on_them(kernels, monkeypatch, half):
    launched = launches(monkeypatch)
    torch.manual_seed(0)
    # BatchNorm's own statistics: of two numbers, as in the last stage, it would keep the sign of a
    # difference alone, which a rounding may turn
    model = FCViT(SMALL, kernel_size=3, layer_scale_init=1.0, norm_eval=True, triton=True)
    model.double().to(DEVICE)
    model.train()
    x = make((2, 3, 32, 32), dtype=torch.float64)
    aims = [make((2, d, 8 // 2**i, 8 // 2**i), dtype=x.dtype) for i, d in enumerate(SMALL["dims"])]

    def run(dtype=torch.float64):
        model.to(dtype)
        found = [x.to(dtype, copy=True).requires_grad_(), *model.parameters()]
        with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == torch.float32):
            outs = model(found[0])
        loss = sum((out * aim).sum() for out, aim in zip(outs, aims, strict=True))
        grads = torch.autograd.grad(loss, found)
        return [t.double() for t in (*outs, *grads)]

    actual = run(torch.float32 if half else torch.float64)
    # two of each in a block; the gradient of the input is a convolution, too
    assert launched.count("_conv_kernel") == 16
    weights = "_weight_product_kernel" if half else "_weight_kernel"
    assert launched.count(weights) == 8
    assert launched.count("_similarity_kernel") == 8
    assert launched.count("_norm_kernel") == 12  # and one for each output
    # cuDNN's convolutions of float64, between the stages, return contiguous maps
    assert launched.count("_scale_grad_kernel") == (8 if half or INTERPRETED else 2)
    assert launched.count("_conv_grad_kernel") == (4 if half else 0)
    use_triton(model, on=False)
    launched.clear()
    expected = run()
    assert not launched
    if not half:
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-10)
        return
    # bfloat16 rounds at every layer; PyTorch's own operators in it are about as far away. The
    # interpreter cuts off where a GPU rounds: such errors add up in the gradient of a bias.
    rounded = run(torch.float32)
    for a, r, e in zip(actual, rounded, expected, strict=True):
        assert (a - e).norm() <= (6 if INTERPRETED else 3) * (r - e).norm() + 0.01 * e.norm()


# The choice


@pytest.fixture
def timed():
    """Made-up times; gives the times, by form, and the list of what was timed."""
    times, calls = {"triton": 1.0, "plain": 2.0}, []

    def timer(form, run):
        run()
        calls.append(form)
        return times[form]

    dispatch.set_timer(timer)
    yield times, calls
    dispatch.set_timer()


def test_the_faster_form_is_used_and_remembered(timed):
    times, calls = timed
    weight = torch.randn(2, 1, 3, 3, device=DEVICE)

    def form(x, weight=weight):
        name = type(depthwise_conv(x, weight).grad_fn).__name__
        return {"DepthwiseConvBackward": "triton", "ConvolutionBackward0": "plain"}[name]

    x = make((1, 2, 3, 4)).requires_grad_()
    assert form(x) == "triton" and calls == ["triton", "plain"]
    times["triton"] = 3.0
    assert form(x) == "triton" and len(calls) == 2
    # from 9 to 16 positions are one size
    assert form(make((4, 2, 2, 2)).requires_grad_()) == "triton" and len(calls) == 2
    others = [
        make((1, 2, 4, 2)),
        make((1, 2, 1, 17)),
        make((1, 2, 3, 4), "channels_last"),
    ]
    for i, other in enumerate(others):
        assert form(other.requires_grad_()) == "plain" and len(calls) == 4 + 2 * i
    assert form(x, torch.randn(2, 1, 5, 5, device=DEVICE)) == "plain" and len(calls) == 10
    assert form(x.detach().double().requires_grad_(), weight.double()) == "plain"
    assert len(calls) == 12
    with torch.no_grad():  # a forward pass alone may be faster in the other form
        depthwise_conv(x, weight)
        depthwise_conv(x, weight)
    assert len(calls) == 14
    assert x.grad is None

    layer = Context(8).to(DEVICE)
    for faster, name in ((0.5, "GlobalContextBackward"), (3.0, "AddBackward0")):
        dispatch.set_timer(dispatch._Choice.timer)
        times["triton"] = faster
        assert type(layer(make((1, 8, 3, 4))).grad_fn).__name__ == name
    assert all(p.grad is None for p in layer.parameters())


def test_timing_runs_forward_and_backward(monkeypatch):
    seen = []
    backward = depthwise_conv_module.DepthwiseConv.backward
    monkeypatch.setattr(
        depthwise_conv_module.DepthwiseConv,
        "backward",
        staticmethod(lambda ctx, grad: seen.append(1) or backward(ctx, grad)),
    )
    dispatch.set_timer(lambda form, run: run() or form == "triton")
    depthwise_conv(make((1, 8, 3, 3)).requires_grad_(), torch.randn(8, 1, 3, 3, device=DEVICE))
    dispatch.set_timer()
    assert seen == [1]


def test_milliseconds_are_those_of_runs_in_a_row(monkeypatch):
    events = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            events.append("record")

        def synchronize(self):
            events.append("finish")

        def elapsed_time(self, end):
            return 20.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: events.append("finish"))
    assert dispatch.milliseconds("plain", lambda: events.append("run")) == 2
    assert events == [*["run"] * 3, "finish", "record", *["run"] * 10, "record", "finish"]


def test_off_by_default_and_off_again():
    """A model with `triton=True` in a detector's config, or switched by a call, also in a copy."""
    dispatch.set_timer(refuse)
    x = make((1, 3, 32, 32))
    model = nn.Sequential(FCViT(SMALL, kernel_size=3).to(DEVICE).eval())
    expected = model(x)
    use_triton(model)
    for one in (model, copy.deepcopy(model), FCViT(SMALL, kernel_size=3, triton=True).to(DEVICE)):
        with pytest.raises(AssertionError, match="stay out"):
            one(x)
    use_triton(model, on=False)
    for out, before in zip(model(x), expected, strict=True):
        assert torch.equal(out, before)
    dispatch.set_timer()
    with pytest.raises(ValueError, match="Linear has no FCViT"):
        use_triton(nn.Linear(1, 1))


@pytest.mark.parametrize("how", ["compile", "export", "trace"])
def test_a_graph_of_the_network_has_no_kernels(how):
    dispatch.set_timer(refuse)
    x = make((1, 3, 32, 32))
    model = FCViT(SMALL, kernel_size=3).to(DEVICE).eval()
    with torch.no_grad():
        expected = model(x)
        use_triton(model)
        if how == "compile":
            outs = torch.compile(model, backend="eager")(x)
        elif how == "export":
            outs = torch.export.export(model, (x,)).module()(x)
        else:
            outs = torch.jit.trace(model, (x,), check_trace=False)(x)
    dispatch.set_timer()
    for out, before in zip(outs, expected, strict=True):
        torch.testing.assert_close(out, before)


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.context = Context(8).to(DEVICE)
        self.weight = nn.Parameter(torch.randn(8, 1, 3, 3, device=DEVICE))

    def forward(self, x):
        return depthwise_conv(self.context(x), self.weight)

    def plain(self, x):
        return F.conv2d(self.context.plain(x), self.weight, padding=1, groups=8)


@pytest.mark.parametrize("how", ["compile", "export", "trace", "fake", "empty", "k", "subclass"])
def test_what_takes_the_plain_form(how):
    dispatch.set_timer(refuse)
    try:
        model, x = Both(), make((1, 8, 4, 5))
        expected = model.plain(x)
        if how == "compile":
            out = torch.compile(model, backend="eager", fullgraph=True)(x)
        elif how == "export":
            out = torch.export.export(model, (x,)).module()(x)
        elif how == "trace":
            out = torch.jit.trace(model, (x,), check_trace=False)(x)
        elif how == "fake":
            with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
                assert model(mode.from_tensor(x)).shape == x.shape
            return
        elif how == "empty":
            out, expected = depthwise_conv(x[:0], model.weight), x[:0]
        elif how == "k":
            model.weight = nn.Parameter(torch.randn(8, 1, 15, 15, device=DEVICE))
            out = depthwise_conv(x, model.weight)
            expected = F.conv2d(x, model.weight, padding=7, groups=8)
        else:
            out = model.context(nn.Parameter(x))
            out = depthwise_conv(nn.Parameter(out), model.weight)
        torch.testing.assert_close(out, expected)
        for wrong in (model.weight.double(), model.weight[:4]):
            with pytest.raises(RuntimeError):
                depthwise_conv(x, wrong)
    finally:
        dispatch.set_timer()


def test_recomputation_after_timing(timed):
    """Activation checkpointing takes what timing saves for backward to be of the layer."""
    model, x = Both(), make((1, 8, 4, 5)).requires_grad_()
    checkpoint(model, x, use_reentrant=False).square().sum().backward()
    assert len(timed[1]) == 4
    (expected,) = torch.autograd.grad(model.plain(x).square().sum(), x)
    near(x.grad, expected, 64)


def test_the_cpu_takes_the_plain_form(monkeypatch):
    monkeypatch.setattr(common, "interpreted", lambda: False)
    dispatch.set_timer(refuse)
    Both().cpu()(make((1, 8, 3, 3)).cpu())
    dispatch.set_timer()


def test_without_triton(monkeypatch):
    monkeypatch.setattr(triton_layers, "triton", None)
    with pytest.raises(ImportError, match="pip install triton"):
        FCViT(SMALL, triton=True)
    use_triton(FCViT(SMALL), on=False)
