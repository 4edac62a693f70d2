"""The demonstration: data are generated, FCViT-tiny is trained on them, its predictions are drawn.

It runs a config of the package as tools/train.py does, from random weights, with a progress display
in the place of MMEngine's log lines, which go to a file. What is drawn are the predictions of the
last evaluation, the ones that were measured, on held-out images.
"""

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from torchvision.ops import nms

from .. import engine
from ..datasets import coins, shapes
from ..engine.preflight import check_files
from ..utils.config import load_config
from ..utils.errors import ConfigError, DatasetError

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.patches import Patch, Rectangle  # noqa: E402

Array = np.ndarray
# Of predictions, to be drawn and to be counted.
MIN_SCORE = 0.5


@dataclass(frozen=True)
class Demo:
    """What belongs to one demonstration.

    generate: writes the dataset into a folder, (folder, (train, val) numbers of images or None
        for the usual ones). metrics: MMEngine's names of the figures and ours; the best is 1 after
        division by `full`.
    """

    config: str
    generate: Callable[[Path, tuple[int, int] | None], bool]
    metrics: dict[str, str]
    classes: Sequence[str]
    palette: Sequence[tuple[int, int, int]]
    full: float = 1.0


def _generate_shapes(folder: Path, images: tuple[int, int] | None) -> bool:
    return shapes.generate(folder, *(images or ()))


def _generate_coins(folder: Path, images: tuple[int, int] | None) -> bool:
    if images is not None:
        raise DatasetError("the number of images is fixed with the data of coins")
    return coins.generate(folder)


DEMOS = {
    ("detection", "shapes"): Demo(
        "fcvit_mm::detection/mask_rcnn_fcvit_tiny_shapes.py",
        _generate_shapes,
        {"coco/bbox_mAP": "box mAP", "coco/segm_mAP": "mask mAP"},
        shapes.CLASSES,
        shapes.PALETTE,
    ),
    ("segmentation", "shapes"): Demo(
        "fcvit_mm::segmentation/semantic_fpn_fcvit_tiny_shapes.py",
        _generate_shapes,
        {"mIoU": "mIoU"},
        shapes.SEMANTIC_CLASSES,
        shapes.SEMANTIC_PALETTE,
        full=100.0,
    ),
    ("detection", "coins"): Demo(
        "fcvit_mm::detection/mask_rcnn_fcvit_tiny_coins.py",
        _generate_coins,
        {"coco/bbox_mAP_50": "box AP50", "coco/segm_mAP_50": "mask AP50"},
        coins.CLASSES,
        coins.PALETTE,
    ),
}
TASKS = tuple(dict.fromkeys(task for task, _ in DEMOS))
DATA = tuple(dict.fromkeys(data for _, data in DEMOS))


# ------------------------------------------------------------------------------- the config


def shorten(cfg: Config, iterations: int) -> None:
    """Set the number of iterations in place; schedule and evaluations keep their proportions."""
    share = iterations / cfg.train_cfg.max_iters
    for scheduler in cfg.param_scheduler:
        for key in ("begin", "end"):
            scheduler[key] = math.ceil(scheduler[key] * share)
    cfg.param_scheduler = [s for s in cfg.param_scheduler if s.begin < s.end]
    interval = max(1, round(cfg.train_cfg.val_interval * share))
    cfg.train_cfg.update(max_iters=iterations, val_interval=interval)
    cfg.default_hooks.checkpoint.interval = interval


def move_data(cfg: Config, folder: Path) -> None:
    """Let every loader and evaluator of a config read the dataset in `folder`, in place."""
    for split in ("train", "val", "test"):
        cfg[f"{split}_dataloader"].dataset.data_root = str(folder)
    for split in ("val", "test"):
        evaluator = cfg[f"{split}_evaluator"]
        if "ann_file" in evaluator:
            evaluator.ann_file = str(folder / cfg[f"{split}_dataloader"].dataset.ann_file)


# ----------------------------------------------------------------------- what happens meanwhile


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


