"""The page on one's own data is true: its configs and commands do what it says, as they stand.

They run on the example data under other names of files and classes, shortened by `--cfg-options`.
"""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from fcvit_mm.datasets import shapes
from fcvit_mm.utils.config import load_config
from helpers import ROOT, photographs, warm

PAGE = (ROOT / "docs/custom_data.md").read_text()
CONFIGS = dict(re.findall(r"^`(\w+\.py)`:\n\n```python\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = [
    line
    for block in re.findall(r"^```bash\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
CLASSES = ("bolt", "nut", "washer", "pin")
TINY = ["model.backbone.arch=tiny", "model.neck.in_channels=[32,64,160,320]"]
LOADER = ["num_workers=0", "persistent_workers=False"]
SHORT = {
    "parts_detection.py": [
        "train_cfg.max_epochs=1",
        "train_dataloader.dataset.pipeline.2.scale=(128,64)",
        *(f"{loader}_dataloader.dataset.pipeline.1.scale=(128,64)" for loader in ("val", "test")),
    ],
    "parts_segmentation.py": [
        "train_cfg.max_iters=2",
        "train_cfg.val_interval=2",
        "default_hooks.checkpoint.interval=2",
        "model.data_preprocessor.size=(64,64)",
        "train_dataloader.dataset.pipeline.2.scale=(128,64)",
        "train_dataloader.dataset.pipeline.3.crop_size=(64,64)",
        *(f"{loader}_dataloader.dataset.pipeline.1.scale=(128,64)" for loader in ("val", "test")),
    ],
}
LAST = {"parts_detection.py": "epoch_1.pth", "parts_segmentation.py": "iter_2.pth"}
METRICS = {
    "parts_detection.py": ["coco/bbox_mAP", "coco/segm_mAP"],
    "parts_segmentation.py": ["mIoU"],
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """A user's directory: data and configs as the page has them."""
    directory = tmp_path_factory.mktemp("user")
    parts = directory / "data/parts"
    shapes.generate(parts, train=8, val=4, size=(64, 64), seed=0)
    for split in ("train", "val"):
        old = parts / f"annotations/instances_{split}.json"
        content = json.loads(old.read_text())
        for category, name in zip(content["categories"], CLASSES, strict=True):
            category["name"] = name
        (parts / f"annotations/{split}.json").write_text(json.dumps(content))
        old.unlink()
    for name, text in CONFIGS.items():
        (directory / name).write_text(text)
    return directory


def run(directory: Path, command: str, options: list[str]) -> subprocess.CompletedProcess:
    """Run a command of the page with further --cfg-options."""
    program, *words = shlex.split(command)
    assert program == "fcvit"
    flag = [] if "--cfg-options" in words else ["--cfg-options"]
    return warm.run(["-m", "fcvit_mm", *words, *flag, *options], directory)


def commands(tool: str, config: str) -> list[str]:
    return [line for line in COMMANDS if line.startswith(f"fcvit {tool} {config}")]


def test_the_page_has_all_that_is_tested():
    assert set(CONFIGS) == set(SHORT)
    counts = {config: [len(commands(tool, config)) for tool in ("check_data", "train", "test")]
              for config in CONFIGS}  # fmt: skip
    assert counts == {"parts_detection.py": [1, 2, 1], "parts_segmentation.py": [1, 1, 1]}
    assert sum(sum(n) for n in counts.values()) == len(COMMANDS) - 1


def test_what_a_labeling_tool_wrote_is_converted(tmp_path):
    (command,) = [line for line in COMMANDS if " convert_data " in line]
    photographs.arrange("labelme", tmp_path / "labeled")
    result = warm.run(["-m", "fcvit_mm", *shlex.split(command)[1:]], tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    written = tmp_path / "data/parts"
    assert len([*written.glob("images/train/*")]) == 5
    assert len([*written.glob("images/val/*")]) == 1


@pytest.mark.parametrize("config", CONFIGS)
def test_configs_are_short(config):
    assert len(CONFIGS[config].splitlines()) <= 25


def options(config: str, *loaders: str) -> list[str]:
    """Small and short, for a command that uses these loaders."""
    chosen = [*TINY, *(f"{loader}_dataloader.{word}" for loader in loaders for word in LOADER)]
    if "train" in loaders:
        chosen += ["train_dataloader.batch_size=2", "default_hooks.logger.interval=1"]
    return chosen + SHORT[config]


def other_detector() -> dict[str, torch.Tensor]:
    """The weights of a detector of COCO's 80 classes."""
    changes = {
        "model.backbone.arch": "tiny",
        "model.neck.in_channels": [32, 64, 160, 320],
        "model.backbone.init_cfg": None,
    }
    init_default_scope("mmdet")
    base = load_config("fcvit_mm::detection/mask_rcnn_fcvit_s12_coco.py", changes)
    return MODELS.build(base.model).state_dict()


@pytest.fixture(scope="module", params=CONFIGS)
def trained(request, directory) -> tuple[str, subprocess.CompletedProcess]:
    """A config and its training: the detector from one of other classes."""
    command = commands("train", request.param)[-1]
    short = options(request.param, "train", "val")
    if "load_from" in command:
        (name,) = re.findall(r"load_from=(\S+)", command)
        torch.save({"state_dict": other_detector()}, directory / name)
        # no step is large enough to move what was loaded
        short.append("optim_wrapper.optimizer.lr=1e-12")
    else:
        command += " --from-scratch"
    return request.param, run(directory, command, short)


def test_the_example_passes_the_check(directory):
    """A detector's check is run below, and at the beginning of its training."""
    (command,) = commands("check_data", "parts_segmentation.py")
    result = run(directory, command, TINY)
    assert result.returncode == 0, result.stdout + result.stderr
    for name, labeled in (("train", "8 +32,768"), ("val, test", "4 +16,384")):
        assert re.search(rf"{name} +{labeled} pixels +5 +0 +0 *\n", result.stdout)


def test_training_and_test_give_the_metrics(directory, trained):
    config, result = trained
    assert result.returncode == 0, result.stderr[-3000:]
    output = result.stdout + result.stderr
    losses = [float(loss) for loss in re.findall(r"\bloss: (\d+\.\d+)", output)]
    assert len(losses) == (4 if "detection" in config else 2) and all(loss > 0 for loss in losses)
    (command,) = commands("test", config)
    # the full training's last checkpoint has a later number
    command = re.sub(r"(epoch|iter)_\d+\.pth", LAST[config], command)
    tested = run(directory, command, options(config, "test"))
    assert tested.returncode == 0, tested.stderr[-3000:]
    for metric in METRICS[config]:
        in_training = re.findall(rf"\(val\).*{metric}: (\d+\.\d+)", output)
        assert in_training == re.findall(rf"\(test\).*{metric}: (\d+\.\d+)", tested.stdout)
        assert len(in_training) == 1


@pytest.mark.parametrize("trained", ["parts_detection.py"], indirect=True, scope="module")
def test_of_a_detector_of_other_classes_all_is_taken_that_fits(directory, trained):
    before = torch.load(directory / "mask_rcnn_s12_coco.pth")["state_dict"]
    path = directory / "work_dirs/parts_detection/epoch_1.pth"
    after = torch.load(path, weights_only=False)["state_dict"]
    anew = {key for key in before if after[key].shape != before[key].shape}
    assert anew and all(re.search("fc_cls|fc_reg|conv_logits", key) for key in anew)
    for key in before.keys() - anew:
        if "running_" not in key and "num_batches" not in key:
            torch.testing.assert_close(after[key], before[key], rtol=0, atol=1e-6)


def test_the_sample_output_is_printed(directory, tmp_path):
    (sample,) = re.findall(r"it\s+prints\n\n```text\n(.*?)```", PAGE, re.DOTALL)
    text = CONFIGS["parts_detection.py"].replace('"nut"', '"nuts"')
    (directory / "misspelt.py").write_text(text)
    annotations = directory / "data/parts/annotations/train.json"
    image = directory / "data/parts/images/train/00003.png"
    before = annotations.read_text(), image.read_bytes()
    content = json.loads(before[0])
    content["annotations"][6]["image_id"] = 70
    annotations.write_text(json.dumps(content))
    image.write_bytes(before[1][: len(before[1]) // 2])
    try:
        command = commands("check_data", "parts_detection.py")[0]
        command = command.replace("parts_detection.py", "misspelt.py")
        result = run(directory, command, TINY)
    finally:
        annotations.write_text(before[0])
        image.write_bytes(before[1])
    assert result.returncode == 2
    # but for how long it took
    expected, printed = (
        [re.sub(r"\d:\d\d:\d\d$", "TIME", line.strip()) for line in text.splitlines()]
        for text in (sample, result.stdout + result.stderr)
    )
    assert expected and [line for line in expected if line not in printed] == [], "\n".join(printed)
