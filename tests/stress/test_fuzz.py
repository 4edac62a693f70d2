"""Annotation files, images and label maps at random: the data checks report them, or say why not.

FUZZ=10000 sets how many are tried, FUZZ_SEED with which one begins; by default 20 per test, and 150
in one that is marked slow.
"""

import copy
import io
import json
import os
import random
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from fcvit_mm.datasets.checks import Report, check
from fcvit_mm.utils.config import load_config
from fcvit_mm.utils.errors import ConfigError
from fcvit_mm.visualization.images import read_image
from helpers.stress import some
from helpers.tools import TASKS

SEED = int(os.environ.get("FUZZ_SEED", "0"))
NUMBERS = some("FUZZ", 20, 150)
# of processor time, of one input
MOST_SECONDS = 20

JUNK: list[Any] = [
    None, True, False, -1, 0, 1, 2**31, 2**63, 10**400, -(10**30), 1e300, 1e-300, float("nan"),
    float("inf"), float("-inf"), "", "x", "\x00", "\ud800", "\n\x1b[31m", "../../../etc/passwd",
    "/dev/zero", "/dev/stdin", "a" * 10_000, [], [[]], [[[]]], {}, {"id": []}, [None] * 50, "1",
    [1, 2, 3, 4], [1e308] * 4, [float("nan")] * 4, {"counts": [], "size": [64, 64]},
    {"counts": "\x00\xff", "size": [64, 64]}, {"counts": [10**9], "size": [10**9, 10**9]},
]  # fmt: skip


def looked_at(cfg: Config) -> Report:
    """The report of the only dataset."""
    start = time.process_time()
    (report,) = check(cfg, ("val_dataloader",))
    for sentence in report.errors + report.warnings:
        assert "\n" not in sentence and sentence.isprintable()
        sentence.encode()
    assert time.process_time() - start < MOST_SECONDS
    return report


def is_flawed(cfg: Config, seed: int) -> bool:
    """Whether there are errors in data that were damaged by this seed, which a failure names."""
    try:
        return bool(looked_at(cfg).errors)
    except Exception as error:
        raise AssertionError(f"FUZZ_SEED={seed}") from error


# ------------------------------------------------------------------------- annotation files


def change_somewhere(content: Any, rng: random.Random) -> None:
    """Remove, replace, repeat or exchange a random part of a JSON document, in place."""
    value = content
    while True:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = rng.choice(keys)
        if rng.random() < 0.2 or not (isinstance(value[key], dict | list) and value[key]):
            break
        value = value[key]
    act = rng.randrange(5)
    if act == 0:
        del value[key]
    elif act == 1 and isinstance(value, list):
        value += copy.deepcopy(rng.choices(value, k=rng.randrange(1, 4)))
    elif act == 2:
        value[key], other = copy.deepcopy(content[rng.choice(list(content))]), value[key]
        content[rng.choice([*content, "x"])] = other
    elif act == 3 and isinstance(value[key], int | float):
        value[key] = rng.choice([str(value[key]), -value[key], value[key] * 1000, [value[key]]])
    else:
        value[key] = copy.deepcopy(rng.choice(JUNK))


def damage(content: bytes, rng: random.Random) -> bytes:
    """Change a file without regard to what its bytes mean."""
    changed = bytearray(content)
    for _ in range(rng.randrange(1, 5)):
        start = rng.randrange(len(changed) + 1)
        end = min(len(changed), start + rng.choice([1, 2, 8, 100]))
        act = rng.randrange(5)
        if act == 0:
            changed[start:end] = rng.randbytes(end - start)
        elif act == 1:
            del changed[start:]
        elif act == 2:
            changed[start:start] = changed[start:end] * rng.choice([1, 100])
        elif act == 3 and start < len(changed):
            changed[start] ^= 1 << rng.randrange(8)
        else:
            # lengths, sizes and offsets
            number = rng.choice([0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF])
            changed[start : start + 4] = struct.pack(rng.choice("<>") + "I", number)
    return bytes(changed)


