"""What PyTorch offers for any model holds for the backbone as it does for one of timm's.

Row tiles are so small that some are cut from small maps.
"""

import copy
import pickle
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.fx import symbolic_trace
from torchvision.models.feature_extraction import create_feature_extractor

from fcvit_mm import FCViT
from fcvit_mm.ops import row_tiling

SMALL = dict(layers=(1, 1, 1, 1), dims=(16, 16, 24, 32), mlp_ratios=(2, 2, 2, 2))
BUILD: dict[str, Any] = {
    "FCViT": lambda: FCViT(SMALL, layer_scale_init=0.5),
    "ConvNeXt": lambda: timm.create_model(
        "convnext_atto",
        features_only=True,
        depths=(1, 1, 1, 1),
        dims=(16, 16, 24, 32),
        ls_init_value=0.5,
    ),
}
# a stage's name in each
STAGE = {"FCViT": "network.4", "ConvNeXt": "stages_2"}

Tensors = dict[str, Tensor]


@pytest.fixture(params=BUILD)
def name(request, monkeypatch) -> str:
    monkeypatch.setattr(row_tiling, "TRAINING_BYTES", 2**14)
    monkeypatch.setattr(row_tiling, "PREDICTION_BYTES", 2**14)
    return request.param


@pytest.fixture
def model(name) -> nn.Module:
    torch.manual_seed(0)
    return BUILD[name]().double().eval()


@pytest.fixture
def x() -> Tensor:
    # the first stage's maps are just large enough for the Fourier transform
    return torch.randn(2, 3, 64, 64, dtype=torch.float64)


def total(outs) -> Tensor:
    return sum((out.square().mean() for out in outs), torch.zeros(()))


def parameters_of(model: nn.Module) -> Tensors:
    return {name: p.detach() for name, p in model.named_parameters()}


def gradients_of(model: nn.Module, x: Tensor) -> Tensors:
    """The gradients of an ordinary training step."""
    model.zero_grad()
    total(model(x)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_close(actual, expected) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-11)


# --------------------------------------------------------------------------------------- graphs


def test_a_trace_with_gradients_on(model, x):
    traced = torch.jit.trace(model, (x,))
    other = torch.randn_like(x)
    assert_close(list(traced(other)), list(model(other)))
    gradients = gradients_of(model, other)
    model.zero_grad()
    assert_close(gradients_of(traced, other), gradients)


@pytest.mark.parametrize("grad", [False, True], ids=["predict", "train"])
def test_a_symbolic_trace(model, x, grad):
    traced = symbolic_trace(model)
    with torch.set_grad_enabled(grad):
        assert_close(list(traced(x)), list(model(x)))
        assert_close(list(traced(x[:1, :, :40])), list(model(x[:1, :, :40])))
    if grad:
        assert_close(gradients_of(traced, x), gradients_of(model, x))


def test_a_feature_extractor(name, model, x):
    seen = []
    model.get_submodule(STAGE[name]).register_forward_hook(lambda *call: seen.append(call[-1]))
    model(x)
    (features,) = create_feature_extractor(model, [STAGE[name]])(x).values()
    assert_close(features, seen[0])


# ----------------------------------------------------------------------------------- torch.func


def loss_of(model: nn.Module):
    """A loss as a function of parameters and images."""
    return lambda parameters, x: total(functional_call(model, parameters, (x,)))


def test_functional_gradients(model, x):
    expected = gradients_of(model, x)
    assert_close(torch.func.grad(loss_of(model))(parameters_of(model), x), expected)


def test_ordinary_gradients_of_other_parameters(model, x):
    """The backward pass comes when the model has its own again."""
    others = {name: (p + 0.01).requires_grad_() for name, p in parameters_of(model).items()}
    gradients = torch.autograd.grad(loss_of(model)(others, x), list(others.values()))
    model.load_state_dict(others, strict=False)
    assert_close(dict(zip(others, gradients, strict=True)), gradients_of(model, x))


def test_vmap_over_images(model, x):
    outs = torch.func.vmap(lambda image: model(image[None]))(x)
    assert_close([out[:, 0] for out in outs], list(model(x)))


def test_a_gradient_per_image(model, x):
    per_image = torch.func.vmap(torch.func.grad(loss_of(model)), (None, 0))
    found = per_image(parameters_of(model), x[:, None])
    for i in range(len(x)):
        expected = gradients_of(model, x[i : i + 1])
        assert_close({name: gradient[i] for name, gradient in found.items()}, expected)


