"""What the pipeline feeds the model, against the dataset itself."""

import json
import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.registry import TRANSFORMS

from fcvit_mm.analysis import browse_dataset
from fcvit_mm.datasets import shapes
from fcvit_mm.utils.config import iter_config_dicts, load_config
from fcvit_mm.utils.errors import ConfigError
from fcvit_mm.visualization import draw
from fcvit_mm.visualization.draw import distinct_colors
from helpers import ROOT
from helpers.images import read

CONFIGS = {
    "detection": "detection/mask_rcnn_fcvit_tiny_shapes.py",
    "segmentation": "segmentation/semantic_fpn_fcvit_tiny_shapes.py",
    "classification": "classification/fcvit_tiny_shapes.py",
}


@pytest.fixture
def load(example_data, monkeypatch):
    monkeypatch.chdir(example_data)

    def config(task: str) -> Config:
        return load_config(str(ROOT / "configs" / CONFIGS[task]))

    return config


def test_objects_are_those_of_the_annotations(load, example_data, tmp_path):
    looks = browse_dataset.run(load("detection"), "val", 3, tmp_path)
    content = json.loads((example_data / "data/shapes/annotations/instances_val.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    for found, image in zip(looks, content["images"], strict=False):
        assert found.path and found.path.endswith(image["file_name"]) and found.size == (64, 64)
        expected: dict[str, int] = {}
        for annotation in content["annotations"]:
            if annotation["image_id"] == image["id"]:
                name = names[annotation["category_id"]]
                expected[name] = expected.get(name, 0) + 1
        assert found.contents == {
            name: expected[name] for name in shapes.CLASSES if name in expected
        }
        file = read(found.path)
        # boxes and masks are drawn over the image
        assert found.drawn.shape == (384, 384, 3)
        assert np.abs(found.drawn - cv2.resize(file, (384, 384)).astype(float)).mean() > 3
    assert {path.name for path in tmp_path.iterdir()} == {
        "00000_00000.png", "00001_00001.png", "00002_00002.png", "grid.png"
    }  # fmt: skip
    # two items per row, each next to its file
    panels = browse_dataset.draw_grid(looks).axes
    shown = [axes.images[0].get_array()[..., ::-1] for axes in panels if axes.images]
    assert len(panels) == 8 and len(shown) == 6
    for i, found in enumerate(looks):
        assert np.array_equal(shown[2 * i], read(str(found.path)))
        assert np.array_equal(shown[2 * i + 1], found.drawn)


def test_pixels_are_those_of_the_label_map(load, example_data, tmp_path):
    (found,) = browse_dataset.run(load("segmentation"), "val", 1, tmp_path)
    labels = read(found.path.replace("images", "label_maps"), cv2.IMREAD_UNCHANGED)
    expected = {n: int((labels == i).sum()) for i, n in enumerate(shapes.SEMANTIC_CLASSES)}
    assert found.contents == {name: n for name, n in expected.items() if n}


def test_classes_of_folders(load, tmp_path):
    for found in browse_dataset.run(load("classification"), "val", 4, tmp_path):
        assert list(found.contents) == [found.path.split("/")[-2]]


def test_same_seed_same_images(load, tmp_path):
    """The training pipeline crops and flips."""
    looks = {
        name: browse_dataset.run(load("segmentation"), "train", 8, tmp_path / name, seed)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    }
    same = [np.array_equal(a.drawn, b.drawn) for a, b in zip(looks["a"], looks["b"], strict=True)]
    other = [np.array_equal(a.drawn, c.drawn) for a, c in zip(looks["a"], looks["c"], strict=True)]
    assert all(same) and not all(other)


def test_the_seed_holds_for_every_generator(load, tmp_path, monkeypatch):
    """Steps draw from Python's, NumPy's and PyTorch's."""

    @TRANSFORMS.register_module(force=True)
    class Shade(BaseTransform):
        def transform(self, results: dict) -> dict:
            drawn = (random.random(), np.random.rand(), torch.rand(1).item())
            results["img"][:, :, :] = np.array(drawn) * 255
            return results

    def color(seed: int) -> list[int]:
        cfg = load("classification")
        cfg.val_dataloader.dataset.pipeline.insert(1, dict(type="Shade", _scope_="mmengine"))
        (found,) = browse_dataset.run(cfg, "val", 1, tmp_path, seed)
        return found.drawn[-1, -1].tolist()

    first, again, other = color(0), color(0), color(1)
    assert first == again and all(a != b for a, b in zip(first, other, strict=True))


def test_an_image_that_needs_no_enlarging(load, tmp_path):
    cfg = load("classification")
    cfg.val_dataloader.dataset.pipeline.insert(1, dict(type="Resize", scale=(600, 520)))
    (found,) = browse_dataset.run(cfg, "val", 1, tmp_path)
    assert found.size == (600, 520) and found.drawn.shape == (520, 600, 3)
    # the name, in the corner, has the color of its class behind it
    name = Path(str(found.path)).parent.name
    color = distinct_colors(len(shapes.CLASSES))[sorted(shapes.CLASSES).index(name)][::-1]
    assert (found.drawn[:25, :150] == color).all(2).sum() > 200
    assert not (found.drawn[40:] == color).all(2).any()


def test_an_empty_dataset(load, tmp_path, monkeypatch):
    cfg = load("classification")
    monkeypatch.setattr(browse_dataset, "build_dataset", lambda cfg, split: [])
    with pytest.raises(ConfigError, match="val_dataloader.dataset has no items"):
        browse_dataset.run(cfg, "val", 1, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_image_that_the_pipeline_has_normalized_is_visible():
    inputs = torch.tensor([[[-2.0, 0.0]], [[0.0, 1.0]], [[2.0, 2.0]]])
    assert draw.visible(inputs).tolist() == [[[0, 128, 255], [128, 191, 255]]]
    assert draw.visible(torch.full((3, 1, 1), 7, dtype=torch.uint8)).tolist() == [[[7, 7, 7]]]


def test_an_image_that_is_none(load, example_data, tmp_path):
    cfg = load("detection")
    broken = tmp_path / "data"
    import shutil

    shutil.copytree(example_data / "data/shapes", broken)
    for path in (broken / "images/train").iterdir():
        path.write_text("no image")
    for _, node in iter_config_dicts(cfg._cfg_dict):
        if node.get("data_root"):
            node["data_root"] = str(broken)
    with pytest.raises(ConfigError, match="the pipeline fails on item 0"):
        browse_dataset.run(cfg, "train", 1, tmp_path / "out")
