"""FCViT against the released network's golden outputs, and the contract of every variant."""

import copy

import pytest
import torch
from mmengine.registry import MODELS
from released import GOLDEN, KEYS, fill, golden_input, imagenet_state_dict

from fcvit_mm import FCViT
from fcvit_mm.arch import ALIASES, ARCHS, get_arch

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
EVERY_ARCH = pytest.mark.parametrize("arch", ["tiny", "b12", "b24", "b48"])
SMALL = dict(layers=(1, 1, 1, 1), dims=(16, 16, 24, 32), mlp_ratios=(2, 2, 2, 2))


def assert_golden(name: str, actual: torch.Tensor) -> None:
    expected = torch.from_numpy(GOLDEN[name]).double()
    assert actual.shape == expected.shape
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCE[actual.dtype], f"{name}: {error:.1e}"


def small(**kwargs) -> FCViT:
    """A small network whose branches count (the start value of layer scale would hide them)."""
    torch.manual_seed(0)
    return FCViT(**{"arch": SMALL, "layer_scale_init": 0.5, **kwargs})


# ------------------------------------------------------------------------------ golden data


@DTYPES
@EVERY_ARCH
def test_stages_equal_the_released_network(arch, dtype):
    model = fill(FCViT(arch)).to(dtype).eval()
    with torch.no_grad():
        outs = model(golden_input(0, 1, 64, 64).to(dtype))
    for i, out in enumerate(outs, 1):
        assert_golden(f"{arch}/64x64/stage{i}", out)


@DTYPES
def test_odd_size_equals_the_released_network(dtype):
    model = fill(FCViT("tiny")).to(dtype).eval()
    for i, out in enumerate(model(golden_input(0, 1, 75, 101).to(dtype)), 1):
        assert_golden(f"tiny/75x101/stage{i}", out)


@DTYPES
@pytest.mark.parametrize("arch", ["tiny", "b12"])
def test_logits_equal_the_released_network(arch, dtype):
    state = imagenet_state_dict(arch)
    model = FCViT(arch, out_indices=-1)
    keys = {key: value for key, value in state.items() if not key.startswith(("norm.", "head."))}
    model.load_state_dict({**keys, "norm6.weight": state["norm.weight"],
                           "norm6.bias": state["norm.bias"]})  # fmt: skip
    (out,) = model.to(dtype).eval()(golden_input(0, 1, 64, 64).to(dtype))
    head = torch.nn.functional.linear
    logits = head(out.mean((2, 3)), state["head.weight"].to(dtype), state["head.bias"].to(dtype))
    assert_golden(f"{arch}/64x64/logits", logits)


@DTYPES
@pytest.mark.parametrize("with_cp", [False, True])
def test_training_pass_equals_the_released_network(dtype, with_cp):
    model = fill(FCViT("tiny", with_cp=with_cp)).to(dtype).train()
    x = golden_input(1, 2, 64, 64).to(dtype).requires_grad_()
    outs = model(x)
    loss = sum(
        (out * torch.from_numpy(weights(99 + i, out.shape)).to(dtype)).mean()
        for i, out in enumerate(outs, 1)
    )
    loss.backward()
    for i, out in enumerate(outs, 1):
        assert_golden(f"tiny/train/stage{i}", out)
    assert abs(loss.item() / GOLDEN["tiny/train/loss"] - 1) < TOLERANCE[dtype]
    buffers, parameters = dict(model.named_buffers()), dict(model.named_parameters())
    checked = 0
    for name in GOLDEN:
        _, _, key = name.partition("tiny/train/")
        if key.startswith("grad/"):
            key = key.removeprefix("grad/")
            assert_golden(name, x.grad if key == "input" else parameters[key].grad)
        elif key.startswith("buffer/"):
            assert_golden(name, buffers[key.removeprefix("buffer/")])
        else:
            continue
        checked += 1
    assert checked == 43


def weights(seed: int, shape: tuple[int, ...]):
    import numpy as np

    return np.random.RandomState(seed).standard_normal(shape)
