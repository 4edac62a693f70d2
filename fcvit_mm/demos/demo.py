"""Generate data, train FCViT-tiny on them, and draw its predictions on held-out images."""

from pathlib import Path

from ..analysis import logs
from ..apis.model import with_palette
from ..datasets import coins, shapes
from ..utils.cli import writing
from ..utils.config import load_config
from ..utils.errors import ConfigError, DatasetError
from ..utils.files import make_folder
from .drawing import draw_grid, draw_row
from .training import Demo, evaluations, move_data, predict, run_training, shorten


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
) -> None:
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
        make_folder(folder)
    print("1. data", flush=True)
    with writing(data_folder):
        demo.generate(data_folder, images)

    print("2. training, some minutes on two CPU cores", flush=True)
    runner = run_training(cfg)
    dataset = runner.val_dataloader.dataset
    _, metrics = evaluations(folder, demo)[-1]
    reached = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
    reached += f" on {len(dataset)} held-out {'tiles' if data == 'coins' else 'images'}"
    print(f"\n{reached}\n\n3. predictions", flush=True)
    meta = with_palette(tuple(dataset.metainfo["classes"]), dataset.metainfo.get("palette"))
    title = f"{Path(demo.config).stem}: {reached}"
    if data == "coins":
        (row,) = predict(runner, [coins.row_item(dataset, data_folder)])
        print(draw_row(folder / "row.png", meta, row, title))
        print(f"  the row:     {folder / 'row.png'}")
    # the first ones, not the best
    predictions = predict(runner, (dataset[i] for i in range(min(8, len(dataset)))))
    draw_grid(folder / "predictions.png", meta, predictions, title)
    logs.plot([logs.read_run(folder)], ["loss", *demo.metrics], folder / "curves.png")
    print(f"  predictions: {folder / 'predictions.png'}\n  curves:      {folder / 'curves.png'}")
    print(f"\nto try it on other images, in the browser: fcvit app {folder} --scale 4")
