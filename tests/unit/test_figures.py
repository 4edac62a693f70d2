"""Plots and image files: one place each, whole files."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from fcvit_mm.visualization.figures import make_panels, render_figure, save_figure
from fcvit_mm.visualization.images import read_image, write_image
from helpers import ROOT
from helpers.images import read


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (r"import matplotlib|from matplotlib", "visualization/figures.py"),
        (r"cv2\.im(read|write|decode|encode)", "visualization/images.py"),
    ],
)
def test_one_place_does_it(words, place):
    package = ROOT / "fcvit_mm"
    found = [
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if ".mim" not in path.parts and re.search(words, path.read_text())
    ]
    assert found == [place]


def test_a_plot_has_the_format_of_its_ending(tmp_path):
    figure, grid = make_panels(1, 2, (4, 2), sharey=True)
    assert grid.shape == (1, 2)
    grid[0, 0].plot([0, 1], [0, 1])
    for ending, first in ((".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")):
        save_figure(figure, tmp_path / f"a{ending}")
        assert (tmp_path / f"a{ending}").read_bytes().startswith(first)
    assert len(list(tmp_path.iterdir())) == 3
    pixels = render_figure(figure)
    assert pixels.shape == (200, 400, 3) and pixels.dtype == np.uint8 and pixels.std() > 10


def test_a_plot_that_fails_leaves_the_last_one(tmp_path, monkeypatch):
    figure, _ = make_panels(1, 1, (2, 2))
    save_figure(figure, tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()

    def fail(path: Path, dpi: int) -> None:
        path.write_bytes(b"half")
        raise OSError("no space")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(OSError, match="no space"):
        save_figure(figure, tmp_path / "a.png")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


@pytest.mark.parametrize("direct", [False, True])
def test_an_image_is_read_as_it_was_written(tmp_path, direct):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    write_image(tmp_path / "a.png", image, direct)
    assert np.array_equal(read_image(tmp_path / "a.png"), image)
    labels = np.arange(300, dtype=np.uint16).reshape(15, 20)
    write_image(tmp_path / "b.png", labels, direct)
    assert np.array_equal(read(tmp_path / "b.png", cv2.IMREAD_UNCHANGED), labels)
    assert len(list(tmp_path.iterdir())) == 2
