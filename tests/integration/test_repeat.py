"""The same training twice: with other loader workers, and in two processes in the place of one."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fcvit_mm.engine.seeding import RepeatableRunner
from helpers import ROOT, processes
from helpers.processes import losses, mean_losses
from helpers.trainings import METHODS, NO_WORKERS

pytestmark = pytest.mark.official


@pytest.mark.parametrize(
    "method", ["detection", pytest.param("segmentation", marks=pytest.mark.slow)]
)
def test_same_seed_same_losses(example_data, tmp_path, method):
    """With two loader workers, and with none."""
    config, options = METHODS[method]
    options = [*options, "train_cfg.max_iters=4", "train_cfg.val_begin=9"]
    two = [*options, "train_dataloader.num_workers=2", "train_dataloader.persistent_workers=True"]
    none = [*options, *NO_WORKERS]
    for name, words in {"two": two, "none": none}.items():
        processes.train(example_data, tmp_path / name, config, words)
    first = losses(tmp_path / "two")
    assert len(first) == 4
    assert losses(tmp_path / "none") == first
    processes.train(example_data, tmp_path / "other", config, [*none, "randomness.seed=4"])
    assert losses(tmp_path / "other")[1] != first[1]


class Draws:
    """A dataset of what the three generators draw for an item."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[float, ...]:
        return index, random.random(), np.random.rand(), torch.rand(1).item()


def test_other_epoch_other_augmentation():
    config = dict(dataset=Draws(), batch_size=2, sampler=dict(type="DefaultSampler"))
    loader: Any = RepeatableRunner.build_dataloader(config, seed=1)

    def epoch(number: int) -> dict[int, list[float]]:
        loader.sampler.set_epoch(number)
        items = [item for batch in loader for item in zip(*batch, strict=True)]
        return {int(index): [float(draw) for draw in draws] for index, *draws in items}

    first, second = epoch(0), epoch(1)
    assert sorted(first) == sorted(second) == [*range(6)]
    assert (
        len({draw for items in (first, second) for item in items.values() for draw in item}) == 36
    )
    assert epoch(0) == first


SHARER = """
import os, socket, sys
import torch.multiprocessing as multiprocessing
from multiprocessing.reduction import DupFd
from fcvit_mm.engine.seeding import exit_with_parent

def worker(pipe):
    exit_with_parent(os.getppid(), None, 0)
    pipe.send(DupFd(pipe.fileno()))
    pipe.recv()
    sys.excepthook(ValueError, ValueError("of its own"), None)

if __name__ == "__main__":
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=worker, args=[theirs])
    process.start()
    handed_out = ours.recv()
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as dropped:
            dropped.connect(handed_out._id[0])
    os.close(handed_out.detach())  # it serves one after the other
    ours.send("end")
    process.join()
"""


def test_a_worker_is_silent_when_its_batch_is_no_longer_taken(tmp_path):
    (tmp_path / "sharer.py").write_text(SHARER)
    result = subprocess.run(
        [sys.executable, str(tmp_path / "sharer.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (result.returncode, result.stderr) == (0, "ValueError: of its own\n")


# --------------------------------------------------------------- two processes in one's place

# What makes a half of a batch another thing than the half of a batch, and is left out: BatchNorm
# that computes statistics of a process's images (SyncBN needs GPUs), dropout, and of detection
# what is normalized or padded in each process by itself. DINO is normalized over all processes.
HALVES = {
    "detection": """
_base_ = ["{base}/models/dino_fcvit.py", "{base}/datasets/shapes_instance.py",
          "{base}/schedules/adamw_example.py", "{base}/runtime_detection_iter.py"]
model = dict(
    num_queries=20,
    backbone=dict(arch="tiny", layer_scale_init=0.1, init_cfg=None, norm_eval=True),
    neck=dict(in_channels=[64, 160, 320]),
    encoder=dict(num_layers=1),
    decoder=dict(num_layers=1),
    bbox_head=dict(num_classes=4),
    dn_cfg=dict(label_noise_scale=1e-9, box_noise_scale=1e-9,
                group_cfg=dict(dynamic=False, num_groups=2)),
)
train_dataloader = dict(dataset=dict(ann_file="annotations/one_object.json"))
val_cfg = val_dataloader = val_evaluator = None
""",
    "segmentation": """
_base_ = "{base}/../segmentation/semantic_fpn_fcvit_tiny_shapes.py"
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(norm_eval=True),
    decode_head=dict(
        norm_cfg=dict(_delete_=True, type="GN", num_groups=8, requires_grad=True), dropout_ratio=0.0
    ),
)
val_cfg = val_dataloader = val_evaluator = None
""",
}
COMMON = """
custom_imports = dict(imports=["fcvit_mm", "helpers.processes"])
custom_hooks = [dict(type="LossRecorder")]
randomness = dict(seed=5)
"""


@pytest.fixture(scope="module")
def one_object(example_data) -> None:
    """The detection data with one object per image: DINO pads to the most of a process's batch."""
    folder = example_data / "data/shapes/annotations"
    content = json.loads((folder / "instances_train.json").read_text())
    first = {note["image_id"]: note for note in reversed(content["annotations"])}
    content["annotations"] = [*first.values()]
    (folder / "one_object.json").write_text(json.dumps(content))


@pytest.mark.slow
@pytest.mark.usefixtures("one_object")
@pytest.mark.parametrize("method", HALVES)
def test_two_processes_with_half_the_batch_have_the_curve_of_one(example_data, tmp_path, method):
    """Images are flipped at random, and an image alike in either."""
    config = tmp_path / "config.py"
    config.write_text(HALVES[method].format(base=ROOT / "configs/_base_") + COMMON)
    curves = []
    for count in (1, 2):
        work_dir: Path = tmp_path / str(count)
        # small steps: with the schedule's own, a difference in rounding grows tenfold per iteration
        options = ["train_cfg.max_iters=6", f"train_dataloader.batch_size={4 // count}"]
        options += ["optim_wrapper.optimizer.lr=1e-4"]
        processes.train(example_data, work_dir, config, [*options, *NO_WORKERS], processes=count)
        curves.append(mean_losses(work_dir))
    whole, halves = curves
    assert len(whole) == 6 and len({record["loss"] for record in whole}) == 6
    worst = max(
        abs(ours[key] - theirs[key]) / abs(theirs[key])
        for ours, theirs in zip(halves, whole, strict=True)
        for key in theirs
    )
    print(f"{method}: {worst:.1e} of a loss at most, from", whole, halves)
    assert worst < 1e-4
