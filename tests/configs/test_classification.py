"""ImageNet with MMPretrain: recipe, released weights with their head, training, the tools."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS, TRANSFORMS, init_default_scope
from mmengine.runner import Runner
from PIL import Image
from torch import nn

from fcvit_mm import CheckpointError, engine
from fcvit_mm.engine.preflight import check_files
from fcvit_mm.utils.config import load_config
from fcvit_mm.utils.errors import ConfigError
from helpers import ROOT, processes
from helpers.configs import differences
from helpers.released import assert_golden, golden_input, imagenet_state_dict, timm_checkpoint
from helpers.tools import assert_sentence

CONFIGS = ROOT / "configs/classification"
ARCHS = ("tiny", "s12", "s24", "s48")
EXAMPLE = CONFIGS / "fcvit_tiny_shapes.py"


def config(arch: str) -> Path:
    return CONFIGS / f"fcvit_{arch}_in1k.py"


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory) -> Path:
    """A folder as ImageNet's, of a thousand classes, nearly all of them empty."""
    root = tmp_path_factory.mktemp("imagenet")
    rng = np.random.default_rng(0)
    for split, (width, height) in {"train": (250, 200), "val": (300, 500)}.items():
        for label in range(1000):
            (root / split / f"n{label:08}").mkdir(parents=True)
        for label in (3, 998):
            image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
            image.save(root / split / f"n{label:08}/{split}_{label}.JPEG")
    return root


def on(imagenet: Path, arch: str, work_dir: Path, **options: Any) -> Config:
    """A config whose data are the fixture's, without worker processes."""
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        options |= {
            f"{loader}.dataset.data_root": str(imagenet),
            f"{loader}.batch_size": 2,
            f"{loader}.num_workers": 0,
            f"{loader}.persistent_workers": False,
        }
    return load_config(str(config(arch)), options, str(work_dir))


# ----------------------------------------------------------------------------- the recipe


@pytest.mark.parametrize("arch", ARCHS)
def test_follows_the_published_recipe(arch):
    cfg = Config.fromfile(config(arch))
    backbone, head = cfg.model.backbone, cfg.model.head
    assert (backbone.type, backbone.arch, backbone.out_indices) == ("FCViT", arch, (3,))
    assert backbone.drop_path_rate == (0.2 if arch == "s48" else 0.1)
    assert backbone.layer_scale_init == 1e-5 and "init_cfg" not in backbone
    assert head.loss == dict(type="LabelSmoothLoss", label_smooth_val=0.1, mode="original")
    assert cfg.model.train_cfg.augments == [
        dict(type="Mixup", alpha=0.8), dict(type="CutMix", alpha=1.0)
    ]  # fmt: skip
    assert cfg.optim_wrapper.type == "AmpOptimWrapper"
    assert cfg.optim_wrapper.optimizer == dict(
        type="AdamW", lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05
    )
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=8 * 128)
    assert cfg.train_dataloader.batch_size == 128
    assert cfg.train_cfg.max_epochs == 300

    train = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    assert train["RandomResizedCrop"].scale == 224
    augment = train["RandAugment"]
    assert (augment.magnitude_level, augment.num_policies, augment.magnitude_std) == (9, 2, 0.5)
    assert augment.policies == "timm_increasing"
    assert train["RandomErasing"].erase_prob == 0.25 and train["RandomErasing"].mode == "rand"
    assert train["RandomFlip"].prob == 0.5
    assert cfg.test_dataloader == cfg.val_dataloader and cfg.test_evaluator == cfg.val_evaluator
    test = {step.type: step for step in cfg.test_dataloader.dataset.pipeline}
    share = 0.95 if arch in ("s24", "s48") else 0.9
    assert test["ResizeEdge"].scale == int(224 / share)
    assert cfg.tta_pipeline[:-1] == cfg.test_dataloader.dataset.pipeline[:-1]


