"""A page in the browser: what a model finds in an image, and where FCViT looks.

Everything stays on this machine: the page is served to it alone, and loads nothing from elsewhere.
What is uploaded may come from a stranger, and other pages in the same browser may send requests.
"""

import html
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

# read by Gradio when it is imported, which otherwise reports its use
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
import gradio as gr  # noqa: E402

from ..analysis.browse_dataset import build_dataset  # noqa: E402
from ..analysis.similarity import choose, contexts_of, draw_grid  # noqa: E402
from ..apis.predictor import Predictor  # noqa: E402
from ..apis.result import Result, coco_content  # noqa: E402
from ..utils.errors import ConfigError  # noqa: E402
from ..utils.files import write_json  # noqa: E402
from ..visualization.figures import render_figure  # noqa: E402
from ..visualization.images import check_size, read_image, write_image  # noqa: E402

Array = np.ndarray
MAX_PIXELS, MAX_RATIO = 50_000_000, 100  # of an upload
# To what a larger image is shrunk: a prediction can take a kilobyte per pixel.
WORK_PIXELS = 2_000_000
# Bytes of an upload, of any other request, and of all files that the page keeps.
MAX_UPLOAD, MAX_REQUEST, QUOTA = 50 * 2**20, 2**20, 2**30
# Events that wait, and browser tabs that are remembered.
MAX_WAITING, MAX_TABS = 100, 100
# One prediction at a time: there is one model.
ALONE: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
TITLES = {"detection": "objects", "segmentation": "classes", "classification": "best classes"}
# of `Result.to_table`, boxes in pixels
COLUMNS = {
    "detection": ("class", "score", "left", "top", "right", "bottom"),
    "segmentation": ("class", "percent"),
    "classification": ("class", "score"),
}
EXAMPLES = 6
# What a prediction fills: the drawn image, the rows of the table, the path of a file to download.
Shown = tuple[Array | None, list[list[Any]], str | None]
NOTHING: Shown = (None, [], None)


def _path_of(component: gr.Image, upload: Any) -> str | None:
    return None if upload is None else upload.path


# NOTE: hand on what was uploaded as a path. Gradio's own opens the file first, and says of a text
# no more than that it failed. It makes new components of the class while a page is used, and for a
# subclass it would write a file next to this one.
gr.Image.preprocess = _path_of  # type: ignore[assignment, method-assign]


def example_images(predictor: Predictor, folder: Path) -> list[str]:
    """Copy the first images of the config's test dataset, or write photographs; return their paths.

    The photographs are scikit-image's, where the dataset is not there or browsers can't show it.
    """
    paths: list[str] = []
    with suppress(ConfigError):
        dataset = build_dataset(predictor.cfg, "test")
        for i in range(len(dataset)):
            source = Path(dataset.get_data_info(i)["img_path"])
            with suppress(ConfigError):
                check_size(source, MAX_PIXELS, MAX_RATIO)
                (folder / str(i)).mkdir()
                paths.append(str(shutil.copy(source, folder / str(i))))
            if len(paths) == EXAMPLES:
                break
    if not paths:
        for name in ("cat", "coffee", "astronaut"):
            path = folder / f"{name}.jpg"
            write_image(path, getattr(skimage.data, name)()[..., ::-1])
            paths.append(str(path))
    return paths


def rows_of(result: Result) -> list[list[Any]]:
    """Return the rows of the table, the best or largest first; of a classifier the best five."""
    table = result.to_table()
    if result.task == "classification":
        table = table[:5]
    return [[_rounded(key, row[key]) for key in COLUMNS[result.task]] for row in table]


def _rounded(key: str, value: Any) -> Any:
    if isinstance(value, str):
        return value
    return round(value, 3) if key in ("score", "percent") else round(value)


