"""tools/demos/chain.py as a subprocess, in a very short form, and the table that it prints."""

import json
from pathlib import Path

import cv2
import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from fcvit_mm import read_checkpoint
from fcvit_mm.datasets import shapes
from fcvit_mm.demos import transfer
from helpers import ROOT
from helpers.configs import differences

DENSE = {
    "detection": "detection/mask_rcnn_fcvit_tiny_shapes.py",
    "segmentation": "segmentation/semantic_fpn_fcvit_tiny_shapes.py",
}
FIGURES = {"detection": {"box mAP", "mask mAP"}, "segmentation": {"mIoU"}}


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tool, tmp_path_factory) -> tuple[Path, str]:
    """The work directory and the output of a chain of two iterations and one seed."""
    root = tmp_path_factory.mktemp("chain")
    shapes.generate(root / "data/shapes", 4, 2, (32, 32))
    shapes.generate(root / "data/shapes_classification", 8, 4, (32, 32), task="classification")
    result = tool(
        "chain.py", "--pretraining", 3, "--iterations", 2, "--seeds", 5,
        "--work-dir", root / "work", "--data-root", root / "data",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return root / "work", result.stdout


@pytest.mark.parametrize("task", DENSE)
def test_every_tensor_of_the_pretrained_backbone_arrives(finished, task):
    work, _ = finished
    checkpoint = work / "classification_random_5/iter_3.pth"
    given = {
        key.removeprefix("backbone."): value
        for key, value in read_checkpoint(checkpoint)["state_dict"].items()
        if key.startswith("backbone.")
    }
    # what the run itself wrote down, and was built from
    cfg = Config.fromfile(next((work / f"{task}_pretrained_5").glob("*.py")))
    assert cfg.model.backbone.init_cfg == dict(type="Pretrained", checkpoint=str(checkpoint))
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    before = model.backbone.state_dict()
    assert not before["patch_embed.proj.weight"].equal(given["patch_embed.proj.weight"])
    model.init_weights()
    arrived = model.backbone.state_dict()
    # the classifier's output norm is stage 4's; those of the other stages it does not have
    others = {f"norm{i}.{part}" for i in (0, 2, 4) for part in ("weight", "bias")}
    assert arrived.keys() - given.keys() == others
    assert all(arrived[key].equal(value) for key, value in given.items())
    log = (work / f"{task}_pretrained_5/output.txt").read_text()
    assert f"FCViT: loaded {len(given)} tensors from state_dict of {checkpoint}" in log


@pytest.mark.parametrize("task", DENSE)
def test_the_starts_differ_in_nothing_but_the_weights(finished, task):
    work, _ = finished
    random, pretrained = (
        Config.fromfile(next((work / f"{task}_{start}_5").glob("*.py")))
        for start in transfer.STARTS
    )
    assert random.model.backbone.init_cfg is None
    assert differences(random._cfg_dict, pretrained._cfg_dict) == {
        "model.backbone.init_cfg", "work_dir"
    }  # fmt: skip
    assert random.randomness.seed == 5 and random.train_cfg.max_iters == 2
    classifier = Config.fromfile(ROOT / "configs/classification/fcvit_tiny_shapes.py")
    start = classifier.model.backbone.layer_scale_init
    assert random.model.backbone.layer_scale_init == start


def test_figures_plot_and_table(finished):
    work, output = finished
    results = json.loads((work / "results.json").read_text())
    assert results["seeds"] == [5]
    assert results["iterations"] == {"pretraining": 3, "training": 2}
    for task, names in FIGURES.items():
        for start in transfer.STARTS:
            curve = results[task][start]["5"]
            assert curve[-1][0] == 2 and set(curve[-1][1]) == names
    for name in ("box mAP", "mask mAP", "mIoU"):
        assert f"| {name} | 5 | 0." in output
    assert "\x1b" not in output and str(work / "chain.png") in output
    image = cv2.imread(str(work / "chain.png"))
    assert min(image.shape[:2]) > 300 and image.std() > 20


def test_the_table_is_of_the_last_evaluations():
    def curves(*last: float) -> dict[int, transfer.Curve]:
        return {seed: [(1, {"mIoU": 0.9}), (2, {"mIoU": v})] for seed, v in enumerate(last)}

    lines = transfer.table(
        {"segmentation": {"random": curves(0.1, 0.2, 0.3), "pretrained": curves(0.5, 0.5, 0.8)}}
    ).splitlines()
    assert lines[2:5] == [
        "| mIoU | 0 | 0.100 | 0.500 | +0.400 |",
        "| mIoU | 1 | 0.200 | 0.500 | +0.300 |",
        "| mIoU | 2 | 0.300 | 0.800 | +0.500 |",
    ]
    assert lines[5] == "| **mIoU** | mean ± std | 0.200 ± 0.100 | 0.600 ± 0.173 | 0.400 ± 0.100 |"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--iterations", "0"], "0 must be a whole number of at least 1"),
        (["--seeds", "-1"], "-1 must be a whole number of at least 0"),
    ],
)
def test_bad_options(tool, arguments, said):
    result = tool("chain.py", *arguments)
    assert result.returncode == 2 and said in result.stderr and "Traceback" not in result.stderr


def test_a_data_root_that_is_a_file_is_one_sentence(tool, tmp_path):
    (tmp_path / "data").write_text("")
    result = tool("chain.py", "--data-root", tmp_path / "data", "--work-dir", tmp_path / "work")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ")