def test_root_says_where_it_comes_from_and_siblings_are_a_difference():
    text = config("s12").read_text()
    command = "dist_train.sh configs/classification/fcvit_s12_in1k.py 8"
    published = ("80.9", "74.9", "82.5", "83.6")
    for fact in ("arXiv 2212.12552", "8 GPUs, 128 images", command, "Published:", *published):
        assert fact in text
    assert text.count('"../_base_/') == 4
    root = Config.fromfile(config("s12"))._cfg_dict
    crop = {f"{name}_dataloader.dataset.pipeline" for name in ("val", "test")}
    crop |= {"test_pipeline", "tta_pipeline"}
    for arch, more in {
        "tiny": {"model.head.in_channels"},
        "s24": crop,
        "s48": crop | {"model.backbone.drop_path_rate"},
    }.items():
        found = differences(root, Config.fromfile(config(arch))._cfg_dict)
        assert found == {"model.backbone.arch"} | more
        assert len(config(arch).read_text().splitlines()) <= 10


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.py")))
def test_survives_dumping(name, tmp_path):
    cfg = Config.fromfile(CONFIGS / name)
    cfg.dump(tmp_path / "dumped.py")
    assert Config.fromfile(tmp_path / "dumped.py")._cfg_dict == cfg._cfg_dict


def test_learning_rate_by_epoch():
    """Five epochs up from 1e-6, by iterations; then a cosine to 1e-6, by epochs."""
    cfg = Config.fromfile(config("s12"))
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(1))], lr=cfg.optim_wrapper.optimizer.lr)
    length = 10
    schedulers = [
        PARAM_SCHEDULERS.build(
            dict(step), default_args=dict(optimizer=optimizer, epoch_length=length)
        )
        for step in cfg.param_scheduler
    ]
    optimizer.step()
    curve = []
    for iteration in range(300 * length):
        curve.append(optimizer.param_groups[0]["lr"])
        for scheduler in schedulers:
            if not scheduler.by_epoch or (iteration + 1) % length == 0:
                scheduler.step()
    half, last = (1e-6 + (1e-3 - 1e-6) * (1 + np.cos(np.pi * t / 295)) / 2 for t in (145, 294))
    expected = {0: 1e-6, 49: 1e-3, 59: 1e-3, 1500: half, 2999: last}
    assert {i: curve[i] for i in expected} == pytest.approx(expected, rel=1e-6)
    assert all(np.diff(curve[:50]) > 0) and all(np.diff(curve[50:]) <= 0)


@pytest.mark.official
@pytest.mark.parametrize(("arch", "side"), [("s12", 248), ("s24", 235)])
def test_an_image_is_tested_as_pillow_resizes_and_crops_it(imagenet, arch, side):
    init_default_scope("mmpretrain")
    results: dict[str, Any] = {"img_path": str(next((imagenet / "val").rglob("*.JPEG")))}
    for step in Config.fromfile(config(arch)).test_dataloader.dataset.pipeline[:-1]:
        results = TRANSFORMS.build(step)(results)
    image: Image.Image = Image.open(results["img_path"])
    height = int(side * image.height / image.width)
    left, top = round((side - 224) / 2), round((height - 224) / 2)
    image = image.resize((side, height), Image.Resampling.BICUBIC)
    expected = np.asarray(image.crop((left, top, left + 224, top + 224)))
    # decoders of JPEG differ by a few gray levels
    difference = results["img"][..., ::-1].astype(int) - expected
    assert results["img"].shape == (224, 224, 3) and abs(difference).mean() < 1.0


# ------------------------------------------------------------------- released weights


def runner_with(imagenet: Path, arch: str, checkpoint: Path, work_dir: Path) -> Runner:
    """What tools/test.py builds; the checkpoint is not yet loaded."""
    cfg = on(imagenet, arch, work_dir, load_from=str(checkpoint))
    for key in ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler",
                "val_dataloader", "val_cfg", "val_evaluator"):  # fmt: skip
        cfg.pop(key)
    return engine.build_runner(cfg)


