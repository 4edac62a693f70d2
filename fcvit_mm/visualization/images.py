"""Read and write image files."""

from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ..utils.errors import ConfigError
from ..utils.files import atomic_write

# Endings of files that are read as images.
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
# What browsers show. In these formats PIL and OpenCV read the size from the same place.
SHOWN = ("BMP", "GIF", "JPEG", "PNG", "WEBP")


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


def check_size(path: str | Path, max_pixels: int, max_ratio: int) -> None:
    """Read the header of an image in a format that browsers show; refuse it before it is decoded.

    Args:
        max_ratio: of the sides. Resized to a usual height, a thin image could fill the memory.

    Raises:
        ConfigError: not such an image, or larger or thinner than the limits.
    """
    try:
        with Image.open(path, formats=SHOWN) as image:
            short, long = sorted(image.size)
    except Image.DecompressionBombError:
        short = long = max_pixels  # PIL's own limit is larger
    except Exception as error:  # PIL's readers raise errors of many classes
        what = "is not an image that OpenCV can read and browsers show, or is damaged"
        raise ConfigError(f"{path} {what}") from error
    if short * long > max_pixels:
        raise ConfigError(f"{path} has more than {max_pixels:,} pixels; shrink it")
    if long > max_ratio * short:
        raise ConfigError(f"{path} has one side more than {max_ratio} times the other; crop it")


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
