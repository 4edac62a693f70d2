"""Averaged weights (EMA) and mixed precision, by config."""

import copy
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import HOOKS, MODELS, init_default_scope
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from fcvit_mm import engine, read_checkpoint
from fcvit_mm.checkpoint import torch_file
from fcvit_mm.utils.config import adapt, load_config
from fcvit_mm.utils.options import enable_tta
from fcvit_mm.utils.work_dir import find
from helpers import ROOT
from helpers.models import make_smallest

pytestmark = pytest.mark.official
EMA = str(ROOT / "configs/segmentation/semantic_fpn_fcvit_tiny_ema_shapes.py")
# An evaluation and a checkpoint after the second iteration and the fourth.
SHORT = {
    "train_cfg.max_iters": 4,
    "train_cfg.val_interval": 2,
    "default_hooks.checkpoint.interval": 2,
    "default_hooks.checkpoint.save_best": None,
    "train_dataloader.batch_size": 2,
    "model.data_preprocessor.size": (64, 64),
    **{
        f"{task}_dataloader.{key}": value
        for task in ("train", "val", "test")
        for key, value in {"num_workers": 0, "persistent_workers": False}.items()
    },
}
Weights = dict[str, Tensor]


def weights_of(model: nn.Module) -> Weights:
    return {name.removeprefix("module."): v.clone() for name, v in model.state_dict().items()}


@HOOKS.register_module()
class Recorder(Hook):
    """Keeps the weights: at the start, after each iteration, and as each evaluation sees them."""

    priority = "VERY_LOW"
    newest: "Recorder"

    def __init__(self) -> None:
        Recorder.newest = self
        self.start: Weights = {}
        self.trained: list[Weights] = []
        self.evaluated: list[Weights] = []

    def before_train(self, runner: Runner) -> None:
        self.start = weights_of(runner.model)

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        self.trained.append(weights_of(runner.model))

    def before_val_iter(self, runner: Runner, *args, **kwargs) -> None:
        self.evaluated.append(weights_of(runner.model))

    before_test_iter = before_val_iter


def moving_average(trained: list[Weights], momentum: float, start: Weights | None = None):
    """The plain formula in double precision; counters keep their first value."""
    start, *trained = [start, *trained] if start else trained
    average = {name: value.double() for name, value in start.items()}
    for weights in trained:
        for name, value in weights.items():
            if value.is_floating_point():
                average[name] = (1 - momentum) * average[name] + momentum * value.double()
    return average


def assert_same(actual: Weights, expected: Weights) -> None:
    actual, expected = ({k: v.double() for k, v in w.items()} for w in (actual, expected))
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-8)


def differ(one: Weights, other: Weights) -> bool:
    return any(not torch.allclose(value.double(), other[key]) for key, value in one.items())


def ema_config(work_dir, **options) -> Config:
    cfg = load_config(EMA, SHORT | options, work_dir=str(work_dir))
    cfg.custom_hooks.append(dict(type="Recorder"))
    return cfg


def test_ema(example_data, monkeypatch, tmp_path):
    """Training, resuming and testing have the average that a plain loop computes."""
    monkeypatch.chdir(example_data)
    # MMEngine formats the config for every log and checkpoint, which takes most of the time
    monkeypatch.setattr(Config, "pretty_text", "")
    runner = engine.train(ema_config(tmp_path))
    seen = Recorder.newest
    momentum = runner.cfg.custom_hooks[0].momentum
    averages = {i: moving_average(seen.trained[:i], momentum) for i in (2, 4)}
    assert differ(seen.trained[3], averages[4])
    for i, evaluated in ((2, seen.evaluated[0]), (4, seen.evaluated[-1])):
        saved = read_checkpoint(tmp_path / f"iter_{i}.pth")
        assert_same(saved["state_dict"], averages[i])
        assert_same(evaluated, averages[i])

    newest = str(tmp_path / "iter_4.pth")
    metrics = engine.test(ema_config(tmp_path / "test", load_from=newest))
    assert_same(Recorder.newest.evaluated[0], averages[4])
    assert metrics["mIoU"] == runner.message_hub.get_scalar("val/mIoU").current()
    augmented = ema_config(tmp_path / "test", load_from=newest)
    enable_tta(augmented)
    engine.test(augmented)
    assert_same(Recorder.newest.evaluated[0], averages[4])

    engine.train(
        ema_config(tmp_path / "resumed", load_from=str(tmp_path / "iter_2.pth"), resume=True)
    )
    again = Recorder.newest
    assert len(again.trained) == 2
    assert_same(again.start, seen.trained[1])
    saved = read_checkpoint(tmp_path / "resumed/iter_4.pth")
    assert_same(saved["state_dict"], moving_average(again.trained, momentum, averages[2]))