class _Actions:
    """What the page calls when something on it changes. `path` is of the uploaded image."""

    def __init__(self, predictor: Predictor, scale: float = 1.0) -> None:
        self.predictor, self.scale = predictor, scale
        # of the last images alone, for all tabs: a tab that kept its own would never let it go
        self.find = lru_cache(4)(self._find)
        blank = np.full((224, 224, 3), 128, np.uint8)
        _, contexts = contexts_of(predictor, blank)
        # the blocks with maps, by the name that the page shows
        self.blocks = {f"stage {c.stage}, block {c.block}": (c.stage, c.block) for c in contexts}

    def _find(self, path: str) -> Result:
        """Predict for an image, shrunk where it is large."""
        check_size(path, MAX_PIXELS, MAX_RATIO)
        image = read_image(path)
        scale = (WORK_PIXELS / (image.shape[0] * image.shape[1])) ** 0.5
        if scale < 1:
            image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        return self.predictor(image[..., ::-1])

    def show(self, path: str | None, threshold: float, say: bool = True) -> Shown:
        """Draw what scores at least the threshold, list it, and write it to a file."""
        if path is None:
            return NOTHING
        try:
            result = self.find(path)
        except ConfigError as error:
            if say:
                # the folder is Gradio's own
                message = str(error).replace(path, Path(path).name)
                gr.Warning(html.escape(message), duration=None)
            return NOTHING
        if result.task == "detection":
            result = result.select(threshold)
        file = None if result.task == "classification" else save(result, Path(path))
        # a small image is drawn larger, a large one no larger than is predicted for
        room = (WORK_PIXELS / result.image[..., 0].size) ** 0.5
        drawn = result.draw(scale=min(self.scale, max(1.0, room)))
        return drawn, rows_of(result), file

    def move(self, path: str | None, threshold: float) -> Shown:
        """Do as `show` for another threshold, without saying again what is wrong with an image."""
        return self.show(path, threshold, say=False)

    def look(self, path: str | None, name: str) -> Array | None:
        """Draw the similarity maps of a block."""
        if path is None:
            return None
        try:
            image = self.find(path).image[..., ::-1]
        except ConfigError:  # `show` has said so
            return None
        try:
            image, contexts = contexts_of(self.predictor, image)
        except ConfigError as error:
            gr.Warning(html.escape(f"no maps: {error}"), duration=None)
            return None
        return render_figure(draw_grid(image, choose(contexts, *self.blocks[name])))


def save(result: Result, path: Path) -> str:
    """Write what was found in an image in COCO's format where Gradio serves it; return the path."""
    height, width = result.image.shape[:2]
    image = {"id": 1, "file_name": path.name, "width": width, "height": height}
    folder = tempfile.mkdtemp(dir=os.environ.get("GRADIO_TEMP_DIR"))
    file = Path(folder, f"{path.stem}.json")
    write_json(file, coco_content(result.classes, [image], result.to_coco()), None)
    return str(file)


def build(
    predictor: Predictor, title: str, examples: Sequence[str], scale: float = 1.0
) -> gr.Blocks:
    """Lay out the page for a model with an FCViT of weighted contexts.

    Args:
        examples: paths.
        scale: of the drawn image.
    """
    actions = _Actions(predictor, scale)
    names = list(actions.blocks)
    with gr.Blocks(title="FCViT", analytics_enabled=False) as page:
        gr.Markdown(f"# What FCViT finds, and where it looks\n{title}")
        with gr.Row():
            with gr.Column():
                image = gr.Image(label="image", sources=["upload", "clipboard"], elem_id="image")
                threshold = gr.Slider(
                    0, 1, value=0.5, step=0.01, label="score threshold", elem_id="threshold",
                    visible=predictor.task == "detection",
                )  # fmt: skip
                gr.Examples([[path] for path in examples], inputs=[image], label="examples")
            with gr.Column():
                drawn = gr.Image(label="prediction", interactive=False, elem_id="drawn")
                table = gr.Dataframe(
                    headers=list(COLUMNS[predictor.task]), label=TITLES[predictor.task],
                    interactive=False, elem_id="table",
                )  # fmt: skip
                file = gr.DownloadButton(
                    "download as COCO JSON", elem_id="download",
                    visible=predictor.task != "classification",
                )  # fmt: skip
        block = gr.Dropdown(names, value=names[-1], label="similarity maps of", elem_id="block")
        gr.Markdown(
            "One row per global context, one map per head: the context is added at red positions "
            "and subtracted at blue ones."
        )
        maps = gr.Image(show_label=False, interactive=False, elem_id="maps")
        inputs, outputs = [image, threshold], [drawn, table, file]
        shown = image.change(actions.show, inputs, outputs, api_name="predict", **ALONE)
        shown.then(actions.look, [image, block], maps, **ALONE)
        block.change(actions.look, [image, block], maps, **ALONE)
        threshold.change(actions.move, inputs, outputs, **ALONE, show_progress="hidden")
    return page.queue(max_size=MAX_WAITING, api_open=False)


