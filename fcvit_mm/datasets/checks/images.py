"""Check image files: present, whole, of the annotated size, and readable by the pipeline."""

import os
from io import BytesIO
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from ...utils.errors import first_line
from .report import Problem

# Where the rotation of an image is noted, and the values that exchange its sides.
EXIF_ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)
# The last bytes of a complete file. One that ends otherwise may still be complete: it is decoded.
END_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
# What OpenCV reads, too; for a few of its other formats PIL starts programs, such as Ghostscript.
Image.init()
READ = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "SUN", "TIFF", "WEBP")
FORMATS = [name for name in READ if name in Image.OPEN]

Pixels = tuple[int, int]  # width, height


class File(NamedTuple):
    """An image to check."""

    path: str
    size: Pixels | None = None  # as annotated
    label_map: str | None = None
    left_out: bool = False  # by the dataset, as too small or without objects
    decode: bool = False


def suits(size: Pixels, steps: list[dict]) -> bool:
    """Tell whether the resizing of a pipeline leaves enough of the sides of an image."""
    # an image one pixel wide is flipped to an array that PyTorch refuses
    least = 2 if any("Flip" in str(step.get("type")) for step in steps) else 1
    sides = []
    for step in steps:
        ratio = min(step.get("ratio_range") or [1])
        for scale in [step.get("scale"), *(step.get("scales") or [])]:
            if step.get("keep_ratio") and isinstance(scale, list | tuple):
                long, short = int(max(scale) * ratio), int(min(scale) * ratio)
                # as mmcv.imrescale rounds
                sides.append(int(min(size) * min(long / max(size), short / min(size)) + 0.5))
    return min(sides or size) >= least


def _open(path: str) -> BinaryIO:
    """Open a regular file; a pipe would be waited for, and some devices never end."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError("not a regular file")
    return open(path, "rb")


def _decode(file: BinaryIO, image: Image.Image) -> Image.Image:
    """Decode an image; raise an error where a decoder would fill what is damaged with gray."""
    if image.format == "JPEG":
        # A decoder ends at the mark, whatever is missing; it reads no more than 8 bytes ahead.
        file.seek(0)
        before, _, after = file.read().rpartition(END_MARKS["JPEG"])
        image = Image.open(BytesIO((before or after) + b"\x55" * 8), formats=["JPEG"])
    try:
        image.load()
    except OSError as error:
        if not (image.info.get("progressive") and "(0 bytes not processed)" in str(error)):
            raise  # else all scans are read, and the mark alone is missing
    if image.format == "PNG":
        file.seek(0)
        Image.open(file, formats=["PNG"]).verify()  # its checksums, which decoding leaves out
    return image


def read_header(path: str, decode: bool = False) -> tuple[Pixels, list[Problem]]:
    """Return the size of an image as it is loaded, its EXIF rotation applied, and warnings.

    Args:
        decode: decode the image, which finds most damage inside. Otherwise header and end are
            read, in some 0.1 ms, which finds what is not an image or is cut off.

    Raises:
        Exception: no image or a damaged one; PIL's readers raise errors of many classes.
    """
    folder, name = os.path.split(path)
    with _open(path) as file, Image.open(file, formats=FORMATS) as image:
        # the info first: asking for EXIF makes PIL decode some formats
        sideways = "exif" in image.info and image.getexif().get(EXIF_ORIENTATION) in SIDEWAYS
        size = image.size[::-1] if sideways else image.size
        found = []
        if image.format == "TIFF" and image.mode in ("I", "F"):
            what = "images that OpenCV does not read"
            found.append(Problem(folder, what, "store 8 bits per channel", name))
        # PIL's mode of a color image is RGB whatever its depth; the tile says what is stored
        if image.tile and ";16" in str(image.tile[0][3]):
            what = "images of 16 bits per channel, of which the upper 8 are used"
            remedy = "where their values do not fill the 16, spread them over 8 bits"
            found.append(Problem(folder, what, remedy, name, is_error=False))
        if image.has_transparency_data:
            what = "images with transparency, which is ignored"
            remedy = "what is stored under it is seen; remove the transparency to choose it"
            found.append(Problem(folder, what, remedy, name, is_error=False))
        mark = END_MARKS.get(image.format or "")
        if mark is not None and not decode:
            file.seek(-len(mark), os.SEEK_END)
            decode = file.read() != mark
        if decode or mark is None:
            _decode(file, image)
    return size, found


def _reason(error: Exception) -> str:
    return "not an image" if isinstance(error, UnidentifiedImageError) else first_line(error)


def check_file(file: File, steps: list[dict]) -> tuple[list[Problem], np.ndarray | None]:
    """Read an image and its label map; returns how many pixels of the latter have each value.

    steps: of the pipeline that will read them.
    """
    folder, name = os.path.split(file.path)
    size: Pixels | None = None
    found: list[Problem] = []

    def error(what: str, remedy: str, example: str) -> None:
        found.append(Problem(folder, what, remedy, example))

    try:
        size, found = read_header(file.path, file.decode)
    except FileNotFoundError:
        error("images that do not exist", "put them there or set data_prefix", name)
    except Exception as e:  # see `read_header`
        error("images that can't be read", "replace these files", f"{name} ({_reason(e)})")
    if size and file.size and size != file.size:
        what = "images of another size than their annotations say"
        remedy = "correct width and height, and the boxes if the images were scaled"
        error(what, remedy, "{} ({}x{}, annotated {}x{})".format(name, *size, *file.size))
    if size and not file.left_out and not suits(size, steps):
        what = "images that the pipeline shrinks to a side of one pixel, which can't be flipped, "
        remedy = "crop or remove them; in training filter_cfg=dict(min_size=...) leaves them out"
        error(f"{what}or of none", remedy, "{} ({}x{})".format(name, *size))
    if file.label_map is None:
        return found, None
    problem, counts = _check_label_map(file.label_map, name, size)
    return found + ([problem] if problem else []), counts


def _check_label_map(
    path: str, image_name: str, image_size: Pixels | None
) -> tuple[Problem | None, np.ndarray | None]:
    """Read a label map; returns how many pixels have each value, 256 for what a byte can't hold."""
    folder, name = os.path.split(path)
    try:
        with _open(path) as file, Image.open(file, formats=FORMATS) as image:
            # as MMSegmentation reads it: indices of a palette stay indices
            labels = np.array(_decode(file, image)).squeeze()
    except FileNotFoundError:
        remedy = "add the label maps, remove the images or set seg_map_suffix"
        example = f"{image_name} (no {name})"
        return Problem(folder, "images without label map", remedy, example), None
    except Exception as e:  # see `read_header`
        what, example = "label maps that can't be read", f"{name} ({_reason(e)})"
        return Problem(folder, what, "replace these files", example), None
    if labels.ndim > 2:
        remedy = "store the index of each pixel's class in a single channel"
        return Problem(folder, "label maps in color", remedy, name), None
    if labels.ndim < 2:
        what = "label maps with a side of one pixel, which MMSegmentation does not read"
        return Problem(folder, what, "enlarge or remove them and their images", name), None
    problem = None
    if image_size and image_size != labels.shape[::-1]:
        example = "{} ({}x{}, image {}x{})".format(name, *labels.shape[::-1], *image_size)
        what = "label maps of another size than their images"
        problem = Problem(folder, what, "make both of the same size", example)
    if labels.dtype != np.uint8:
        labels = np.where((labels < 0) | (labels > 255), 256, labels).astype(np.uint16)
    return problem, np.bincount(labels.ravel(), minlength=257)
