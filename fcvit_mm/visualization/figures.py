"""Make and save plots. matplotlib is imported here and nowhere else.

Figures are made without pyplot: they need no window system, and nothing has to be closed.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps as colormaps
from matplotlib import get_data_path
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable as ScalarMappable
from matplotlib.colors import Normalize as Normalize
from matplotlib.figure import Figure as Figure

from ..utils.files import atomic_write

# DejaVu Sans, which comes with matplotlib and has letters of many languages
FONT = str(Path(get_data_path(), "fonts/ttf/DejaVuSans.ttf"))


def make_panels(rows: int, columns: int, size: tuple[float, float], **options: Any) -> Any:
    """Make a figure, of a width and height in inches; return it and its grid of panels.

    options: such as `sharey`, see matplotlib's `Figure.subplots`.
    """
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save_figure(figure: Figure, path: Path, dpi: int = 110) -> None:
    """Write a figure, in the format of the path's ending, completely or not at all."""
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=dpi)


def render_figure(figure: Figure) -> np.ndarray:
    """Return the pixels of a figure: (H, W, 3), RGB, 0 to 255."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
