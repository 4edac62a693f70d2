"""Losses and gradients that are not finite: what is told, written and left of the weights."""

import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import MODELS, TRANSFORMS
from mmengine.runner import Runner
from torch import Tensor, nn

from fcvit_mm import NonFiniteError, engine
from fcvit_mm.utils.cli import run_tool
from fcvit_mm.utils.config import load_config
from helpers import ROOT
from helpers.models import make_smallest
from helpers.tools import free_port

FAULTS = ("nan", "constant", "gradient")


@MODELS.register_module()
class Toy(BaseModel):
    """Two losses of a normalized product; the image's name says what is wrong with it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.fc = nn.BatchNorm1d(2), nn.Linear(2, 1)

    def forward(self, inputs: list, data_samples: list, mode: str = "loss") -> dict[str, Tensor]:
        paths = [sample.img_path for sample in data_samples]
        x = torch.stack(inputs)
        if "nan.png" in paths:
            x = x * math.nan
        y = self.fc(self.norm(x))
        losses = dict(loss_square=(y - 1).square().mean(), loss_size=y.abs().mean(), acc=y.mean())
        if "constant.png" in paths:  # a term that no weight has a part in
            losses["loss_size"] = torch.tensor(math.inf)
        if "gradient.png" in paths:  # the square root's slope at 0
            losses["loss_size"] = (0 * y).sqrt().mean()
        if "large.png" in paths:
            losses["loss_size"] = 1e35 * losses["loss_size"]
        return losses


def batches(*names: str) -> list[dict[str, Any]]:
    """Two images a batch, the second of each with that name."""
    draw = torch.Generator().manual_seed(0)
    return [
        dict(
            inputs=torch.randn(2, generator=draw),
            data_samples=SimpleNamespace(img_path=path, img_id=i),
        )
        for i, name in enumerate(names)
        for path in (f"{i}.png", f"{name}.png")
    ]


class Newest:
    """The Runner that was last made, for where its training ends in an error."""

    runner: Runner


def train(
    work_dir: Path, data: list, max_skips: int = 0, processes: int = 1, **options: Any
) -> Runner:
    """Train the toy on batches in their order."""
    wrapper = dict(optimizer=dict(type="SGD", lr=0.1, momentum=0.9), **options.pop("wrapper", {}))
    runner = Runner(
        model=dict(type="Toy"),
        work_dir=str(work_dir),
        train_cfg=dict(by_epoch=False, max_iters=len(data) // 2 // processes),
        train_dataloader=dict(
            dataset=data,
            batch_size=2,
            num_workers=0,
            sampler=dict(type="DefaultSampler", shuffle=False),
            collate_fn=dict(type="pseudo_collate"),
        ),
        optim_wrapper=wrapper,
        default_hooks=dict(
            nonfinite=dict(type="NonFiniteLossHook", max_skips=max_skips),
            logger=dict(type="LoggerHook", interval=1),
            checkpoint=None,
        ),
        default_scope="mmengine",
        experiment_name=str(work_dir).replace(os.sep, "_"),
        **options,
    )
    Newest.runner = runner
    runner.train()
    return runner


def weights(runner: Runner) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in runner.model.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], but: str = "-") -> None:
    for name, value in one.items():
        assert value.equal(other[name]) or but in name, name


def written(work_dir: Path) -> dict[str, Any]:
    (path,) = work_dir.rglob("nonfinite_iter_*.json")
    return json.loads(path.read_text())


@pytest.mark.official
@pytest.mark.parametrize("fault", FAULTS)
def test_a_training_stops_before_the_weights_are_spoiled(tmp_path, fault):
    before = train(tmp_path / "before", batches("a", "b"))
    with pytest.raises(NonFiniteError) as error:
        train(tmp_path / "run", batches("a", "b", fault, "c"))
    message = str(error.value)
    words = {
        "nan": "loss_square is nan, loss_size is nan",
        "constant": "loss_size is inf",
        "gradient": "the losses are finite, but the gradient of norm.weight, norm.bias, fc.weight, "
        "fc.bias is not",
    }
    assert message.startswith(f"iteration 3: {words[fault]}") and "\n" not in message
    assert f"for the images 2.png, {fault}.png; written to {tmp_path}/run/" in message
    for parameter, expected in zip(
        Newest.runner.model.parameters(), before.model.parameters(), strict=True
    ):
        assert parameter.equal(expected)

    content = written(tmp_path / "run")
    (batch,) = content["batches"]
    assert content["iteration"] == batch["iteration"] == 3 and content["lr"]["lr"] == 0.1
    assert batch["images"][1] == {"img_path": f"{fault}.png", "img_id": 2}
    assert {"loss", "loss_square", "loss_size", "acc"} == set(batch["losses"])
    assert bool(content["non_finite_gradients"]) == (fault == "gradient")
    assert content["grad_norm"] == "nan"


@pytest.mark.official
@pytest.mark.parametrize("fault", FAULTS)
def test_steps_that_are_left_out_leave_no_trace(tmp_path, fault):
    """Weights, momentum and BatchNorm's statistics are those of a training without the batch."""
    data = batches("a", fault, "b", "c", "d", fault, "e")
    sound = [one for i, one in enumerate(data) if i // 2 not in (1, 5)]
    expected = train(tmp_path / "sound", sound)
    runner = train(tmp_path / "run", data, max_skips=2)
    assert_same(weights(expected), weights(runner))
    assert len([*(tmp_path / "run").rglob("nonfinite_iter_*.json")]) == 2
    log = next((tmp_path / "run").rglob("*.log")).read_text()
    assert "The step is left out, 1 of at most 2" in log and "2 of at most 2" in log
    # no mean of the log is nan
    assert "loss: " in log and "loss: nan" not in log and "loss: inf" not in log
    with pytest.raises(NonFiniteError, match=r"max_skips, now 1, is how many"):
        train(tmp_path / "fewer", data, max_skips=1)


@pytest.mark.official
def test_of_accumulated_batches_the_right_one_is_named(tmp_path):
    accumulate: dict[str, Any] = dict(wrapper=dict(accumulative_counts=2))
    data = batches("a", "b", "nan", "c", "d", "e")
    with pytest.raises(
        NonFiniteError, match=r"^iteration 3: loss_square is nan.* 2\.png, nan\.png;"
    ):
        train(tmp_path / "stop", data, **accumulate)
    (batch,) = written(tmp_path / "stop")["batches"]
    assert batch["iteration"] == 3
    expected = train(tmp_path / "sound", data[:4] + data[8:], **accumulate)
    runner = train(tmp_path / "run", data, max_skips=1, **accumulate)
    assert_same(weights(expected), weights(runner))


@pytest.mark.official
def test_an_overflow_of_mixed_precision_is_told_and_left_to_its_scaler(tmp_path, monkeypatch):
    """With the CPU's scaler; of a GPU MMEngine's wrapper asks nothing else."""
    monkeypatch.setattr(amp_optimizer_wrapper, "is_cuda_available", lambda: True)
    scaler = lambda **given: torch.amp.GradScaler("cpu", **given)  # noqa: E731
    monkeypatch.setattr(amp_optimizer_wrapper, "GradScaler", scaler)
    amp: dict[str, Any] = dict(wrapper=dict(type="AmpOptimWrapper"))
    runner = train(tmp_path / "run", batches("a", "large", "b"), **amp)
    assert isinstance(runner.optim_wrapper, AmpOptimWrapper)
    log = next((tmp_path / "run").rglob("*.log")).read_text()
    assert "iteration 2: mixed precision: the losses are finite" in log
    assert "overflows at a loss scale of 65536;" in log
    assert runner.optim_wrapper.loss_scaler.get_scale() == 32768
    assert not [*tmp_path.rglob("nonfinite_iter_*.json")]
    # neither a loss that is not finite nor a gradient at a scale that can't be lowered is overflow
    for fault, scale in ("nan", "dynamic"), ("gradient", 1.0):
        amp["wrapper"]["loss_scale"] = scale
        with pytest.raises(NonFiniteError, match=r"^iteration 2: .*; .*dtype=bfloat16"):
            train(tmp_path / fault, batches("a", fault, "b"), **amp)
    assert written(tmp_path / "nan")["loss_scale"] == 65536


def process(rank: int, port: int, work_dir: str) -> None:
    """One of two, of which the second has the image that is wrong in its second batch."""
    os.environ |= dict(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    torch.distributed.init_process_group("gloo")
    wrapper = dict(type="MMDistributedDataParallel", device_ids=None)
    shared: dict[str, Any] = dict(
        launcher="pytorch", processes=2, cfg=dict(model_wrapper_cfg=wrapper)
    )
    data = batches("a", "b", "nan", "c", "d", "e")
    runner = train(Path(work_dir, "skipped"), data, max_skips=1, **shared)
    try:
        train(Path(work_dir, "stopped"), data, **shared)
    except NonFiniteError as error:
        torch.save((weights(runner), str(error)), f"{work_dir}/{rank}.pth")
    torch.distributed.destroy_process_group()


@pytest.mark.official
def test_two_processes_decide_alike(tmp_path):
    torch.multiprocessing.start_processes(
        process, (free_port(), str(tmp_path)), nprocs=2, start_method="spawn"
    )
    (first, message), (second, other) = (torch.load(tmp_path / f"{i}.pth") for i in (0, 1))
    assert message == other
    assert message.startswith("iteration 2: loss_square is nan, loss_size is nan, for the images "
                              "nan.png, c.png; written to ")  # fmt: skip
    assert all(value.isfinite().all() for value in (*first.values(), *second.values()))
    assert_same(first, second, but="running")  # which each has of its own images
    (batch,) = written(tmp_path / "stopped")["batches"]
    assert batch["rank"] == 1


# ------------------------------------------------------------------------- real methods


@TRANSFORMS.register_module()
class NotANumber:
    """Makes one image of the example data NaN, which uint8 can't hold."""

    def __call__(self, results: dict) -> dict:
        if results["img_path"].endswith("00003.png"):
            results["img"] = np.full_like(results["img"], math.nan, np.float32)
        return results


# The beginning of the sentence, and the images of the batch.
METHODS = {
    "detection/mask_rcnn_fcvit_tiny_shapes.py": ("iteration 2: loss_", ["00002", "00003"]),
    "segmentation/semantic_fpn_fcvit_tiny_shapes.py": (
        "iteration 2: decode.loss_ce is nan, for the images ",
        ["00002", "00003"],
    ),
    "classification/fcvit_tiny_shapes.py": (
        "iteration 1: loss is nan, for the images ",
        ["00003", "00004"],
    ),
}
SMALL = {
    "train_cfg.max_iters": 4,
    "train_dataloader.batch_size": 2,
    "train_dataloader.num_workers": 0,
    "train_dataloader.persistent_workers": False,
    "train_dataloader.sampler": dict(type="DefaultSampler", shuffle=False),
    "val_cfg": None,
    "val_dataloader": None,
    "val_evaluator": None,
}


@pytest.mark.official
@pytest.mark.parametrize("name", METHODS)
def test_every_task_of_openmmlab_names_loss_and_images(
    example_data, tmp_path, monkeypatch, capsys, recwarn, name
):
    monkeypatch.chdir(example_data)
    cfg = load_config(str(ROOT / "configs" / name), SMALL, str(tmp_path))
    make_smallest(cfg.model)
    cfg.train_dataloader.dataset.pipeline.insert(1, dict(type="NotANumber"))
    assert run_tool(lambda _: engine.train(cfg)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    # MMEngine's schedulers miss their mark on an optimizer's step that somebody has replaced
    assert not [one for one in recwarn if "has been overridden" in str(one.message)]
    beginning, wanted = METHODS[name]
    assert line.startswith(f"error: {beginning}")
    images = [image["img_path"] for image in written(tmp_path)["batches"][0]["images"]]
    assert ", ".join(images) in line
    assert [Path(image).stem for image in images] == wanted
