"""Read and write image files."""

from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np

from ..utils.errors import ConfigError
from ..utils.files import atomic_write

# Endings of files that are read as images.
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def read_image(path: str | Path) -> np.ndarray:
    """Read an image as OpenMMLab's pipelines do: (H, W, 3), BGR, 0 to 255, EXIF applied.

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


def write_image(path: Path, image: np.ndarray, direct: bool = False) -> None:
    """Write an image, in the format of its ending or else as PNG, completely or not at all.

    Args:
        image: (H, W, 3), BGR, or (H, W), uint8; as PNG also uint16.
        direct: write to the path itself, faster, in a folder that is renamed once it is complete.

    Raises:
        OSError: it can't be written.
    """
    if path.suffix.lower() not in IMAGES:
        path = path.with_name(f"{path.name}.png")
    options = [cv2.IMWRITE_PNG_COMPRESSION, 4] if path.suffix.lower() == ".png" else []
    with nullcontext(path) if direct else atomic_write(path) as partial:
        if not cv2.imwrite(str(partial), image, options):
            raise OSError(f"OpenCV can't write {path}")