FORMS = {
    "plain": lambda state: {"epoch": 299, "state_dict": state, "optimizer": {}},
    "averaged": lambda state: {
        "state_dict": {key: torch.zeros_like(value) for key, value in state.items()},
        "state_dict_ema": state,
    },
    "of DDP": lambda state: {"state_dict": {f"module.{key}": v for key, v in state.items()}},
    "as model": lambda state: {"model": state},
    "bare": lambda state: state,
}


@pytest.mark.official
@pytest.mark.parametrize(
    ("arch", "name", "form"), [*(("tiny", "tiny", form) for form in FORMS), ("s12", "b12", "plain")]
)
def test_released_weights_load_whole_and_give_the_golden_logits(
    imagenet, tmp_path, arch, name, form
):
    path = tmp_path / f"fcvit_{name}.pth.tar"
    torch.save(FORMS[form](imagenet_state_dict(name)), path)
    runner = runner_with(imagenet, arch, path, tmp_path)
    runner.load_or_resume()
    with torch.no_grad():
        assert_golden(f"{name}/64x64/logits", runner.model.eval()(golden_input(0, 1, 64, 64)))


def without_bias(state: dict) -> dict:
    del state["head.bias"]
    return state


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("b12", dict, ["arch='s12'", "set arch='s12'"]),
        ("tiny", without_bias, ["1 missing: head.fc.bias"]),
        ("tiny", lambda state: {**state, "norm2.weight": torch.ones(160)}, ["1 unexpected"]),
    ],
)
def test_what_does_not_fill_the_classifier_is_refused(imagenet, tmp_path, name, change, words):
    path = tmp_path / "file.pth"
    torch.save({"state_dict": change(imagenet_state_dict(name))}, path)
    with pytest.raises(CheckpointError) as error:
        runner_with(imagenet, "tiny", path, tmp_path).load_or_resume()
    assert all(word in str(error.value) for word in words)


@pytest.mark.official
def test_the_inferencer_takes_a_released_file(imagenet, tmp_path):
    from mmpretrain import ImageClassificationInferencer

    content = timm_checkpoint("tiny")
    content["state_dict_ema"] = content["state_dict"]
    torch.save(content, tmp_path / "fcvit_tiny.pth.tar")
    inferencer = ImageClassificationInferencer(
        str(config("tiny")), pretrained=str(tmp_path / "fcvit_tiny.pth.tar"), device="cpu"
    )
    with torch.no_grad():
        assert_golden("tiny/64x64/logits", inferencer.model(golden_input(0, 1, 64, 64)))
    (result,) = inferencer(str(next((imagenet / "val").rglob("*.JPEG"))))
    assert result["pred_scores"].shape == (1000,)
    assert result["pred_scores"].sum() == pytest.approx(1, abs=1e-5)


# ---------------------------------------------------------------- training and prediction


