"""Read and write image files."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

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


def convert_image(image: Any) -> np.ndarray:
    """Convert an image in memory, or read one from a path, to (H, W, 3), RGB, uint8.

    The rotation that EXIF asks for is applied to files and to PIL images.

    Raises:
        ConfigError: neither a path, a PIL image nor an array (H, W, 3) of uint8.
    """
    if isinstance(image, (str, Path)):
        return read_image(image)[..., ::-1]
    if isinstance(image, Image.Image):
        if image.mode in ("F", "I") or image.mode.startswith("I;"):
            raise ConfigError(
                f"a PIL image of mode {image.mode} has no colors from 0 to 255; scale it to them "
                'and .convert("RGB") it'
            )
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    if not isinstance(image, np.ndarray):
        raise ConfigError(
            f"an image is an array (H, W, 3), a PIL image or a path, not a {type(image).__name__}"
        )
    remedy = ""
    if image.ndim == 2:
        remedy = "; np.stack([image] * 3, axis=-1) makes a gray image one"
    elif image.ndim == 4:
        remedy = "; give several images as a list"
    elif image.ndim == 3 and image.shape[2] == 4:
        remedy = "; image[:, :, :3] leaves out the opacity"
    elif image.ndim == 3 and image.shape[2] != 3 and image.shape[0] == 3:
        remedy = "; image.transpose(1, 2, 0) puts the channels last"
    elif image.dtype.kind == "f":
        remedy = "; (255 * image).round().astype(np.uint8) converts values from 0 to 1"
    elif image.dtype == np.uint8 and image.size and image.shape[2:] == (3,):
        return image
    raise ConfigError(
        "an image in an array is (H, W, 3), RGB, uint8 from 0 to 255, not "
        f"{tuple(image.shape)}, {image.dtype}{remedy}"
    )


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