def annotations(original: dict, rng: random.Random) -> bytes:
    """A file that is nearly COCO's."""
    content = copy.deepcopy(original)
    for _ in range(rng.randrange(0, 4)):
        if content:
            change_somewhere(content, rng)
    text = json.dumps(content, ensure_ascii=rng.random() < 0.9)
    kind = rng.randrange(12)
    if kind == 0:
        depth = rng.choice([10, 900, 100_000])
        text = text.replace("[", "[" * depth, rng.randrange(2))
    elif kind == 1:
        text = text.replace('"id":', rng.choice(['"id": 3, "id":', '"id": 1e999, "Id":']))
    elif kind == 2:
        text = text.replace("null", "9" * 5000).replace("0.", "9" * 5000 + ".", 1)
    encoded = text.encode(
        rng.choice(["utf-8"] * 8 + ["utf-8-sig", "utf-16", "utf-32", "latin-1"]), "replace"
    )
    return damage(encoded, rng) if kind in (3, 4, 5) else encoded


@pytest.mark.official
@NUMBERS
def test_annotation_files(data, number):
    path = data / "annotations/instances_val.json"
    original = json.loads(path.read_text())
    cfg = load_config(str(TASKS["detection"]))
    flawed = 0
    for seed in range(SEED, SEED + number):
        path.write_bytes(annotations(original, random.Random(seed)))
        flawed += is_flawed(cfg, seed)
    assert flawed > 0.5 * number


# ---------------------------------------------------------------------------------- images

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "ICO", "TGA", "JPEG2000")


def images() -> list[bytes]:
    """An image in each format, in color, gray and with a palette where it has these."""
    values = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    found = []
    for format in FORMATS:
        for mode in ("RGB", "L", "P", "I;16", "1", "RGBA", "CMYK", "F"):
            stream = io.BytesIO()
            try:
                Image.fromarray(values).convert("L" if mode == "I;16" else mode).convert(mode).save(
                    stream, format
                )
            except (OSError, ValueError, KeyError):
                continue
            found.append(stream.getvalue())
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "JPEG", exif=exif)
    return [*found, stream.getvalue()]


@pytest.mark.official
@pytest.mark.parametrize("task", TASKS)
@NUMBERS
def test_images_and_label_maps(data, task, number):
    originals = images()
    assert len(originals) > 30
    cfg = load_config(str(TASKS[task]))
    paths = sorted((data / "images/val").iterdir())
    if task == "segmentation":
        paths += sorted((data / "label_maps/val").iterdir())
        originals.append(paths[-1].read_bytes())
    flawed = 0
    for seed in range(SEED, SEED + number):
        rng = random.Random(seed)
        for path in paths:
            content = rng.choice(originals)
            path.write_bytes(damage(content, rng) if rng.random() < 0.9 else content)
        flawed += is_flawed(cfg, seed)
    assert flawed > 0.9 * number


# -------------------------------------------------------------- what else an image may be


def eps(path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (64, 64)).save(stream, "EPS")
    path.write_bytes(stream.getvalue())


@pytest.mark.parametrize(
    ("make", "why"),
    [(eps, "not an image"), (lambda path: path.symlink_to("/dev/zero"), "not a regular file")],
    ids=["a program for Ghostscript", "a device"],
)
@pytest.mark.parametrize("task", TASKS)
def test_what_would_start_a_program_or_has_no_end_is_no_image(data, task, make, why):
    path = data / "images/val/00001.png"
    path.unlink()
    make(path)
    # of a segmentation's images those that are no files are not even listed
    (error,) = looked_at(load_config(str(TASKS[task]))).errors
    assert f"00001.png ({why})" in error or "without image: 00001.png" in error
    if task == "segmentation":
        path = data / "label_maps/val/00002.png"
        path.unlink()
        make(path)
        errors = looked_at(load_config(str(TASKS[task]))).errors
        assert any(f"00002.png ({why})" in error for error in errors), errors


def test_a_small_file_of_too_many_pixels_is_named(data):
    header = b"P5 60000 60000 255\n"
    (data / "images/val/00001.png").write_bytes(header + bytes(10))
    report = looked_at(load_config(str(TASKS["detection"])))
    assert "decompression bomb" in report.errors[0]


@NUMBERS
def test_an_image_at_random_is_one_or_a_sentence(tmp_path, number):
    """As infer reads it, with OpenCV."""
    originals = [*images(), b"P5 60000 60000 255\n" + bytes(10)]
    read = 0
    for seed in range(SEED, SEED + number * 4):
        rng = random.Random(seed)
        content = rng.choice(originals)
        (tmp_path / "a.png").write_bytes(damage(content, rng) if seed % 2 else content)
        try:
            read += read_image(tmp_path / "a.png").ndim == 3
        except ConfigError as error:
            assert "a.png is " in str(error)
    assert 0.3 * number * 4 < read < 0.9 * number * 4
