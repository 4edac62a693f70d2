"""The fast formulation is the plain one: in row tiles, fused, and with less kept for backward."""

import pytest
import torch
from torch import Tensor, nn

import fcvit_mm
from fcvit_mm import FCViT
from fcvit_mm.models.layers import ChannelMixer
from fcvit_mm.ops import row_tiling
from helpers.plain import PlainFCViT, saved_bytes

SMALL = dict(layers=(1, 2, 1, 1), dims=(16, 16, 24, 32), mlp_ratios=(2, 3, 2, 2))


def pair(**kwargs) -> tuple[FCViT, PlainFCViT]:
    """Ours and the plain form with the same random parameters, none of which hides another."""
    torch.manual_seed(0)
    fast, plain = FCViT(SMALL, kernel_size=5, **kwargs), PlainFCViT(SMALL, kernel_size=5)
    for name, value in fast.state_dict().items():
        if value.is_floating_point() and "running_var" not in name:
            value.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.3)
    plain.load_state_dict(fast.state_dict())
    return fast.double(), plain.double()


def assert_close(actual: Tensor | None, expected: Tensor | None) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


# One tile for several images, one per image, tiles of some rows and of one.
@pytest.mark.parametrize(
    ("size", "tile_bytes"),
    [((64, 64), 2**20), ((33, 61), 2**15), ((32, 100), 2**13), ((33, 61), 1), ((97, 40), 1)],
    ids=str,
)
def test_outputs_and_gradients_are_those_of_the_plain_form(size, tile_bytes, monkeypatch):
    monkeypatch.setattr(row_tiling, "TRAINING_BYTES", tile_bytes)
    fast, plain = pair()
    x = torch.randn(3, 3, *size, dtype=torch.float64)
    images = [x.clone().requires_grad_() for _ in range(2)]
    outs = [model(image) for model, image in zip((fast, plain), images, strict=True)]
    weights = [torch.randn_like(out) for out in outs[1]]
    for out, reference in zip(*outs, strict=True):
        assert_close(out, reference)
    for maps in outs:
        sum((out * weight).sum() for out, weight in zip(maps, weights, strict=True)).backward()
    assert_close(images[0].grad, images[1].grad)
    expected = {name: parameter.grad for name, parameter in plain.named_parameters()}
    for name, parameter in fast.named_parameters():
        assert_close(parameter.grad, expected[name])


def test_tiles_cover_every_row_once_with_their_halo():
    for images, height, tile_bytes in ((1, 17, 4096), (5, 3, 4096), (2, 40, 1), (1, 1, 1)):
        x = torch.zeros(images, 8, height, 6)
        found = list(row_tiling._tiles(x, hidden_channels=16, halo_rows=2, tile_bytes=tile_bytes))
        for tile in found:
            x[tile.own] += 1
            above, below = tile.halo
            own, with_halo = tile.own[2], tile.with_halo[2]
            assert above == min(2, own.start) == own.start - with_halo.start
            assert below == min(2, height - own.stop) == with_halo.stop - own.stop
            rows = own.stop - own.start
            held = len(x[tile.own]) * rows * 6 * 16 * 4
            assert held <= tile_bytes or rows == 1 or tile_bytes == 1
        assert (x == 1).all()


@pytest.fixture
def always(monkeypatch) -> None:
    """Tiles of one row, also for the smallest tensors."""
    monkeypatch.setattr(row_tiling, "TRAINING_BYTES", 1)
    monkeypatch.setattr(row_tiling, "PREDICTION_BYTES", 1)


