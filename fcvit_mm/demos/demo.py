"""Generate data, train FCViT-tiny on them, and draw its predictions.

A config of the package is run as tools/train.py does, from random weights. What is drawn are the
predictions of the last evaluation, the ones that were measured, on held-out images.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.config import Config
from rich.console import Console

from ..analysis import logs
from ..datasets import coins, shapes
from ..utils.cli import writing
from ..utils.config import load_config
from ..utils.errors import ConfigError, DatasetError
from ..visualization.draw import build_visualizer
from .drawing import draw_grid, draw_row
from .training import Demo, Record, clock, move_data, run_quietly, say, shorten


def _generate_shapes(folder: Path, images: tuple[int, int] | None) -> bool:
    return shapes.generate(folder, *(images or ()))


def _generate_coins(folder: Path, images: tuple[int, int] | None) -> bool:
    if images is not None:
        raise DatasetError("the number of images is fixed with the data of coins: no --images")
    return coins.generate(folder)


DEMOS = {
    ("detection", "shapes"): Demo(
        "fcvit_mm::detection/mask_rcnn_fcvit_tiny_shapes.py",
        _generate_shapes,
        {"coco/bbox_mAP": "box mAP", "coco/segm_mAP": "mask mAP"},
    ),
    ("segmentation", "shapes"): Demo(
        "fcvit_mm::segmentation/semantic_fpn_fcvit_tiny_shapes.py",
        _generate_shapes,
        {"mIoU": "mIoU"},
        full=100.0,
    ),
    ("detection", "coins"): Demo(
        "fcvit_mm::detection/mask_rcnn_fcvit_tiny_coins.py",
        _generate_coins,
        {"coco/bbox_mAP_50": "box AP50", "coco/segm_mAP_50": "mask AP50"},
    ),
}
TASKS = tuple(dict.fromkeys(task for task, _ in DEMOS))
DATA = tuple(dict.fromkeys(data for _, data in DEMOS))


def run(
    task: str = "detection",
    data: str = "shapes",
    work_dir: str | None = None,
    data_root: str | None = None,
    seed: int = 0,
    iterations: int | None = None,
    images: tuple[int, int] | None = None,
) -> Record:
    """Generate the data, train, evaluate, draw, and say what came of it.

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
    with writing(f"--work-dir {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        # what an earlier run left must not pass for this one's
        for name in ("predictions", "curves", "row"):
            (folder / f"{name}.png").unlink(missing_ok=True)

    console = Console(file=sys.stdout)
    say(console, f"data: {data_folder}")
    with writing(data_folder):
        demo.generate(data_folder, images)
    device = "the GPU" if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    say(
        console,
        f"training {demo.config} on {device}, {cfg.train_cfg.max_iters} iterations; "
        f"log: {folder / 'output.txt'}",
    )
    record = Record(demo, console)
    runner = run_quietly(cfg, folder / "output.txt", record)
    for line in _draw(cfg, record, runner.val_dataloader.dataset.metainfo, folder, data):
        say(console, line)
    for line in _next_steps(cfg, (task, data), folder, data_root):
        say(console, line)
    return record


def _draw(cfg: Config, record: Record, metainfo: dict, folder: Path, data: str) -> Iterator[str]:
    """Draw what a training yields into its folder; return the lines that say so."""
    count = f"{len(record.predictions)} held-out {'tiles' if data == 'coins' else 'images'}"
    title = f"{Path(record.demo.config).stem}: {record.reached()} on {count}"
    visualizer = build_visualizer(cfg, metainfo)
    yield f"\n{record.reached()} on {count}, after {clock(record.seconds)} minutes of training"
    if data == "coins":
        data_folder = Path(cfg.val_dataloader.dataset.data_root)
        row = folder / "row.png"
        yield draw_row(row, visualizer, data_folder, record.predictions, title)
        yield f"  the row:     {row}"
    # the first ones, not the best
    draw_grid(folder / "predictions.png", visualizer, record.predictions[:8], title)
    log = logs.read_run(folder)
    keys = [key for key in ("loss", *record.demo.metrics) if key in log.all_keys()]
    logs.plot([log], keys, folder / "curves.png")
    yield f"  predictions: {folder / 'predictions.png'}"
    yield f"  curves:      {folder / 'curves.png'}"


def _next_steps(
    cfg: Config, key: tuple[str, str], folder: Path, data_root: str | None
) -> Iterator[str]:
    """Return the lines that name the weights, the command that tests them, and other demos."""
    weights = folder / f"iter_{cfg.train_cfg.max_iters}.pth"
    yield f"  weights:     {weights}\nnext:"
    options = f"--show-dir {folder / 'images'}"
    if data_root:  # the same images, wherever they lie
        options += f" --cfg-options test_dataloader.dataset.data_root={Path(data_root)}"
        if "ann_file" in cfg.test_evaluator:
            options += f" test_evaluator.ann_file={cfg.test_evaluator.ann_file}"
    python = os.path.relpath(sys.executable)
    yield f"  {python} -m fcvit_mm test {DEMOS[key].config} {weights} {options}"
    for task, data in (other for other in DEMOS if other != key):
        words = [f"TASK={task}"] if task != TASKS[0] else []
        words += [f"DATA={data}"] if data != DATA[0] else []
        yield "  " + " ".join(["make demo", *words])
