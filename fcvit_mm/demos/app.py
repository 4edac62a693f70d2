"""A page in the browser: what a model finds in an image, and where FCViT looks.

Everything stays on this machine: the page is served to it alone, and loads nothing from elsewhere.
"""

import html
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage
import torch

# read by Gradio when it is imported, which otherwise reports its use
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
import gradio as gr  # noqa: E402

from ..analysis.similarity import (
    choose,
    contexts_of,
    draw_grid,  # noqa: E402
)
from ..apis.predictor import Predictor
from ..datasets import shapes  # noqa: E402
from ..utils.errors import ConfigError  # noqa: E402
from ..visualization.figures import render_figure  # noqa: E402
from ..visualization.images import (
    read_image,  # noqa: E402
    write_image,  # noqa: E402
)

Array = np.ndarray
# One prediction at a time: there is one model.
ALONE: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
TITLES = {"detection": "objects", "segmentation": "classes", "classification": "best classes"}
COLUMNS = {
    "detection": ["class", "score", "left", "top", "width", "height"],
    "segmentation": ["class", "percent of the image"],
    "classification": ["class", "score"],
}


def _path_of(component: gr.Image, upload: Any) -> str | None:
    return None if upload is None else upload.path


# NOTE: hand on what was uploaded as a path. Gradio's own opens the file first, and says of a text
# no more than that it failed. It makes new components of the class while a page is used, and for a
# subclass it would write a file next to this one.
gr.Image.preprocess = _path_of  # type: ignore[assignment, method-assign]


def example_images(folder: Path) -> list[str]:
    """Write four generated images and two photographs; returns their paths."""
    paths = []
    for index in range(4):
        path = folder / f"shapes_{index}.png"
        write_image(path, shapes.make_sample(0, "val", index).image[..., ::-1])
        paths.append(path)
    for name, photograph in (("cat", skimage.data.cat()), ("coffee", skimage.data.coffee())):
        path = folder / f"{name}.jpg"
        write_image(path, photograph[..., ::-1])
        paths.append(path)
    return [str(path) for path in paths]


def rows_of(predictor: Predictor, sample: Any) -> list[list[Any]]:
    """What was found, as rows of `COLUMNS`, the best or largest first."""
    names = predictor.classes
    if predictor.task == "detection":
        found = sample.pred_instances
        boxes = torch.cat([found.bboxes[:, :2], found.bboxes[:, 2:] - found.bboxes[:, :2]], 1)
        return [
            [names[label], round(score, 3), *(round(value, 1) for value in box)]
            for label, score, box in zip(
                found.labels.tolist(), found.scores.tolist(), boxes.tolist(), strict=True
            )
        ]
    if predictor.task == "segmentation":
        labels = sample.pred_sem_seg.data
        counts = torch.bincount(labels.flatten(), minlength=len(names)) / labels.numel() * 100
        order = counts.argsort(descending=True).tolist()
        return [[names[i], round(float(counts[i]), 2)] for i in order if counts[i] > 0]
    scores, order = sample.pred_score.topk(min(5, len(names)))
    return [[names[i], round(s, 3)] for i, s in zip(order.tolist(), scores.tolist(), strict=True)]


def _say(sentence: str) -> None:
    gr.Warning(html.escape(sentence), duration=None)


def build(predictor: Predictor, title: str, examples: Sequence[str]) -> gr.Blocks:
    """The page.

    Args:
        predictor: of any task; maps are shown if it has an FCViT with weighted contexts.
        title: what the model is.
        examples: paths of images.
    """
    blank = np.full((64, 64, 3), 128, np.uint8)
    _, contexts = contexts_of(predictor, cv2.resize(blank, (224, 224)))
    blocks = list(dict.fromkeys((context.stage, context.block) for context in contexts))
    names = {f"stage {stage}, block {block}": (stage, block) for stage, block in blocks}

    def show(found: Any, threshold: float) -> tuple[Array | None, list[list[Any]]]:
        if found is None:
            return None, []
        image, sample = found
        sample = predictor.select(sample, threshold, predictor.labels_of(None))
        drawn = image if predictor.task == "classification" else predictor.draw(image, sample)
        return drawn[..., ::-1], rows_of(predictor, sample)

    def predict(path: str | None, threshold: float) -> tuple[Any, ...]:
        found = None
        if path is not None:
            try:
                image = read_image(path)
                found = (image, *predictor([image]))
            except ConfigError as error:
                # the folder is Gradio's own
                _say(str(error).replace(path, Path(path).name))
        return found, *show(found, threshold)

    def look(found: Any, name: str) -> Array | None:
        if found is None:
            return None
        try:
            image, contexts = contexts_of(predictor, found[0])
        except ConfigError as error:
            _say(f"no maps: {error}")
            return None
        return render_figure(draw_grid(image, choose(contexts, *names[name])))

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
                    headers=COLUMNS[predictor.task], label=TITLES[predictor.task],
                    interactive=False, elem_id="table",
                )  # fmt: skip
        block = gr.Dropdown(
            list(names), value=list(names)[-1], label="similarity maps of", elem_id="block"
        )
        gr.Markdown(
            "One row per global context, one map per head: the context is added at red positions "
            "and subtracted at blue ones."
        )
        maps = gr.Image(show_label=False, interactive=False, elem_id="maps")
        predicted = image.change(predict, [image, threshold], [found, drawn, table], **ALONE)
        predicted.then(look, [found, block], maps, **ALONE)
        block.change(look, [found, block], maps, **ALONE)
        threshold.change(show, [found, threshold], [drawn, table], **ALONE, show_progress="hidden")
    return page


def run(predictor: Predictor, title: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve the page to this machine alone until Ctrl-C.

    Args:
        predictor, title: see `build`.
        port: to listen on.
        ready: called with the address.

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
                server_name="127.0.0.1",
                server_port=port,
                share=False,
                quiet=True,
                max_file_size="50mb",
                allowed_paths=[folder],
                theme=theme,
                footer_links=[],
                ssr_mode=False,
                prevent_thread_lock=True,
            )
        except OSError as error:
            raise ConfigError(
                f"port {port} can't be used: {error}; name another one with --port"
            ) from error
        ready(address)
        page.block_thread()