def test_parameters_without_gradients_get_none(always):
    mixer = ChannelMixer(8, 2)
    mixer.dwconv.requires_grad_(False)
    x = torch.randn(1, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    mixer(x).sum().backward()
    has = {name: parameter.grad is not None for name, parameter in mixer.named_parameters()}
    assert has == {name: not name.startswith("dwconv") for name in has}


def test_a_layer_that_somebody_exchanged_is_the_one_that_is_called(always):
    """Tiles call the modules, so that wrappers such as low-rank adapters keep their effect."""

    class Doubled(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    torch.manual_seed(0)
    mixer = ChannelMixer(8, 2).eval()
    x = torch.randn(1, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    before = mixer(x)
    exchanged = Doubled(16, 8, 1)
    exchanged.load_state_dict(mixer.fc2.state_dict())
    mixer.fc2 = exchanged
    torch.testing.assert_close(mixer(x), 2 * before)


def test_dropout_is_not_drawn_anew_in_the_backward_pass(always):
    """With dropout the mixer is left to autograd: the gradient is that of what was computed."""
    mixer = ChannelMixer(8, 2, drop_rate=0.5).train()
    x = torch.randn(1, 8, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    out = mixer(x)
    dropped = out == 0
    assert 0.2 < dropped.float().mean() < 0.8
    out[dropped].sum().backward()
    assert not x.grad.any()


def test_second_derivatives_of_a_mixer_that_is_called_twice(monkeypatch):
    """Its parameters are behind its input too, whose gradients must not count twice."""
    torch.manual_seed(0)
    mixer = ChannelMixer(8, 2).double()
    x = torch.randn(1, 8, 6, 6, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    inputs, found = (x, *mixer.parameters()), []
    for tile_bytes in (1, 2**30):
        monkeypatch.setattr(row_tiling, "TRAINING_BYTES", tile_bytes)
        out = mixer(mixer(x))
        assert (type(out.grad_fn).__name__ == "_RowTilesBackward") == (tile_bytes == 1)
        first = torch.autograd.grad(out.pow(3).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(torch.cat([g.flatten() for g in first]).square().sum(), inputs)
        found.append([*first, *second])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def test_tiles_keep_less_than_half_for_the_backward_pass(always):
    fast, plain = FCViT("s12"), PlainFCViT("s12")
    x = torch.randn(2, 3, 96, 96)
    ratio = saved_bytes(fast, x) / saved_bytes(plain, x)
    assert 0.2 < ratio < 0.45


@pytest.mark.parametrize("grad", [False, True], ids=["predict", "train"])
def test_tiles_are_for_tensors_that_are_larger(grad, monkeypatch):
    """Where one tile holds all there is nothing to gain."""
    x = torch.randn(2, 8, 4, 6).contiguous(memory_format=torch.channels_last)
    size = 2 * 16 * 4 * 6 * 4
    name, other = ("TRAINING_BYTES", "PREDICTION_BYTES")[:: 1 if grad else -1]
    monkeypatch.setattr(row_tiling, other, 2**30)
    with torch.set_grad_enabled(grad):
        for tile_bytes, expected in ((size, False), (size - 1, True)):
            monkeypatch.setattr(row_tiling, name, tile_bytes)
            assert row_tiling.should_tile(x, hidden_channels=16) == expected
        assert not row_tiling.should_tile(x.contiguous(), hidden_channels=16)
        assert not row_tiling.should_tile(x.bfloat16(), hidden_channels=16)


def test_rows_without_halo_have_a_gradient_in_their_layout():
    """A slice's own would be contiguous: two more passes through memory."""
    x = torch.randn(1, 8, 6, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    for above, below in ((1, 1), (0, 2), (2, 0), (0, 0)):
        rows = row_tiling.without_halo(x, (above, below))
        assert torch.equal(rows, x[:, :, above : 6 - below])
        (grad,) = torch.autograd.grad(rows, x, torch.ones_like(rows))
        assert grad.is_contiguous(memory_format=torch.channels_last)
        assert not grad[:, :, :above].any() and not grad[:, :, 6 - below :].any()
        assert (grad[:, :, above : 6 - below] == 1).all()


@pytest.mark.parametrize("watched", [False, True], ids=["unwatched", "watched"])
@pytest.mark.parametrize("tiled", [False, True], ids=["whole", "tiled"])
def test_gelu_is_in_place_where_nobody_sees_its_input(watched, tiled, monkeypatch):
    monkeypatch.setattr(row_tiling, "PREDICTION_BYTES", 1 if tiled else 2**20)
    mixer, seen = ChannelMixer(8, 2).eval(), []
    act = mixer.act.forward

    def follow(x: Tensor) -> Tensor:
        out = act(x)
        seen.append((len(x[0, 0]), out.data_ptr() == x.data_ptr()))
        return out

    vars(mixer.act)["forward"] = follow
    if watched:
        mixer.dwconv.register_forward_hook(lambda *call: None)
    x = torch.randn(1, 8, 3, 6).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        mixer(x)
    assert seen == ([(1, True)] * 3 if tiled and not watched else [(3, not watched)])
    assert torch.equal(mixer.act(x), nn.functional.gelu(x)) and seen[-1] == (3, False)


def test_a_prediction_is_cut_into_smaller_tiles(monkeypatch):
    """Of 1 row, where training has tiles of 2; the backward pass has those of the forward pass."""
    x = torch.randn(1, 8, 4, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    monkeypatch.setattr(row_tiling, "PREDICTION_BYTES", 16 * 6 * 4)
    monkeypatch.setattr(row_tiling, "TRAINING_BYTES", 2 * 16 * 6 * 4)
    seen = []

    def chain(rows: Tensor, _: tuple[int, int]) -> Tensor:
        seen.append(rows.shape[2])
        return rows * 2

    layer = nn.Identity()
    row_tiling.apply_in_row_tiles(chain, x, module=layer, hidden_channels=16).sum().backward()
    with torch.no_grad():
        row_tiling.apply_in_row_tiles(chain, x, module=layer, hidden_channels=16)
    assert seen == [2, 2, 2, 2, 1, 1, 1, 1]


# ------------------------------------------------------------------------------------- fuse


def test_fuse_keeps_the_outputs():
    fast, _ = pair()
    model = nn.ModuleDict({"backbone": fast.float().eval()})
    model.backbone.patch_embed.norm.running_var.fill_(0.3)
    x = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        expected = fast(x)
        before = set(fast.state_dict())
        assert fcvit_mm.fuse(model) is model
        gone = before - set(fast.state_dict())
        assert {name.split(".")[-1] for name in gone} == {
            "weight", "bias", "running_mean", "running_var", "num_batches_tracked", "layer_scale_2"
        }  # fmt: skip
        state = {name: value.clone() for name, value in fast.state_dict().items()}
        fcvit_mm.fuse(model)
        for name, value in fast.state_dict().items():
            assert value.equal(state[name])
        for out, reference in zip(fast(x), expected, strict=True):
            assert (out - reference).abs().max() <= 1e-5 * reference.abs().max()


def test_fuse_refuses_training_mode_and_models_without_fcvit():
    model = nn.Sequential(FCViT(SMALL))
    with pytest.raises(ValueError, match=r"training mode; call model.eval\(\)"):
        fcvit_mm.fuse(model)
    model.eval()
    model[0].network[2][1].train()
    with pytest.raises(ValueError, match="training mode"):
        fcvit_mm.fuse(model)
    with pytest.raises(ValueError, match="Linear has no FCViT"):
        fcvit_mm.fuse(nn.Linear(1, 1))


# -------------------------------------------------------------------------- memory formats


def test_maps_are_laid_out_for_what_comes_behind():
    """On a CPU heads are trained faster on contiguous maps, and predict faster in channels_last."""
    model = FCViT(SMALL)
    x = torch.randn(2, 3, 64, 64)
    for out in model(x):
        assert out.is_contiguous()
    with torch.no_grad():
        outs = model(x)
    for out in outs:
        assert out.is_contiguous(memory_format=torch.channels_last)
