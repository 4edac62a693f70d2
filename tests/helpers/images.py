"""Images to predict on."""

import numpy as np

from fcvit_mm.datasets import shapes


def make_image(index: int, width: int = 64, height: int = 48) -> np.ndarray:
    return shapes.make_sample(3, "val", index, (width, height)).image[..., ::-1].copy()
