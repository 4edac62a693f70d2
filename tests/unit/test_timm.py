"""FCViT in timm's registry, and in what builds on timm."""

import pytest
import timm
import torch

import fcvit_mm.timm
from fcvit_mm import CheckpointError, FCViT
from fcvit_mm.models.weights import RELEASED_WEIGHTS


@pytest.fixture
def x() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(1, 3, 64, 96)


def test_timm_knows_every_arch():
    assert timm.list_models("fcvit*") == ["fcvit_s12", "fcvit_s24", "fcvit_s48", "fcvit_tiny"]


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, 3), (-2, -1)], ids=str)
def test_features_are_those_of_the_backbone(x, out_indices):
    model = timm.create_model("fcvit_tiny", features_only=True, out_indices=out_indices).eval()
    plain = FCViT("tiny", out_indices=out_indices).eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        outs, expected = model(x), plain(x)
    assert isinstance(outs, list)
    torch.testing.assert_close(outs, list(expected), rtol=0, atol=0)
    assert model.feature_info.channels() == [out.shape[1] for out in outs]
    assert model.feature_info.reduction() == [64 // out.shape[2] for out in outs]


def test_pretrained_weights_come_from_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    weights = FCViT("tiny").state_dict()
    torch.save(weights, "a.pth")
    model = timm.create_model(
        "fcvit_tiny", features_only=True, pretrained=True, pretrained_cfg_overlay=dict(file="a.pth")
    )
    assert all(value.equal(weights[key]) for key, value in model.state_dict().items())
    with pytest.raises(CheckpointError) as error:
        timm.create_model("fcvit_s12", features_only=True, pretrained=True)
    assert RELEASED_WEIGHTS["s12"] in str(error.value)


@pytest.mark.parametrize("arguments", [{}, {"features_only": True, "in_chans": 1}], ids=str)
def test_what_it_is_not_is_refused(arguments):
    with pytest.raises(ValueError, match="give features_only=True and no in_chans but 3"):
        timm.create_model("fcvit_tiny", **arguments)


def test_importing_it_again_registers_nothing_twice(recwarn):
    assert fcvit_mm.timm.FCViTFeatures is type(timm.create_model("fcvit_tiny", features_only=True))
    assert not recwarn.list
