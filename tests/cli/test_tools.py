"""Training and testing with the tools, on the example data, as a user runs them."""

import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from fcvit_mm import read_checkpoint
from fcvit_mm.datasets.shapes import CLASSES
from helpers import ROOT, processes, warm
from helpers.hostile import hostile
from helpers.images import read
from helpers.tools import CONFIGS as ALL
from helpers.tools import SHORT, TEST, assert_sentence

METRICS = {"mask_rcnn": ["coco/bbox_mAP", "coco/segm_mAP"], "semantic_fpn": ["mIoU"]}
# one per task; tests/configs trains and tests every method
CONFIGS = {name: ALL[name] for name in METRICS}


SCRIPTS = sorted((ROOT / "tools").rglob("[!_]*.py"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    [pytest.param(path, id=path.stem) for path in SCRIPTS],
)
def test_a_process_of_its_own_says_the_same_as_a_forked_one(script, tmp_path):
    """All other tests run tools in processes forked from one that has imported everything."""
    words = [str(script), "--help"]
    alone = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert alone.returncode == 0 and alone.stdout.startswith(f"usage: {script.name}")
    forked = warm.run(words, tmp_path)
    assert (forked.returncode, forked.stdout) == (0, alone.stdout)


@pytest.fixture(scope="module")
def trained(tool, example_data) -> dict:
    """The work directory and the output of a short training run of each method."""
    runs = {}
    for name, config in CONFIGS.items():
        result = tool("train.py", config, "--cfg-options", *SHORT)
        assert result.returncode == 0, result.stderr[-3000:]
        runs[name] = example_data / "work_dirs" / config.stem, result.stdout + result.stderr
    return runs


@pytest.mark.official
@pytest.mark.parametrize("method", CONFIGS)
def test_training_evaluates_and_writes_checkpoints(trained, method):
    work_dir, output = trained[method]
    losses = [float(loss) for loss in re.findall(r"\bloss: (\d+\.\d+)", output)]
    assert len(losses) == 4 and all(loss > 0 for loss in losses)
    assert {"iter_2.pth", "iter_4.pth"} <= {path.name for path in work_dir.glob("*.pth")}
    for metric in METRICS[method]:
        assert len(re.findall(rf"Iter\(val\).*{metric}: \d", output)) == 2
    assert "BN for SyncBN" in output or method == "mask_rcnn"


@pytest.mark.official
@pytest.mark.parametrize("method", CONFIGS)
def test_test_prints_the_metrics_of_the_last_evaluation(
    tool, trained, example_data, tmp_path, method
):
    work_dir, output = trained[method]
    drawn, dumped = tmp_path / "drawn", tmp_path / "predictions.pkl"
    result = tool(
        "test.py", CONFIGS[method], work_dir / "iter_4.pth", "--show-dir", drawn, "--out", dumped,
        "--work-dir", tmp_path, "--cfg-options", *TEST,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    for metric in METRICS[method]:
        last = re.findall(rf"Iter\(val\).*{metric}: (\d+\.\d+)", output)[-1]
        assert re.findall(rf"Iter\(test\).*{metric}: (\d+\.\d+)", result.stdout) == [last]
    for name in CLASSES:
        # boxes and masks of a detector, pixels of a segmentor
        row = rf"^\|\s+{name}\s+\|(?:\s+[\d.na]+\s+\|)+$"
        assert len(re.findall(row, result.stdout, re.MULTILINE)) == len(METRICS[method])
    # ground truth and prediction side by side, under the file's name
    images = [read(drawn / f"val/{i:05}.png") for i in range(4)]
    assert {image.shape for image in images} == {(64, 128, 3)}
    photograph = read(example_data / "data/shapes/images/val/00000.png").astype(float)
    annotated, predicted = np.split(images[0], 2, axis=1)
    assert 3 < np.abs(annotated - photograph).mean() < 60 > np.abs(predicted - photograph).mean()
    with dumped.open("rb") as file:
        assert len(pickle.load(file)) == 4


@pytest.mark.official
@pytest.mark.parametrize("method", CONFIGS)
def test_resume_goes_on_from_the_newest_checkpoint(tool, trained, tmp_path, method):
    source, _ = trained[method]
    content = (source / "iter_2.pth").read_bytes()
    (tmp_path / "iter_2.pth").write_bytes(content)
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_2.pth"))
    changed = ["optim_wrapper.optimizer.lr=0.5"] if method == "mask_rcnn" else []
    result = tool(
        "train.py", CONFIGS[method], "--work-dir", tmp_path, "--resume",
        "--cfg-options", *SHORT, *changed,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    said = re.findall(r"(optimizer\.lr=\S+) of the config is not used: .* (\S+);", result.stdout)
    assert said == [("optimizer.lr=0.5", "optimizer.lr=0.002")] * len(changed)
    steps = re.findall(r"Iter\(train\) \[(\d)/4\]", result.stdout)
    assert steps == ["3", "4"] and (tmp_path / "iter_4.pth").exists()
    before, after = (read_checkpoint(tmp_path / f"iter_{i}.pth") for i in (2, 4))
    assert after["optimizer"]["state"][0]["step"] == before["optimizer"]["state"][0]["step"] + 2


@pytest.mark.parametrize("method", ["mask_rcnn", "semantic_fpn"])
def test_test_time_augmentation(tool, trained, tmp_path, method):
    work_dir, _ = trained[method]
    result = tool(
        "test.py", CONFIGS[method], work_dir / "iter_4.pth", "--tta", "--work-dir", tmp_path,
        "--cfg-options", *TEST,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    for metric in METRICS[method]:
        assert re.findall(rf"Iter\(test\).*{metric}: \d", result.stdout)


def test_two_processes_without_a_gpu(example_data, tmp_path):
    work_dir = tmp_path / "run"
    processes.train(example_data, work_dir, CONFIGS["mask_rcnn"], SHORT, "--verbose", processes=2)
    output = processes.said(work_dir).read_text()
    assert "gloo for nccl" in output and re.search(r"Distributed launcher: pytorch", output)
    assert "GPU number: 2" in output and (work_dir / "iter_4.pth").exists()


@pytest.mark.slow
def test_the_scripts_for_several_gpus(tool, tmp_path, monkeypatch):
    monkeypatch.setenv("ON_CPU", "1")
    result = tool(
        "dist_train.sh", CONFIGS["mask_rcnn"], 2, "--work-dir", tmp_path, "--cfg-options", *SHORT
    )
    assert result.returncode == 0, result.stderr[-3000:]
    output = result.stdout + result.stderr
    assert "gloo for nccl" in output and "device: CPU, 2 processes" in output
    (checkpoint,) = tmp_path.glob("iter_4.pth")
    result = tool(
        "dist_test.sh", CONFIGS["mask_rcnn"], checkpoint, 2, "--work-dir", tmp_path,
        "--cfg-options", *TEST,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert re.search(r"Iter\(test\).*coco/bbox_mAP: \d", result.stdout)


# ----------------------------------------------------- files as MMDetection 2.19 wrote them


def released_form(checkpoint: dict) -> dict:
    """What MMDetection 2.19 or MMSegmentation 0.19 would have written of these weights."""
    return {
        "meta": {"mmdet_version": "2.19.0", "epoch": 12, "iter": 87960, "CLASSES": ("circle",),
                 "config": "raise SystemExit('the text of a config was run')", "seed": 0},
        "state_dict": checkpoint["state_dict"],
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
    }  # fmt: skip


@pytest.mark.parametrize("method", ["mask_rcnn", "semantic_fpn"])
def test_a_released_detector_or_segmentor_is_tested_whole(tool, trained, tmp_path, method):
    work_dir, output = trained[method]
    content = released_form(read_checkpoint(work_dir / "iter_4.pth"))
    assert {f"backbone.norm{i}.weight" for i in (0, 2, 4, 6)} <= content["state_dict"].keys()
    path = tmp_path / "released.pth"
    torch.save(content, path)
    arguments = ["--work-dir", tmp_path, "--cfg-options", *TEST]
    result = tool("test.py", CONFIGS[method], path, *arguments)
    assert result.returncode == 0, result.stderr[-3000:]
    metric = METRICS[method][0]
    last = re.findall(rf"Iter\(val\).*{metric}: (\d+\.\d+)", output)[-1]
    assert re.findall(rf"Iter\(test\).*{metric}: (\d+\.\d+)", result.stdout) == [last]

    key = next(key for key in content["state_dict"] if key.startswith("neck."))
    del content["state_dict"][key]
    torch.save(content, path)
    assert_sentence(tool("test.py", CONFIGS[method], path, *arguments), "1 missing", key)


# -------------------------------------------------------------------------------- bad input


def test_another_arch_is_named_before_anything_is_measured(tool, trained):
    work_dir, _ = trained["mask_rcnn"]
    options = ["model.backbone.arch=s12", "model.neck.in_channels=[64,128,320,512]"]
    result = tool(
        "test.py", CONFIGS["mask_rcnn"], work_dir / "iter_4.pth", "--cfg-options", *options
    )
    assert_sentence(result, "arch='tiny'", "arch='s12'", "set arch='tiny'")


@pytest.mark.official
@pytest.mark.parametrize("route", ["test", "resume", "load_from", "init_cfg"])
def test_a_hostile_file_runs_nothing_by_any_route(tool, tmp_path, route):
    mark = tmp_path / "ran"
    path = hostile(tmp_path / "hostile.pth", mark, None)
    config, rest = CONFIGS["mask_rcnn"], ["--work-dir", tmp_path, "--cfg-options", *SHORT]
    if route == "test":
        result = tool("test.py", config, path, "--work-dir", tmp_path)
    elif route == "resume":
        result = tool("train.py", config, "--resume", path, *rest)
    elif route == "load_from":
        result = tool("train.py", config, *rest, f"load_from={path}")
    else:
        init_cfg = dict(_delete_=True, type="Pretrained", checkpoint=str(path))
        config = tmp_path / "mine.py"
        config.write_text(
            f"_base_ = {str(CONFIGS['mask_rcnn'])!r}\n"
            f"model = dict(backbone=dict(init_cfg={init_cfg}))\n"
        )
        result = tool("train.py", config, *rest)
    assert not mark.exists()
    assert_sentence(result, "hostile.pth", "posix.system", "Nothing of it was run")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train.py", "absent.py"], ["absent.py", "no such config"]),
        (["train.py", "{broken}"], ["broken.py", "can't be read as a config"]),
        (["train.py", "{config}", "--cfg-options", "model.backbone.arch=s13"], ["nearest", "s12"]),
        (
            ["train.py", "{config}", "--cfg-options", "model.neck.depth=1"],
            ["unknown key model.neck.depth"],
        ),
        (["train.py", "{config}", "--resume", "absent.pth"], ["absent.pth", "no such checkpoint"]),
        (["train.py", "{coco}"], ["pretrained/fcvit_s12.pth", "drive.google.com"]),
        (["train.py", "{coco}", "--from-scratch"], ["data/coco"]),
        (["train.py", "{config}", "--amp"], ["--amp needs a GPU"]),
        (["test.py", "{config}", "absent.pth"], ["absent.pth", "no such checkpoint"]),
        (["test.py", "{config}", "{empty}"], ["empty.pth is empty"]),
        (["test.py", "{config}", "{text}"], ["text.pth is damaged or not a PyTorch checkpoint"]),
        (["convert_checkpoint.py", "{text}", "a.pth"], ["text.pth is damaged"]),
        (["dist_train.sh", "absent.py", "2"], ["no such config"]),
        (["dist_train.sh", "{config}", "two"], ["GPUS must be a positive number"]),
        pytest.param(
            ["dist_test.sh", "{config}", "absent.pth", "1"],
            ["no such checkpoint"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda value: " ".join(value[:3]) if value[0].endswith((".py", ".sh")) else "",
)
def test_bad_input_is_one_sentence_and_status_2(tool, tmp_path, arguments, words):
    files = {"broken.py": "model = dict(", "empty.pth": "", "text.pth": "no weights"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    places = {
        "{config}": CONFIGS["mask_rcnn"],
        "{coco}": ROOT / "configs/detection/mask_rcnn_fcvit_s12_coco.py",
        **{f"{{{name.split('.')[0]}}}": tmp_path / name for name in files},
    }
    result = tool(*(places.get(argument, argument) for argument in arguments))
    assert_sentence(result, *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train.py", "a.py", "--cfg-options", "foo"], "error: 'foo' is not KEY=VALUE"),
        (
            ["test.py", "a.py", "a.pth", "--out", "a.txt"],
            "--out: a.txt must end in .pkl or .pickle",
        ),
    ],
)
def test_an_option_of_another_form_is_a_sentence(tool, arguments, words):
    result = tool(*arguments)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert words in result.stderr


@pytest.mark.parametrize("name", ["train.py", "test.py", "convert_checkpoint.py", "dist_train.sh",
                                  "dist_test.sh", "slurm_train.sh", "slurm_test.sh"])  # fmt: skip
def test_missing_arguments_print_the_usage(tool, name):
    result = tool(name)
    assert result.returncode == 2 and "usage: " in result.stderr


def test_slurm_starts_a_task_a_gpu(tool, tmp_path, monkeypatch):
    """With a stand-in for srun that prints what it was asked for."""
    srun = tmp_path / "srun"
    srun.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("GPUS", "16")
    result = tool("slurm_train.sh", "part", "job", CONFIGS["mask_rcnn"], "--amp")
    words = result.stdout.splitlines()
    assert {"--gres=gpu:8", "--ntasks=16", "--ntasks-per-node=8", "--job-name=job"} <= set(words)
    assert words[-4:] == [str(CONFIGS["mask_rcnn"]), "--amp", "--launcher", "slurm"]
    monkeypatch.setenv("GPUS", "2")
    result = tool("slurm_test.sh", "part", "job", CONFIGS["mask_rcnn"], "a.pth")
    assert {"--gres=gpu:2", "--ntasks=2", "--ntasks-per-node=2"} <= set(result.stdout.splitlines())