def trim(folder: Path, quota: int) -> None:
    """Delete the oldest files below a folder until the others take no more bytes than the quota."""
    files = [(path.stat(), path) for path in folder.rglob("*") if path.is_file()]
    files.sort(key=lambda file: file[0].st_mtime, reverse=True)
    for total, (_, path) in zip(accumulate(s.st_size for s, _ in files), files, strict=True):
        if total > quota:
            path.unlink(missing_ok=True)


def guard(app: ASGIApp, uploads: Path) -> ASGIApp:
    """Let an app answer only its own page and local programs, and bound what is sent to it.

    A browser tells by `Origin` which page sends a request, and by `Host` under which name it knows
    this machine: a stranger may have made a name of his own lead here (DNS rebinding).
    """

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        headers, answer = Headers(scope=scope), app
        host, length = headers.get("host", ""), int(headers.get("content-length", 0))
        most = MAX_UPLOAD if scope["path"].endswith("/upload") else MAX_REQUEST
        is_own = headers.get("origin", f"http://{host}") == f"http://{host}"
        if not is_own or host.partition(":")[0] not in ("127.0.0.1", "localhost"):
            answer = PlainTextResponse("only this page's own requests are answered", 403)
        elif length > most or "transfer-encoding" in headers:
            answer = PlainTextResponse(f"more than {most} bytes, or of no stated length", 413)
        elif scope["method"] == "POST":
            # NOTE: not in a thread, where files would come and go meanwhile
            trim(uploads, QUOTA - length)
        return await answer(scope, receive, send)

    return guarded


def run(
    predictor: Predictor,
    title: str,
    port: int,
    ready: Callable[[str], None],
    scale: float = 1.0,
) -> None:
    """Serve the page of `build` to this machine alone until Ctrl-C; `ready` gets its address.

    Raises:
        ConfigError: the port is taken, or the model has no maps.
    """
    with tempfile.TemporaryDirectory() as folder:
        examples, uploads = Path(folder, "examples"), Path(folder, "uploads")
        examples.mkdir()
        gr.set_static_paths([examples])  # or they are copied to the uploads, and deleted with them
        # where Gradio keeps what is sent to it and what it shows, until the end at most
        os.environ["GRADIO_TEMP_DIR"] = str(uploads)
        uploads.mkdir()
        page = build(predictor, title, example_images(predictor, examples), scale)
        # fonts of the machine: Gradio's own come from another server
        theme = gr.themes.Default(font="sans-serif", font_mono="monospace")
        try:
            # no allowed_paths: Gradio would serve what lies there as it is, HTML as HTML
            _, address, _ = page.launch(
                server_name="127.0.0.1", server_port=port, share=False, quiet=True, theme=theme,
                max_file_size=MAX_UPLOAD, footer_links=[], ssr_mode=False,
                state_session_capacity=MAX_TABS, prevent_thread_lock=True,
            )  # fmt: skip
        except OSError as error:
            remedy = "name another one with --port"
            raise ConfigError(f"port {port} can't be used: {error}; {remedy}") from error
        # outside of all that Gradio adds itself, such as its headers for other origins
        stack = page.app.middleware_stack
        assert stack is not None  # it has started
        page.app.middleware_stack = guard(stack, uploads)
        ready(address)
        page.block_thread()