def test_a_checkpoint_is_read_once_and_the_last_line_tests_it(example_data, tmp_path, monkeypatch):
    """On resume, as `load_from` and in a test; the log is as short as --verbose is not."""
    monkeypatch.chdir(example_data)
    read, load = [], torch_file.read

    def counted(path, *args, **kwargs):
        read.append(path)
        return load(path, *args, **kwargs)

    monkeypatch.setattr(torch_file, "read", counted)

    def config(folder: str, **options) -> Config:
        options = {"default_hooks.checkpoint.save_best": "mIoU", "train_cfg.max_iters": 2} | options
        cfg = load_config(EMA, SHORT | options, str(tmp_path / folder))
        make_smallest(cfg.model)
        return cfg

    runner = engine.train(config("run"))
    assert read == []
    log = Path(runner.log_dir, f"{runner.timestamp}.log").read_text()
    best = tmp_path / "run/best_mIoU_iter_2.pth"
    said, _, command = log.splitlines()[-1].partition("; to test it: fcvit test ")
    assert re.search(rf"best checkpoint: {best} \(mIoU [\d.]+\)$", said)
    assert command == str(tmp_path / "run")
    tested = load_config(command)
    tested.load_from = str(find(command)[1])
    assert engine.test(tested)["mIoU"] == runner.message_hub.get_scalar("val/mIoU").current()
    assert [path.name for path in read] == ["best_mIoU_iter_2.pth"]
    for options in (
        {"resume": True, "train_cfg.max_iters": 4},
        {"load_from": str(tmp_path / "run/iter_2.pth")},
    ):
        read.clear()
        engine.train(config("run" if "resume" in options else "other", **options))
        assert len(read) == 1


def test_the_console_has_a_few_lines_of_what_the_log_has(
    example_data, tmp_path, monkeypatch, capsys
):
    import mmseg.apis  # noqa: F401  what its import prints is no part of the run

    monkeypatch.chdir(example_data)
    lengths = {}
    for verbose in (False, True):
        cfg = load_config(EMA, SHORT, str(tmp_path / str(verbose)), verbose=verbose)
        make_smallest(cfg.model)
        cfg.experiment_name = f"verbose {verbose}"  # or it may be the other's, by the second
        capsys.readouterr()
        runner = engine.build_runner(cfg)
        said = capsys.readouterr().out
        assert "model: EncoderDecoder, 0." in said and "data: 8 training images" in said
        assert ("optim_wrapper=dict(" in said) == ("System environment" in said) == verbose
        log = Path(runner.log_dir, f"{runner.timestamp}.log").read_text()
        assert "optim_wrapper=dict(" in log and "System environment" in log
        lengths[verbose] = said.count("\n")
    assert lengths[False] <= 12 and lengths[True] > 100, lengths


def test_ema_comes_before_the_synchronisation_of_buffers(tmp_path):
    """Otherwise each GPU would evaluate averages of its own statistics."""
    names = [type(hook).__name__ for hook in Runner.from_cfg(ema_config(tmp_path)).hooks]
    assert names.index("EMAHook") < names.index("SyncBuffersHook")


def test_a_step_in_mixed_precision(monkeypatch):
    """Under autocast to bfloat16, as a CPU has it, losses are near those of single precision."""
    torch.manual_seed(0)
    cfg = load_config(EMA)
    adapt(cfg)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    model.init_weights()
    inputs = [torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8) for _ in range(2)]
    labels = [torch.randint(0, 5, (1, 64, 64)) for _ in range(2)]
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]
    data = model.data_preprocessor(dict(inputs=inputs, data_samples=samples), training=True)
    expected = copy.deepcopy(model).loss(**data)["decode.loss_ce"]

    # of a GPU it asks nothing else
    monkeypatch.setattr(amp_optimizer_wrapper, "is_cuda_available", lambda: True)
    dtypes = []
    model.backbone.network[0][0].token_mixer.dw1.register_forward_hook(
        lambda module, inputs, output: dtypes.append(output.dtype)
    )
    wrapper = AmpOptimWrapper(
        dtype="bfloat16",
        loss_scale=1.0,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0),
    )
    before = [parameter.detach().clone() for parameter in model.parameters()]
    losses = model.train_step(dict(inputs=inputs, data_samples=samples), wrapper)
    assert dtypes == [torch.bfloat16]
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=0.01)
    for old, new in zip(before, model.parameters(), strict=True):
        assert new.dtype == torch.float32
        assert new.isfinite().all() and not new.equal(old)
