"""FCViT against the released network's golden outputs, and the contract of every variant."""

import copy
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS
from numpy.random import RandomState

from fcvit_mm import CheckpointError, FCViT
from fcvit_mm.models.arch import ALIASES, ARCHS, get_arch
from fcvit_mm.models.weights import RELEASED_WEIGHTS
from helpers.released import (
    GOLDEN,
    KEYS,
    TOLERANCE,
    assert_golden,
    fill,
    golden_input,
    imagenet_state_dict,
)

pytestmark = pytest.mark.official

DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
SMALL = dict(layers=(1, 1, 1, 1), dims=(16, 16, 24, 32), mlp_ratios=(2, 2, 2, 2))


def small(**kwargs) -> FCViT:
    """A small network whose branches count (the initial layer scale would hide them)."""
    torch.manual_seed(0)
    return FCViT(**{"arch": SMALL, "layer_scale_init": 0.5, **kwargs})


# ------------------------------------------------------------------------------ golden data


@pytest.mark.parametrize("size", [(64, 64), (75, 101)], ids=str)
def test_stages_equal_the_released_network(size):
    """In float64; tests/stress has the other types and archs."""
    model = fill(FCViT("tiny")).double().eval()
    with torch.no_grad():
        outs = model(golden_input(0, 1, *size).double())
    for i, out in enumerate(outs, 1):
        assert_golden(f"tiny/{size[0]}x{size[1]}/stage{i}", out)


@DTYPES
def test_logits_equal_the_released_network(dtype):
    state = imagenet_state_dict("tiny")
    model = FCViT("tiny", out_indices=-1)
    keys = {key: value for key, value in state.items() if not key.startswith(("norm.", "head."))}
    model.load_state_dict({**keys, "norm6.weight": state["norm.weight"],
                           "norm6.bias": state["norm.bias"]})  # fmt: skip
    (out,) = model.to(dtype).eval()(golden_input(0, 1, 64, 64).to(dtype))
    head = torch.nn.functional.linear
    logits = head(out.mean((2, 3)), state["head.weight"].to(dtype), state["head.bias"].to(dtype))
    assert_golden("tiny/64x64/logits", logits)


