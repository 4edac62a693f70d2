"""Images to predict on, and folders of images."""

from pathlib import Path

import cv2
import numpy as np

from fcvit_mm.datasets import shapes


def make_image(index: int, width: int = 64, height: int = 48) -> np.ndarray:
    return shapes.make_sample(3, "val", index, (width, height)).image[..., ::-1].copy()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its path in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def read(path: str | Path, flags: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """The values of an image file, by OpenCV."""
    image = cv2.imread(str(path), flags)
    assert image is not None, path
    return image