@dataclass
class Record(Hook):
    """Keeps what a run yields, and shows how far it is: a bar on a terminal, else a line at times.

    losses: one an iteration. figures: (iteration, metrics) of each evaluation. predictions: data
    samples of the last one. seconds: of training, evaluations left out.
    """

    demo: Demo
    console: Console
    losses: list[float] = field(default_factory=list)
    figures: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    predictions: list[Any] = field(default_factory=list)
    seconds: float = 0.0

    # after the other hooks, so that what they do is in the time
    priority = "LOWEST"

    def before_train(self, runner: Runner) -> None:
        self._progress = Progress(
            TextColumn("{task.description:10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[news]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
            disable=not self.console.is_terminal,
            # MMEngine's log lines are to stay where they were sent
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._progress.add_task("training", total=runner.max_iters, news="")
        self._progress.start()
        self._since = time.monotonic()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self.losses.append(float(outputs["loss"]))
        done, total = len(self.losses), runner.max_iters
        recent = float(np.mean(self.losses[-10:]))
        self._progress.update(self._task, completed=done, news=f"loss {recent:.2f}")
        if not self.console.is_terminal and (done % max(total // 20, 1) == 0 or done == total):
            spent = self.seconds + time.monotonic() - self._since
            say(
                self.console,
                f"iteration {done} of {total}, loss {recent:.2f}, "
                f"{_clock(spent * (total - done) / done)} left",
            )

    def before_val(self, runner: Runner) -> None:
        self.seconds += time.monotonic() - self._since
        self.predictions = []
        self._progress.update(self._task, description="evaluating")

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self.predictions += [sample.cpu() for sample in outputs]

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        ours = {
            name: max(float((metrics or {})[key]), 0.0) / self.demo.full
            for key, name in self.demo.metrics.items()
        }
        self.figures.append((len(self.losses), ours))
        figures = ", ".join(f"{name} {value:.3f}" for name, value in ours.items())
        say(self.console, f"after {len(self.losses)} iterations: {figures}")

    def after_val(self, runner: Runner) -> None:
        self._progress.update(self._task, description="training")
        self._since = time.monotonic()

    def after_train(self, runner: Runner) -> None:
        self.seconds += time.monotonic() - self._since
        self.close()

    def close(self) -> None:
        """Leaves the terminal as it was, after an error as well."""
        if hasattr(self, "_progress"):
            self._progress.stop()


def say(console: Console, text: str) -> None:
    """Prints plain text; a path is never broken in two."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Sends what libraries print to a file; what is raised still reaches the caller."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("w") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        yield


def run_quietly(cfg: Config, output: Path, record: Record, *hooks: Hook) -> None:
    """Train by a config, with further hooks, sending what libraries print to the file `output`.

    Raises:
        fcvit_mm.utils.errors.ConfigError: data are missing, or something can't be built.
    """
    try:
        with _output_to(output):
            check_files(cfg, ("train_dataloader", "val_dataloader"))
            runner = engine.build_runner(cfg)
            for hook in (record, *hooks):
                runner.register_hook(hook)
            with engine.naming_dead_workers():
                runner.train()
    finally:
        record.close()


# --------------------------------------------------------------------------------- images


@dataclass(frozen=True)
class Objects:
    """boxes: (N, 4), left, top, right, bottom; masks: (N, H, W), bool; labels: (N,); scores: (N,)
    or None for the truth."""

    boxes: Array
    masks: Array
    labels: Array
    scores: Array | None = None


def truth_of(sample: Any) -> Objects:
    """The truth in a data sample of MMDetection."""
    found = sample.gt_instances
    return Objects(_boxes(found.bboxes), found.masks.to_ndarray() > 0, found.labels.numpy())


def predictions_of(sample: Any) -> Objects:
    """The predictions in a data sample of MMDetection of at least `MIN_SCORE`, best first."""
    found = sample.pred_instances
    found = found[found.scores >= MIN_SCORE]
    return Objects(
        _boxes(found.bboxes), found.masks.numpy(), found.labels.numpy(), found.scores.numpy()
    )


def _boxes(boxes: Any) -> Array:
    # ground truth may come as MMDetection's HorizontalBoxes
    return getattr(boxes, "tensor", boxes).numpy()


def _image_of(path: str | Path) -> Array:
    image = cv2.imread(str(path))
    if image is None:
        raise OSError(f"cannot read the image {path}")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _draw_objects(axes: Axes, image: Array, objects: Objects, demo: Demo) -> None:
    axes.imshow(image)
    # the best in front
    for i in reversed(range(len(objects.boxes))):
        color = np.array(demo.palette[objects.labels[i]]) / 255
        mask = objects.masks[i]
        axes.imshow(np.concatenate([np.broadcast_to(color, (*mask.shape, 3)),
                                    0.35 * mask[..., None]], axis=2))  # fmt: skip
        if mask.any():
            axes.contour(mask, [0.5], colors=[color], linewidths=1.2)
        left, top, right, bottom = objects.boxes[i]
        axes.add_patch(
            Rectangle(
                (left - 0.5, top - 0.5),
                right - left,
                bottom - top,
                fill=False,
                edgecolor=color,
                linewidth=0.8,
            )  # fmt: skip
        )
        name = demo.classes[objects.labels[i]]
        if objects.scores is not None:
            name = f"{name} {objects.scores[i]:.2f}"
        axes.text(
            left, max(top, 5), name, fontsize=6, color="white", va="bottom", clip_on=True,
            bbox=dict(facecolor=color * 0.7, edgecolor="none", pad=0.6, alpha=0.85),
        )  # fmt: skip
    axes.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))


def draw_grid(path: Path, demo: Demo, samples: Sequence[Any], title: str) -> None:
    """Draws the truth beside the predictions for data samples of MMDetection or MMSegmentation."""
    semantic = "pred_sem_seg" in samples[0]
    heads = ("image", "truth", "prediction") if semantic else ("truth", "prediction")
    pairs = 2 if len(samples) > 1 else 1
    rows = math.ceil(len(samples) / pairs)
    height, width = _image_of(samples[0].img_path).shape[:2]
    figure, grid = pyplot.subplots(
        rows,
        pairs * len(heads),
        figsize=(2.4 * pairs * len(heads), 2.4 * rows * height / width + 0.9),
        squeeze=False,
        layout="constrained",
    )
    for axes in grid.flat:
        axes.axis("off")
    for i, sample in enumerate(samples):
        row, first = divmod(i, pairs)
        places = grid[row, first * len(heads) : (first + 1) * len(heads)]
        image = _image_of(sample.img_path)
        for axes, head in zip(places, heads, strict=True):
            if row == 0:
                axes.set_title(head, fontsize=10)
        if semantic:
            palette = np.array(demo.palette, np.uint8)
            places[0].imshow(image)
            places[1].imshow(palette[sample.gt_sem_seg.data[0].numpy()])
            places[2].imshow(palette[sample.pred_sem_seg.data[0].numpy()])
        else:
            _draw_objects(places[0], image, truth_of(sample), demo)
            _draw_objects(places[1], image, predictions_of(sample), demo)
    figure.suptitle(title, fontsize=12)
    names = [
        Patch(color="#" + bytes(color).hex(), label=name)
        for name, color in zip(demo.classes, demo.palette, strict=True)
    ]
    figure.legend(handles=names, loc="outside lower center", ncols=len(names), fontsize=9)
    save_figure(figure, path)


def draw_curves(path: Path, record: Record, title: str) -> None:
    """Plots the loss of every iteration and the figures of every evaluation."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    iterations = np.arange(1, len(record.losses) + 1)
    width = min(15, len(record.losses))
    # a mean over fewer at both ends
    weights = np.convolve(np.ones(len(record.losses)), np.ones(width), "same")
    smooth = np.convolve(record.losses, np.ones(width), "same") / weights
    left.plot(iterations, record.losses, color="#9bb7d4", linewidth=0.8, label="each iteration")
    left.plot(iterations, smooth, color="#1f4e79", label=f"mean of {width}")
    left.set(xlabel="iteration", ylabel="loss", ylim=(0, None))
    left.legend(frameon=False)
    for name, color in zip(record.demo.metrics.values(), ("#c0392b", "#27ae60"), strict=False):
        right.plot(
            [iteration for iteration, _ in record.figures],
            [figures[name] for _, figures in record.figures],
            marker="o", color=color, label=name,
        )  # fmt: skip
    right.set(xlabel="iteration", ylabel="on held-out images", ylim=(0, 1))
    right.legend(frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=12)
    save_figure(figure, path)


def save_figure(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def stitch(samples: Sequence[Any], region: coins.Box, of: Callable[[Any], Objects]) -> Objects:
    """Objects of overlapping tiles as objects of the region that the tiles were cut from.

    What touches a side of its tile inside the region is cut off there and left out: the coin lies
    whole in another tile. Of boxes that overlap by more than an IoU of 0.5 the best stays.

    Args:
        samples: data samples of MMDetection; their files' names say where the tiles lie.
        region: (left, top, right, bottom) in the image.
        of: what to take from a sample, `truth_of` or `predictions_of`.
    """
    left, top, right, bottom = region
    boxes, masks, labels, scores = [], [], [], []
    for sample in samples:
        x, y = (int(number) for number in Path(sample.img_path).stem.split("-"))
        height, width = sample.ori_shape
        found = of(sample)
        shifted = found.boxes + np.array([x - left, y - top, x - left, y - top])
        # a box may end half a pixel before the side that cuts its object
        inner = (x - left + 1, y - top + 1, x - left + width - 1, y - top + height - 1)
        limits = (
            inner[0] if x > left else -np.inf,
            inner[1] if y > top else -np.inf,
            inner[2] if x + width < right else np.inf,
            inner[3] if y + height < bottom else np.inf,
        )
        whole = (shifted[:, :2] >= limits[:2]).all(1) & (shifted[:, 2:] <= limits[2:]).all(1)
        for i in np.flatnonzero(whole):
            mask = np.zeros((bottom - top, right - left), bool)
            mask[y - top : y - top + height, x - left : x - left + width] = found.masks[i]
            boxes.append(shifted[i])
            masks.append(mask)
            labels.append(found.labels[i])
            scores.append(1.0 if found.scores is None else found.scores[i])
    best = nms(
        torch.tensor(np.array(boxes, np.float32).reshape(-1, 4)),
        torch.tensor(np.array(scores, np.float32)),
        iou_threshold=0.5,
    ).tolist()
    return Objects(
        np.array([boxes[i] for i in best]).reshape(-1, 4),
        np.array([masks[i] for i in best], bool).reshape(-1, bottom - top, right - left),
        np.array([labels[i] for i in best], int),
        None if of is truth_of else np.array([scores[i] for i in best]),
    )


def count_found(truth: Objects, predicted: Objects) -> int:
    """How many objects have a mask with an IoU of at least 0.5 among the predictions."""
    found = 0
    for mask in truth.masks:
        shared = (predicted.masks & mask).sum((1, 2))
        joint = (predicted.masks | mask).sum((1, 2))
        found += bool((shared >= 0.5 * joint).any())
    return found


def draw_row(path: Path, demo: Demo, data: Path, samples: Sequence[Any], title: str) -> str:
    """Draws the lowest row of coins with truth and predictions; returns a line of counts."""
    region = coins.regions(coins.label(coins.photograph()))["test"]
    truth, predicted = stitch(samples, region, truth_of), stitch(samples, region, predictions_of)
    image = _image_of(data / "row.png")
    figure, grid = pyplot.subplots(3, 1, figsize=(9, 6.6), layout="constrained")
    nothing = Objects(np.zeros((0, 4)), np.zeros((0, *image.shape[:2]), bool), np.zeros(0, int))
    heads = ("image", "truth", "prediction")
    for axes, head, objects in zip(grid, heads, (nothing, truth, predicted), strict=True):
        _draw_objects(axes, image, objects, demo)
        axes.set_title(head, fontsize=10)
        axes.axis("off")
    figure.suptitle(title, fontsize=12)
    save_figure(figure, path)
    found = count_found(truth, predicted)
    return (
        f"{found} of {len(truth.boxes)} coins of the lowest row found, "
        f"{len(predicted.boxes) - found} other detections"
    )


# ------------------------------------------------------------------------------ the whole


def run(
    task: str = "detection",
    data: str = "shapes",
    work_dir: str | None = None,
    data_root: str | None = None,
    seed: int = 0,
    iterations: int | None = None,
    images: tuple[int, int] | None = None,
) -> Record:
    """Generates the data, trains, evaluates, draws, and says what came of it.

    Args:
        task, data: a key of `DEMOS`.
        work_dir: log, checkpoints and images (default: work_dirs/demo_TASK_DATA).
        data_root: folder of the dataset (default: the config's).
        seed: of the training; the data stay the same.
        iterations: instead of the config's.
        images: numbers to train on and to test with, instead of the usual ones.

    Raises:
        fcvit_mm.utils.errors.ConfigError: no such demonstration, or the data can't be made there.
    """
    if (task, data) not in DEMOS:
        pairs = ", ".join(f"--task {t} --data {d}" for t, d in DEMOS)
        raise ConfigError(f"there is no demonstration of {task} with {data}; there are: {pairs}")
    demo = DEMOS[task, data]
    folder = Path(work_dir or f"work_dirs/demo_{task}_{data}")
    cfg = load_config(demo.config, {"randomness.seed": seed}, str(folder))
    data_folder = Path(data_root or cfg.train_dataloader.dataset.data_root)
    move_data(cfg, data_folder)
    if iterations is not None:
        shorten(cfg, iterations)
    products = {name: folder / f"{name}.png" for name in ("predictions", "curves", "row")}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # what an earlier run left must not pass for this one's
        for path in products.values():
            path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"--work-dir {folder} can't be used: {error}") from error

    console = Console(file=sys.stdout)
    say(console, f"data: {data_folder}")
    try:
        demo.generate(data_folder, images)
    except (DatasetError, OSError) as error:
        raise ConfigError(str(error)) from error
    device = "the GPU" if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    say(
        console,
        f"training {demo.config} on {device}, {cfg.train_cfg.max_iters} iterations; "
        f"log: {folder / 'output.txt'}",
    )
    record = Record(demo, console)
    run_quietly(cfg, folder / "output.txt", record)

    figures = ", ".join(f"{name} {value:.3f}" for name, value in record.figures[-1][1].items())
    count = f"{len(record.predictions)} held-out {'tiles' if data == 'coins' else 'images'}"
    title = f"{Path(demo.config).stem}: {figures} on {count}"
    # the first ones, not the best
    draw_grid(products["predictions"], demo, record.predictions[:8], title)
    draw_curves(products["curves"], record, title)
    python = os.path.relpath(sys.executable)
    # the same images, wherever they lie
    options = ""
    if data_root:
        options = f" --cfg-options test_dataloader.dataset.data_root={data_folder}"
        if "ann_file" in cfg.test_evaluator:
            options += f" test_evaluator.ann_file={cfg.test_evaluator.ann_file}"
    lines = [
        "",
        f"{figures} on {count}, after {_clock(record.seconds)} minutes of training",
    ]
    if data == "coins":
        counts = draw_row(products["row"], demo, data_folder, record.predictions, title)
        lines += [counts, f"  the row:     {products['row']}"]
    lines += [
        f"  predictions: {products['predictions']}",
        f"  curves:      {products['curves']}",
        f"  weights:     {folder / f'iter_{len(record.losses)}.pth'}",
        "next:",
        f"  {python} -m fcvit_mm test {demo.config} {folder / f'iter_{len(record.losses)}.pth'}"
        f" --show-dir {folder / 'images'}{options}",
    ]
    for other_task, other_data in DEMOS:
        if (other_task, other_data) != (task, data):
            words = [f"TASK={other_task}"] if other_task != TASKS[0] else []
            words += [f"DATA={other_data}"] if other_data != DATA[0] else []
            lines.append("  " + " ".join(["make demo", *words]))
    say(console, "\n".join(lines))
    return record