@pytest.mark.parametrize(("with_cp", "dtype"), [(False, torch.float64), (True, torch.float32)])
def test_training_pass_equals_the_released_network(dtype, with_cp):
    model = fill(FCViT("tiny", with_cp=with_cp)).to(dtype).train()
    x = golden_input(1, 2, 64, 64).to(dtype).requires_grad_()
    outs = model(x)
    loss = sum(
        (out * torch.from_numpy(RandomState(99 + i).standard_normal(out.shape)).to(dtype)).mean()
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
            gradient = x.grad if key == "input" else parameters[key].grad
            assert gradient is not None
            assert_golden(name, gradient)
        elif key.startswith("buffer/"):
            assert_golden(name, buffers[key.removeprefix("buffer/")])
        else:
            continue
        checked += 1
    assert checked == 43


# ------------------------------------------------------------- the contract of every variant


@pytest.mark.parametrize("arch", ["tiny", "b12", "b24", "b48"])
def test_parameters_are_those_of_the_released_files(arch):
    released = {k: s for k, s in KEYS[arch].items() if not k.startswith(("norm.", "head."))}
    with torch.device("meta"):
        model = FCViT(arch)
    assert {
        k: list(v.shape) for k, v in model.state_dict().items() if not k.startswith("norm")
    } == released
    # The head of the classifier and its norm make up the rest of the published count.
    dim = model.out_channels[-1]
    count = sum(p.numel() for p in model.parameters()) - 2 * sum(model.out_channels[:-1])
    published = {"tiny": 4_784_752, "b12": 14_701_832, "b24": 26_960_232, "b48": 51_477_032}
    assert count + 1000 * dim + 1000 == published[arch]


@pytest.mark.parametrize(
    ("out_indices", "arguments"),
    [
        ((0, 1, 2, 3), {}),
        ((1, 3), {"kernel_size": (5, 7)}),
        ((-1,), {"global_context": False}),
        ((3, 0), {"weighted_context": False}),
        (3, {"with_cp": True}),
        ((-1, -3), {"drop_rate": 0.1, "drop_path_rate": 0.1}),
    ],
    ids=str,
)
def test_contract(out_indices, arguments):
    """Channels and strides as promised at any size, and a gradient for every parameter."""
    model = small(out_indices=out_indices, **arguments)
    assert model.eval() is model
    wanted = (out_indices,) if isinstance(out_indices, int) else out_indices
    assert model.out_channels == tuple(SMALL["dims"][i] for i in wanted)
    assert model.strides == tuple((4, 8, 16, 32)[i] for i in wanted)
    for size in ((32, 32), (33, 47), (32, 160), (75, 34)):
        outs = model(torch.randn(1, 3, *size))
        assert isinstance(outs, tuple)
        for out, channels, stride in zip(outs, model.out_channels, model.strides, strict=True):
            assert out.shape == (1, channels, -(-size[0] // stride), -(-size[1] // stride))
            assert out.isfinite().all()
    assert model.train() is model
    sum((out**3).sum() for out in model(torch.randn(2, 3, 64, 64))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_checkpointing_gives_the_same_gradients_also_with_dropped_paths():
    gradients = []
    for with_cp in (False, True):
        model = small(with_cp=with_cp, drop_path_rate=0.5, drop_rate=0.2).double().train()
        torch.manual_seed(3)
        x = torch.randn(2, 3, 64, 64, dtype=torch.float64, requires_grad=True)
        sum(out.square().sum() for out in model(x)).backward()
        gradients.append([x.grad, *(p.grad for p in model.parameters())])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_is_finite_and_close_to_float32(dtype):
    model = fill(FCViT("tiny")).eval()
    x = golden_input(0, 2, 64, 96)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", dtype=dtype):
            half = model(x)
    for out, reference in zip(half, exact, strict=True):
        assert out.isfinite().all()
        assert (out.float() - reference).abs().max() <= 2e-2 * reference.abs().max()


def test_the_similarity_is_normalized_in_float32():
    # In half precision the inner products of these values overflow.
    layer = small().network[0][0].token_mixer.gc1.half()
    x = (200 + torch.randn(1, 16, 8, 8)).half()
    sim = layer.similarity(x, x.mean((2, 3)))
    assert sim.dtype == torch.float32 and sim.isfinite().all()


def test_drop_path_grows_linearly_over_all_blocks():
    model = FCViT("tiny", drop_path_rate=0.6)
    stages: Any = model.network[::2]
    rates = [block.drop_path.p for stage in stages for block in stage]
    torch.testing.assert_close(rates, torch.linspace(0, 0.6, 13).tolist())


@pytest.mark.parametrize("stages", [-1, 0, 1, 3, 4])
def test_frozen_stages(stages):
    model = small(frozen_stages=stages).train()
    names = ["patch_embed."] if stages >= 0 else []
    names += [f"network.{i}." for i in range(2 * stages - 1)]
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
    sum((out**3).sum() for out in model(torch.randn(2, 3, 64, 64))).backward()
    optimizer.step()
    for key, value in model.state_dict().items():
        frozen = key.startswith(tuple(names)) if names else False
        assert torch.equal(value, before[key]) == frozen, key


def test_norm_eval_keeps_running_statistics_and_trains_the_rest():
    model = small(norm_eval=True)
    assert model.train() is model and model.eval() is model
    model.train()
    before = model.patch_embed.norm.running_mean.clone()
    model(torch.randn(2, 3, 64, 64))
    assert torch.equal(model.patch_embed.norm.running_mean, before)
    assert model.network[0].training and not model.network[1].norm.training


# ------------------------------------------------------------------------- how it is named


def test_it_is_in_the_registry_with_s12_as_default():
    model = MODELS.build(dict(type="FCViT"))
    assert isinstance(model, FCViT)
    stages: Any = model.network[::2]
    assert [len(stage) for stage in stages] == [2, 2, 6, 2]
    assert MODELS.build(dict(type="FCViT", arch="s24")).out_channels == (64, 128, 320, 512)


def test_building_a_variant_changes_no_other():
    table = copy.deepcopy(ARCHS)
    out_indices = [0, -1]
    FCViT(SMALL, out_indices=out_indices)
    assert table == ARCHS and out_indices == [0, -1]
    assert all(get_arch(alias) is get_arch(name) for alias, name in ALIASES.items())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(arch="s13"), ["'s13'", "tiny, s12, s24, s48, b12", "nearest name is 's12'"]),
        (dict(arch="s012"), ["'s012'", "nearest name is 's12'"]),
        (dict(arch="resnet"), ["'resnet'", "dims and mlp_ratios."]),
        (dict(arch={**SMALL, "dims": (16, 16, 20, 32)}), ["dims", "multiples of 8", "20"]),
        (dict(arch={**SMALL, "layers": (1, 1, 1)}), ["layers", "four positive", "(1, 1, 1)"]),
        (dict(arch={"layers": (1, 1, 1, 1)}), ["dims", "mlp_ratios"]),
        (dict(arch="tiny", out_indices=(0, 4)), ["(0, 4)", "0 to 3"]),
        (dict(arch="tiny", out_indices=(3, -1)), ["(3, -1)", "twice"]),
        (dict(arch="tiny", out_indices=()), ["()", "0 to 3"]),
        (dict(arch="tiny", kernel_size=4), ["4", "odd"]),
        (dict(arch="tiny", kernel_size=(3, 5, 7)), ["(3, 5, 7)", "two"]),
        (dict(arch="tiny", drop_path_rate=1.5), ["drop_path_rate=1.5", "[0, 1)"]),
        (dict(arch="tiny", drop_rate=-0.1), ["drop_rate=-0.1", "[0, 1)"]),
        (dict(arch="tiny", frozen_stages=5), ["frozen_stages=5", "-1 to 4"]),
        (dict(arch="tiny", layer_scale_init="big"), ["layer_scale_init='big'", "number"]),
    ],
    ids=str,
)
def test_a_wrong_value_is_named_with_what_is_allowed(arguments, words):
    with pytest.raises(ValueError) as error:
        FCViT(**arguments)
    for word in words:
        assert word in str(error.value)


def test_only_a_name_that_is_alike_is_called_the_nearest():
    with pytest.raises(ValueError) as error:
        FCViT("resnet")
    assert "nearest" not in str(error.value)


@pytest.mark.parametrize("shape", [(3, 64, 64), (64, 64), (1, 1, 3, 64, 64)], ids=str)
def test_what_is_no_batch_of_images_is_refused_by_its_shape(shape):
    with pytest.raises(ValueError) as error:
        small()(torch.rand(shape))
    assert f"(B, 3, H, W), not one of shape {shape}" in str(error.value)


@pytest.mark.parametrize(
    "arguments",
    [
        dict(),
        dict(kernel_size=(3, 5), weighted_context=False),
        dict(global_context=False),
    ],
    ids=str,
)
def test_from_pretrained_loads_at_once_and_takes_the_architecture_from_the_file(
    tmp_path, arguments
):
    source = small(**arguments)
    torch.save({"state_dict": source.state_dict()}, tmp_path / "a.pth")
    model = FCViT.from_pretrained(tmp_path / "a.pth", drop_path_rate=0.1)
    weights = source.state_dict()
    assert weights.keys() == model.state_dict().keys()
    assert all(value.equal(weights[key]) for key, value in model.state_dict().items())
    model = FCViT.from_pretrained(str(tmp_path / "a.pth"), out_indices=2).eval()
    (stage,) = model(torch.rand(1, 3, 32, 32))
    assert stage.shape == (1, 24, 2, 2)


def test_from_pretrained_takes_the_prefix_and_the_plain_weights(tmp_path):
    plain, averaged = small().state_dict(), FCViT(SMALL).state_dict()
    content = {"state_dict": plain, "state_dict_ema": averaged}
    content = {key: {f"a.{k}": v for k, v in value.items()} for key, value in content.items()}
    torch.save(content, tmp_path / "a.pth")
    for ema, weights in ((True, averaged), (False, plain)):
        model = FCViT.from_pretrained(tmp_path / "a.pth", prefix="a.", ema=ema)
        assert all(value.equal(weights[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["fcvit_s12", "pretrained/fcvit_b12.pth"])
def test_from_pretrained_says_where_weights_are_that_do_not_exist(name):
    with pytest.raises(CheckpointError) as error:
        FCViT.from_pretrained(name)
    assert f"{name} do not exist" in str(error.value)
    assert RELEASED_WEIGHTS["s12"] in str(error.value)


def test_from_pretrained_raises_for_what_does_not_fit(tmp_path):
    torch.save(small().state_dict(), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="does not fit"):
        FCViT.from_pretrained(tmp_path / "a.pth", arch="tiny")
    torch.save({"weight": torch.ones(1)}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="not an FCViT"):
        FCViT.from_pretrained(tmp_path / "b.pth")


@pytest.mark.parametrize("arguments", [dict(depth=50), dict(arch=12), dict(norm_cfg=None)], ids=str)
def test_an_unknown_argument_or_type_is_a_type_error(arguments):
    with pytest.raises(TypeError):
        FCViT(**arguments)
