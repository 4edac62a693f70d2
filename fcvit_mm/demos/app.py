"""A page in the browser: what a model finds in an image, and where FCViT looks.

Everything stays on this machine: the page is served to it alone, and loads nothing from elsewhere.
"""

import html
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import skimage
import torch

# read by Gradio when it is imported, which otherwise reports its use
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
import gradio as gr  # noqa: E402

from ..analysis.similarity import choose, contexts_of, draw_grid  # noqa: E402
from ..apis.predictor import Predictor  # noqa: E402
from ..datasets import shapes  # noqa: E402
from ..utils.errors import ConfigError  # noqa: E402
from ..visualization.figures import render_figure  # noqa: E402
from ..visualization.images import read_image, write_image  # noqa: E402

Array = np.ndarray
# One prediction at a time: there is one model.
ALONE: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
TITLES = {"detection": "objects", "segmentation": "classes", "classification": "best classes"}


def _path_of(component: gr.Image, upload: Any) -> str | None:
    return None if upload is None else upload.path


# NOTE: hand on what was uploaded as a path. Gradio's own opens the file first, and says of a text
# no more than that it failed. It makes new components of the class while a page is used, and for a
# subclass it would write a file next to this one.
gr.Image.preprocess = _path_of  # type: ignore[assignment, method-assign]


def example_images(folder: Path) -> list[str]:
    """Write four generated images and two photographs; return their paths."""
    images = {f"shapes_{i}.png": shapes.make_sample(0, "val", i).image for i in range(4)}
    images |= {"cat.jpg": skimage.data.cat(), "coffee.jpg": skimage.data.coffee()}
    for name, image in images.items():
        write_image(folder / name, image[..., ::-1])
    return [str(folder / name) for name in images]


def rows_of(predictor: Predictor, sample: Any) -> list[list[Any]]:
    """Return (class, value) of what was found, the best or largest first.

    The value is an object's or class's score, or the percentage of an image.
    """
    names = predictor.classes
    if predictor.task == "detection":
        values, labels = sample.pred_instances.scores, sample.pred_instances.labels
    elif predictor.task == "segmentation":
        found = sample.pred_sem_seg.data
        counts = torch.bincount(found.flatten(), minlength=len(names))
        values, labels = (100 * counts / found.numel()).sort(descending=True)
    else:
        values, labels = sample.pred_score.topk(min(5, len(names)))
    return [
        [names[label], round(value, 3)]
        for label, value in zip(labels.tolist(), values.tolist(), strict=True)
        if value > 0
    ]


class _Actions:
    """What the page calls when something on it changes. `found` is (image, data sample)."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        blank = np.full((224, 224, 3), 128, np.uint8)
        _, contexts = contexts_of(predictor, blank)
        # the blocks with maps, by the name that the page shows
        self.blocks = {f"stage {c.stage}, block {c.block}": (c.stage, c.block) for c in contexts}

    def show(self, found: Any, threshold: float) -> tuple[Array | None, list[list[Any]]]:
        """Draw what scores at least the threshold, and list it."""
        if found is None:
            return None, []
        image, sample = found
        predictor = self.predictor
        sample = predictor.select(sample, threshold, predictor.labels_of(None))
        drawn = image if predictor.task == "classification" else predictor.draw(image, sample)
        return drawn[..., ::-1], rows_of(predictor, sample)

    def predict(self, path: str | None, threshold: float) -> tuple[Any, ...]:
        """Predict for an uploaded file."""
        found = None
        if path is not None:
            try:
                image = read_image(path)
                found = (image, *self.predictor([image]))
            except ConfigError as error:
                # the folder is Gradio's own
                gr.Warning(html.escape(str(error).replace(path, Path(path).name)), duration=None)
        return found, *self.show(found, threshold)

    def look(self, found: Any, name: str) -> Array | None:
        """Draw the similarity maps of a block."""
        if found is None:
            return None
        try:
            image, contexts = contexts_of(self.predictor, found[0])
        except ConfigError as error:
            gr.Warning(html.escape(f"no maps: {error}"), duration=None)
            return None
        return render_figure(draw_grid(image, choose(contexts, *self.blocks[name])))


def build(predictor: Predictor, title: str, examples: Sequence[str]) -> gr.Blocks:
    """Lay out the page for a model with an FCViT of weighted contexts; examples: paths."""
    actions = _Actions(predictor)
    names = list(actions.blocks)
    value = "percent of the image" if predictor.task == "segmentation" else "score"
    with gr.Blocks(title="FCViT", analytics_enabled=False) as page:
        gr.Markdown(f"# What FCViT finds, and where it looks\n{title}")
        found = gr.State()
        with gr.Row():
            with gr.Column():
                image = gr.Image(label="image", sources=["upload", "clipboard"], elem_id="image")
                threshold = gr.Slider(
                    0, 1, value=0.5, step=0.01, label="least score", elem_id="threshold",
                    visible=predictor.task == "detection",
                )  # fmt: skip
                gr.Examples([[path] for path in examples], inputs=[image], label="examples")
            with gr.Column():
                drawn = gr.Image(label="prediction", interactive=False, elem_id="drawn")
                table = gr.Dataframe(
                    headers=["class", value], label=TITLES[predictor.task],
                    interactive=False, elem_id="table",
                )  # fmt: skip
        block = gr.Dropdown(names, value=names[-1], label="similarity maps of", elem_id="block")
        gr.Markdown(
            "One row per global context, one map per head: the context is added at red positions "
            "and subtracted at blue ones."
        )
        maps = gr.Image(show_label=False, interactive=False, elem_id="maps")
        outputs = [found, drawn, table]
        predicted = image.change(actions.predict, [image, threshold], outputs, **ALONE)
        predicted.then(actions.look, [found, block], maps, **ALONE)
        block.change(actions.look, [found, block], maps, **ALONE)
        threshold.change(
            actions.show, [found, threshold], [drawn, table], **ALONE, show_progress="hidden"
        )
    return page


def run(predictor: Predictor, title: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve the page of `build` to this machine alone until Ctrl-C; `ready` gets its address.

    Raises:
        ConfigError: the port is taken, or the model has no maps.
    """
    with tempfile.TemporaryDirectory() as folder:
        # where Gradio keeps what is sent to it, until the end alone
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = build(predictor, title, example_images(Path(folder)))
        # fonts of the machine: Gradio's own come from another server
        theme = gr.themes.Default(font="sans-serif", font_mono="monospace")
        try:
            _, address, _ = page.launch(
                server_name="127.0.0.1", server_port=port, share=False, quiet=True, theme=theme,
                max_file_size="50mb", allowed_paths=[folder], footer_links=[], ssr_mode=False,
                prevent_thread_lock=True,
            )  # fmt: skip
        except OSError as error:
            remedy = "name another one with --port"
            raise ConfigError(f"port {port} can't be used: {error}; {remedy}") from error
        ready(address)
        page.block_thread()
