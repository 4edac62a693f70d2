"""Read and write image files."""

from pathlib import Path

import cv2
import numpy as np

from ..utils.errors import ConfigError
from ..utils.files import whole_file


def read_image(path: str | Path) -> np.ndarray:
    """An image as OpenMMLab's pipelines read it: (H, W, 3), BGR, 0 to 255, EXIF applied.

    Raises:
        ConfigError: no such file, or not an image.
    """
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from error
    try:
        image = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
    except cv2.error as error:  # where a header asks for more than 2**30 pixels
        raise ConfigError(f"{path} is larger than any image that OpenCV reads") from error
    if image is None:
        raise ConfigError(f"{path} is not an image that OpenCV can read, or is damaged")
    return image


IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an image, in the format of its ending or else as PNG, completely or not at all."""
    if path.suffix.lower() not in IMAGES:
        path = path.with_name(f"{path.name}.png")
    with whole_file(path) as partial:
        if not cv2.imwrite(str(partial), image):
            raise OSError(f"OpenCV can't write {path}")
