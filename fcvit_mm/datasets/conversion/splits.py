"""Split images for training and validation, with duplicates in the same split."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image

from ...utils.errors import DatasetError, first_line
from .source import Sample

# Bits of 64 in which the perceptual hashes of two copies may differ: 0 to 4 with a quarter of the
# size or a JPEG quality of 30, while those of two photographs differ in some 30.
NEAR = 4
Group = list[Sample]


def group_duplicates(samples: Sequence[Sample]) -> list[Group]:
    """Put images that look the same into a group, by their perceptual hashes; most stay alone."""
    signs = np.array([_signs(sample.image) for sample in samples], np.float32)
    groups = np.arange(len(samples))
    for i, row in enumerate(signs):
        # of two hashes as +1 and -1, the product is 64 less twice the number of bits that differ
        near = groups[signs @ row >= 64 - 2 * NEAR]
        if near.min() != near.max():
            groups[np.isin(groups, near)] = groups[i]
    found: dict[int, Group] = {}
    for number, sample in zip(groups.tolist(), samples, strict=True):
        found.setdefault(number, []).append(sample)
    return [*found.values()]


def _signs(path: Path) -> np.ndarray:
    """Return the perceptual hash of an image, (64,), as +1 and -1."""
    try:
        with Image.open(path) as image:
            image.draft("L", (128, 128))  # a JPEG is decoded at a fraction of its size
            return np.where(imagehash.phash(image).hash.ravel(), 1, -1)
    except Exception as error:  # PIL's readers raise errors of many classes
        raise DatasetError(f"{path} can't be read as an image: {first_line(error)}") from error


def split(samples: Sequence[Sample], groups: Sequence[Group], share: float, seed: int) -> list[str]:
    """Return the split of each sample.

    The splits of the source are kept if it has both, for training and for validation. Else a share
    is drawn for validation: whole groups, and no image without which a class would have none in
    training, unless nothing is left to draw from.
    """
    given = [sample.split for sample in samples]
    if {"train", "val"} <= {*given}:
        return [one or "train" for one in given]
    tests = {sample.image for sample in samples if sample.split == "test"}
    free = [[s for s in group if s.image not in tests] for group in groups]
    free = [group for group in free if group]
    random.Random(seed).shuffle(free)
    count = sum(map(len, free))
    wanted = min(max(round(share * count), 1), count - 1) if share else 0
    drawn = _draw(free, wanted, True) or _draw(free, wanted, False)
    drawn = drawn or _draw([[sample] for group in free for sample in group], wanted, False)
    chosen = {sample.image for sample in drawn}
    return [
        "test" if one.image in tests else "val" if one.image in chosen else "train"
        for one in samples
    ]


def _draw(groups: Sequence[Group], wanted: int, keep_classes: bool) -> Group:
    """Return the samples of the first groups that fit, up to a number.

    keep_classes: take none that alone has a class.
    """
    left = Counter(name for group in groups for name in _classes(group))
    drawn: Group = []
    for group in groups:
        classes = _classes(group)
        spared = all(left[name] > 1 for name in classes) or not keep_classes
        if len(drawn) + len(group) <= wanted and spared:
            drawn += group
            left -= Counter(classes)
    return drawn


def _classes(group: Group) -> set[str]:
    return {name for sample in group for name, _ in sample.objects}