def test_forward_mode(model, x):
    direction = torch.randn_like(x)
    image = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(total(model(image)), image)
    expected = (gradient * direction).sum()
    found = torch.func.jvp(lambda x: total(model(x)), (x,), (direction,))[1]
    assert_close(found, expected)
    with forward_ad.dual_level():
        loss = total(model(forward_ad.make_dual(x, direction)))
        assert_close(forward_ad.unpack_dual(loss).tangent, expected)


# --------------------------------------------------------------------------- gradients of autograd


def test_second_derivatives(model, x):
    """A gradient penalty is differentiated with respect to parameters and images."""
    image = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(total(model(image)), image, create_graph=True)
    gradient.square().sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    def penalty(parameters: Tensors, x: Tensor) -> Tensor:
        return torch.func.grad(loss_of(model), 1)(parameters, x).square().sum()

    of_parameters, of_image = torch.func.grad(penalty, (0, 1))(parameters_of(model), x)
    assert_close(found, {name: of_parameters[name] for name in found})
    assert_close(image.grad, of_image)
    assert len(found) > 0.9 * len(of_parameters)


def test_gradients_where_saved_tensors_are_moved(model, x):
    expected = gradients_of(model, x)
    with torch.autograd.graph.save_on_cpu():
        loss = total(model(x))
    model.zero_grad()
    loss.backward()
    assert_close({name: p.grad for name, p in model.named_parameters()}, expected)


# ---------------------------------------------------------------------------------------- hooks


def called_once(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that a pass calls once each."""
    kinds = nn.Conv2d, nn.Linear, nn.GELU, nn.GroupNorm, nn.LayerNorm, nn.BatchNorm2d
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, kinds)}


@pytest.mark.parametrize("everywhere", [False, True], ids=["each", "global"])
@pytest.mark.parametrize("grad", [False, True], ids=["predict", "train"])
def test_forward_hooks_see_whole_maps_that_stay(model, x, grad, everywhere):
    names = {layer: name for name, layer in called_once(model).items()}
    assert len(names) > 12
    expected, seen = model(x), []

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if layer in names:
            kept = *inputs, output
            seen.append((names[layer], kept, [tensor.clone() for tensor in kept]))

    if everywhere:
        handles = [nn.modules.module.register_module_forward_hook(hook)]
    else:
        handles = [layer.register_forward_hook(hook) for layer in names]
    try:
        with torch.set_grad_enabled(grad):
            outs = model(x)
    finally:
        for handle in handles:
            handle.remove()
    assert_close(list(outs), list(expected))
    assert sorted(name for name, *_ in seen) == sorted(names.values())
    for layer, kept, copies in seen:
        for tensor, as_it_was in zip(kept, copies, strict=True):
            assert len(tensor) == 2, layer
            assert torch.equal(tensor, as_it_was), layer


def test_backward_hooks_see_whole_gradients(model, x):
    layers = called_once(model)
    shapes: dict[str, torch.Size] = {}
    seen: dict[str, list[torch.Size]] = {}
    expected = gradients_of(model, x)
    for name, layer in layers.items():
        layer.register_forward_hook(lambda *call, name=name: shapes.update({name: call[2].shape}))
        layer.register_full_backward_hook(
            lambda *call, name=name: seen.setdefault(name, []).append(call[2][0].shape)
        )
    assert_close(gradients_of(model, x), expected)
    assert seen == {name: [shape] for name, shape in shapes.items()}
    assert seen.keys() == layers.keys()


def test_a_stage_can_be_hooked_and_exchanged(name, model, x):
    stage, seen = model.get_submodule(STAGE[name]), []
    stage.register_forward_hook(lambda *call: seen.append(call[-1]) or 0 * call[-1])
    *_, last = model(x)
    assert len(seen) == 1 and seen[0].std() > 0
    assert torch.equal(last[0], last[1])


# --------------------------------------------------------------------------------- construction


def test_construction_on_the_meta_device(name, model, x):
    with torch.device("meta"):
        empty = BUILD[name]()
        shapes = [out.shape for out in empty(torch.empty(2, 3, 64, 64))]
    assert all(p.is_meta for p in empty.parameters())
    assert shapes == [out.shape for out in model(x)]
    filled = empty.to_empty(device="cpu").double().eval()
    filled.load_state_dict(model.state_dict())
    assert_close(list(filled(x)), list(model(x)))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_independent(model, x, again):
    copied, before = again(model), list(model(x))
    assert_close(list(copied(x)), before)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert_close(list(model(x)), before)
