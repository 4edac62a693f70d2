"""OpenMMLab's inferencers take our configs by path, with a checkpoint of this machine."""

import warnings

import numpy as np
import pytest
import torch
from mmengine.infer import BaseInferencer

from fcvit_mm.datasets import shapes
from helpers.models import inferencer, saved


def assert_loaded(found: BaseInferencer, weights: dict, said: str) -> None:
    assert "do not match" not in said
    state = found.model.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in state.items())


@pytest.fixture
def image(example_data) -> str:
    return str(min((example_data / "data/shapes").rglob("*.png")))


@pytest.mark.official
def test_detection(tmp_path, image, capfd):
    weights = saved("mmdet", tmp_path / "weights.pth")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(classes|palette)")
        found = inferencer("mmdet", tmp_path / "weights.pth")
    assert_loaded(found, weights, "".join(capfd.readouterr()))
    assert found.model.dataset_meta["classes"] == shapes.CLASSES
    # an untrained head scores each class alike
    found.model.roi_head.test_cfg.score_thr = 0.0
    result = found(image, return_vis=True)
    (prediction,) = result["predictions"]
    assert len(prediction["labels"]) == len(prediction["scores"]) > 0
    assert np.shape(prediction["bboxes"]) == (len(prediction["labels"]), 4)
    assert {tuple(mask["size"]) for mask in prediction["masks"]} == {(64, 64)}
    assert result["visualization"][0].shape[2] == 3


@pytest.mark.official
def test_segmentation(tmp_path, image, capfd):
    weights = saved("mmseg", tmp_path / "weights.pth")
    found = inferencer("mmseg", tmp_path / "weights.pth")
    assert_loaded(found, weights, "".join(capfd.readouterr()))
    assert found.model.dataset_meta["classes"] == shapes.SEMANTIC_CLASSES
    result = found(image, return_vis=True)
    assert result["predictions"].shape == (64, 64) and result["predictions"].max() < 5
    assert result["visualization"].shape == (64, 64, 3)


@pytest.mark.official
def test_classification(tmp_path, image, capfd):
    weights = saved("mmpretrain", tmp_path / "weights.pth")
    found = inferencer("mmpretrain", tmp_path / "weights.pth")
    assert_loaded(found, weights, "".join(capfd.readouterr()))
    (result,) = found(image)
    assert len(result["pred_scores"]) == 4 and sum(result["pred_scores"]) == pytest.approx(1)
    assert result["pred_class"] == shapes.CLASSES[np.argmax(result["pred_scores"])]


@pytest.mark.parametrize(("scope", "classes"), [("mmdet", "COCO"), ("mmseg", "Cityscapes")])
def test_a_file_without_class_names_is_warned_of(tmp_path, scope, classes):
    """OpenMMLab then takes those of a dataset of its own, and says so."""
    saved(scope, tmp_path / "weights.pth", with_classes=False)
    with pytest.warns(UserWarning, match=f"class names are not saved.* {classes}"):
        inferencer(scope, tmp_path / "weights.pth")
