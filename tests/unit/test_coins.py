"""The dataset of coins: all 24, training apart from test, tiles that hold each coin whole."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from fcvit_mm.datasets import coins
from fcvit_mm.utils.errors import ConfigError
from helpers import ROOT
from helpers.images import read


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return coins.label(coins.photograph())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("coins") / "set"
    assert coins.generate(out)
    return out


def place(name: str) -> tuple[int, int]:
    x, y = Path(name).stem.split("-")
    return int(x), int(y)


def test_24_coins_row_by_row(labels: np.ndarray) -> None:
    """Centers that were read off the image by eye, to within a few pixels."""
    columns = [
        (44, 100, 155, 216, 276, 335),
        (46, 103, 154, 206, 271, 337),
        (43, 102, 154, 213, 274, 347),
        (46, 114, 172, 244, 301, 358),
    ]
    rows = (54, 124, 188, 262)
    found = [np.argwhere(labels == i).mean(0) for i in range(1, coins.COINS + 1)]
    assert labels.max() == coins.COINS
    for i, (y, x) in enumerate(found):
        assert abs(x - columns[i // 6][i % 6]) < 6, f"coin {i + 1}"
        assert abs(y - rows[i // 6]) < 16, f"coin {i + 1}"


def test_coins_are_round_and_in_one_piece(labels: np.ndarray) -> None:
    for i in range(1, coins.COINS + 1):
        mask = (labels == i).astype(np.uint8)
        assert cv2.connectedComponents(mask)[0] == 2
        outline = max(cv2.findContours(mask, cv2.RETR_EXTERNAL, 1)[0], key=cv2.contourArea)
        hull = cv2.contourArea(cv2.convexHull(outline))
        _, radius = cv2.minEnclosingCircle(outline)
        assert cv2.contourArea(outline) > 0.93 * hull, f"coin {i}"
        assert hull > 0.7 * np.pi * radius**2, f"coin {i}"


def test_uneven_light_needs_the_ground_subtracted() -> None:
    """Otsu's threshold alone, the recipe for even light, does not find 24 coins."""
    from skimage import filters, measure, segmentation

    image = coins.photograph()
    mask = segmentation.clear_border(image > filters.threshold_otsu(image))
    found = [part for part in measure.regionprops(measure.label(mask)) if part.area >= 500]
    assert len(found) != coins.COINS


def test_no_pixel_of_the_lowest_row_is_in_a_training_tile(labels: np.ndarray, folder: Path) -> None:
    seen = {split: np.zeros(labels.shape, bool) for split in coins.REGIONS}
    for split, pixels in seen.items():
        for path in (folder / "images" / split).iterdir():
            x, y = place(path.name)
            height, width = read(path).shape[:2]
            pixels[y : y + height, x : x + width] = True
    assert not (seen["train"] & seen["test"]).any()
    assert set(np.unique(labels[seen["train"]])) == set(range(19))
    assert set(np.unique(labels[seen["test"]])) == {0, *range(19, 25)}


@pytest.mark.parametrize(("split", "wanted"), [("train", range(1, 19)), ("test", range(19, 25))])
def test_files_hold_the_tiles_and_each_coin_whole(
    split: str, wanted: range, labels: np.ndarray, folder: Path
) -> None:
    image = coins.photograph()
    held = COCO(folder / "annotations" / f"instances_{split}.json")
    whole = set()
    for tile in held.loadImgs(held.getImgIds()):
        x, y = place(tile["file_name"])
        window = slice(y, y + tile["height"]), slice(x, x + tile["width"])
        loaded = read(folder / "images" / split / tile["file_name"], cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(loaded, image[window])

        annotations = held.loadAnns(held.getAnnIds(tile["id"]))
        visible = np.unique(labels[window])[1:]
        assert len(annotations) == len(visible)
        for one, coin in zip(annotations, visible, strict=True):
            mask = labels[window] == coin
            np.testing.assert_array_equal(held.annToMask(one), mask)
            share = mask.sum() / (labels == coin).sum()
            assert one["iscrowd"] == (share < coins.ENOUGH)
            if share == 1:
                whole.add(int(coin))
    assert whole == set(wanted)
    # of a coin that a tile cuts, some parts are large enough to be called one and some are not
    assert {one["iscrowd"] for one in held.dataset["annotations"]} == {0, 1}


def test_tiles_cover_any_region_and_stay_inside() -> None:
    for region in ((0, 0, 384, 225), (0, 225, 384, 303), (5, 7, 50, 60), (3, 0, 132, 400)):
        left, top, right, bottom = region
        covered = np.zeros((bottom, right), int)
        for x0, y0, x1, y1 in coins.tiles(region):
            assert left <= x0 < x1 <= right and top <= y0 < y1 <= bottom
            assert (x1 - x0, y1 - y0) == (
                min(right - left, coins.TILE),
                min(bottom - top, coins.TILE),
            )
            covered[y0:y1, x0:x1] += 1
        assert (covered[top:, left:] > 0).all()


def test_a_complete_set_is_kept_and_the_same_written_again(folder: Path, tmp_path: Path) -> None:
    assert not coins.generate(folder)
    coins.generate(tmp_path / "again")
    for path in folder.rglob("*.*"):
        again = tmp_path / "again" / path.relative_to(folder)
        assert path.read_bytes() == again.read_bytes()


def test_without_scikit_image_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(
        ConfigError, match=r"skimage, which is not installed: pip install .*\[demo\]"
    ):
        coins.main([str(tmp_path / "set")])
    assert not list(tmp_path.iterdir())


def test_config_names_the_class_and_color() -> None:
    from mmengine.config import Config

    base = ROOT / "configs/_base_/datasets/coins_instance.py"
    metainfo = Config.fromfile(base).metainfo
    assert metainfo.classes == coins.CLASSES
    assert metainfo.palette == list(coins.PALETTE)


def test_categories(folder: Path) -> None:
    for split in coins.REGIONS:
        content = json.loads((folder / "annotations" / f"instances_{split}.json").read_text())
        assert content["categories"] == [{"id": 1, "name": "coin"}]