@pytest.mark.parametrize(
    "arch",
    [
        pytest.param("tiny", marks=pytest.mark.official),
        "s12",
        *(pytest.param(arch, marks=pytest.mark.slow) for arch in ARCHS[2:]),
    ],
)
def test_a_training_step_and_a_prediction(imagenet, tmp_path, arch):
    # of a batch of two, a branch may be dropped for both
    options = {"randomness.seed": 0, "model.backbone.drop_path_rate": 0.0}
    cfg = on(imagenet, arch, tmp_path, **options)
    check_files(cfg, ("train_dataloader", "val_dataloader"))
    runner = engine.build_runner(cfg)
    model = runner.model
    # no decay on vectors: norms, biases, scalars
    for group in runner.optim_wrapper.optimizer.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.05 if parameter.ndim > 1 else 0.0)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    model.train()
    batch = next(iter(runner.train_loop.dataloader))
    losses = model.train_step(batch, runner.optim_wrapper)
    # the logits of a start are nearly alike
    assert losses["loss"].item() == pytest.approx(np.log(1000), rel=0.1)
    assert all(value.isfinite().all() for value in model.parameters())
    moved = {name for name, value in model.named_parameters() if not value.equal(before[name])}
    assert {name.rsplit(".", 1)[0] for name in before} == {n.rsplit(".", 1)[0] for n in moved}

    model.eval()
    (batch,) = runner.val_loop.dataloader
    with torch.no_grad():
        samples = model.val_step(batch)
    assert [sample.gt_label.item() for sample in samples] == [3, 998]
    assert all(sample.pred_score.sum().item() == pytest.approx(1, abs=1e-5) for sample in samples)
    runner.val_loop.evaluator.process(data_samples=samples, data_batch=batch)
    metrics = runner.val_loop.evaluator.evaluate(2)
    hits = np.mean([sample.pred_label.item() == sample.gt_label.item() for sample in samples])
    assert metrics["accuracy/top1"] == pytest.approx(100 * hits)
    assert set(metrics) == {"accuracy/top1", "accuracy/top5"}
    assert cfg.default_hooks.checkpoint.save_best in metrics


# -------------------------------------------------------------------------------- the tools


SHORT = [
    "train_cfg.max_iters=2", "train_cfg.val_interval=2", "default_hooks.checkpoint.interval=2",
    "train_dataloader.batch_size=4",
    *(f"{split}_dataloader.num_workers=0" for split in ("train", "val")),
    *(f"{split}_dataloader.persistent_workers=False" for split in ("train", "val")),
]  # fmt: skip
TEST = ["test_dataloader.num_workers=0", "test_dataloader.persistent_workers=False"]
TOP1 = r"Iter\({}\).*accuracy/top1: (\d+\.\d+)"


@pytest.mark.official
def test_training_and_testing_with_the_tools(tool, example_data, tmp_path):
    work_dir = tmp_path / "run"
    processes.train(example_data, work_dir, EXAMPLE, SHORT, "--auto-scale-lr", processes=2)
    (measured,) = re.findall(TOP1.format("val"), processes.said(work_dir).read_text())

    drawn, dumped = tmp_path / "drawn", tmp_path / "predictions.pkl"
    arguments = [EXAMPLE, work_dir / "iter_2.pth", "--work-dir", tmp_path]
    result = tool(
        "test.py", *arguments, "--show-dir", drawn, "--out", dumped, "--cfg-options", *TEST
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert re.findall(TOP1.format("test"), result.stdout) == [measured]
    assert len(list(drawn.rglob("*.png"))) == 4 and dumped.stat().st_size > 0

    result = tool("test.py", *arguments, "--tta", "--cfg-options", *TEST)
    assert result.returncode == 0, result.stderr[-3000:]
    assert len(re.findall(TOP1.format("test"), result.stdout)) == 1


def test_a_released_file_is_measured(tool, imagenet, tmp_path):
    path = tmp_path / "fcvit_tiny.pth.tar"
    torch.save(timm_checkpoint("tiny"), path)
    root = f"test_dataloader.dataset.data_root={imagenet}"
    arguments = ["test.py", config("tiny"), path, "--work-dir", tmp_path, "--cfg-options", root]
    result = tool(*arguments, *TEST)
    assert result.returncode == 0, result.stderr[-3000:]
    assert re.findall(r"\(test\).*accuracy/top1: \d+\.\d+  accuracy/top5: \d", result.stdout)
    torch.save({"state_dict": without_bias(imagenet_state_dict("tiny"))}, path)
    assert_sentence(tool(*arguments, *TEST), "1 missing: head.fc.bias")


def test_missing_imagenet_says_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        check_files(load_config(str(config("s12"))), ("train_dataloader",))
    message = str(error.value)
    assert "train_dataloader.dataset: data/imagenet/train does not exist" in message
    assert "https://image-net.org" in message and "one folder per class" in message
