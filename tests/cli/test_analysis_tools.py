"""The tools of analysis_tools/ as subprocesses: what they print and write, and their refusals."""

import json
import re
import statistics

import cv2
import numpy as np
import pytest
import torch
import yaml

from fcvit_mm.analysis import logs
from fcvit_mm.analysis.benchmark import PREDICTION, TRAINING
from fcvit_mm.datasets import shapes
from helpers import ROOT
from helpers.images import make_image
from helpers.models import CONFIGS
from helpers.tools import TEST, assert_sentence


@pytest.mark.slow
@pytest.mark.official
def test_benchmark_prints_what_it_writes(tool, tmp_path):
    configs = CONFIGS["mmdet"], CONFIGS["mmseg"]
    result = tool(
        "benchmark.py", *configs, "--train", "--size", 64, 96, "--batch", 2, "--repeats", 3,
        "--threads", 2, "--json", tmp_path / "a/b.json", "--plot", tmp_path / "b.png",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    content = json.loads((tmp_path / "a/b.json").read_text())
    assert content["inputs"] == "2x3x64x96" and content["models"] == "models"
    assert content["conditions"]["threads"] == 2 and content["conditions"]["dtype"] == "float32"
    assert content["conditions"]["torch"] == torch.__version__
    results = content["results"]
    assert [(r["activity"], r["name"]) for r in results] == [
        (activity, path.stem) for activity in (PREDICTION, TRAINING) for path in configs
    ]
    for first, row in zip([results[0]] * 2 + [results[2]] * 2, results, strict=True):
        median = row["time"]["median"]
        assert len(row["milliseconds"]) == 3 and median == statistics.median(row["milliseconds"])
        assert row["ratio"] == pytest.approx(median / first["time"]["median"])
        assert row["images_per_second"] == pytest.approx(2000 / median)
        start = [*row["activity"].split(), row["name"]]
        (line,) = [
            line for line in result.stdout.splitlines() if line.split()[: len(start)] == start
        ]
        cells = line.split(row["name"])[1].split()
        assert cells[0] == f"{median:.1f}" and cells[-1] == f"{row['peak_bytes'] / 1e6:.1f}"
    # Mask R-CNN's heads, and what a backward pass needs
    peaks = [row["peak_bytes"] for row in results]
    assert peaks[0] > peaks[1] and peaks[2] > peaks[0] and peaks[3] > 2 * peaks[1]
    # the conditions below the table are broken into lines of its width
    words = " ".join(result.stdout.split())
    for word in ("machine: ", "threads: 2", f"torch: {torch.__version__}", "dtype: float32"):
        assert word in words
    image = cv2.imread(str(tmp_path / "b.png"))
    assert image.std() > 10 and image.shape[1] == 1100


def test_benchmark_of_what_does_not_run(tool, tmp_path):
    """A pyramid's 1x1 map has one position, of one image: too few for BatchNorm."""
    config = ROOT / "configs/segmentation/upernet_fcvit_tiny_shapes.py"
    options = ["--train", "--size", 32, 32, "--repeats", 1, "--json", tmp_path / "a.json"]
    result = tool("benchmark.py", config, *options)
    assert_sentence(result, "training step of upernet", "try a larger --size or --batch")
    assert not (tmp_path / "a.json").exists()


def test_benchmark_without_a_config(tool):
    result = tool("benchmark.py")
    assert result.returncode == 2 and "usage: " in result.stderr


@pytest.mark.official
def test_browse_data(tool, tmp_path):
    config = CONFIGS["mmdet"]
    result = tool("browse_data.py", config, "--number", 2, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr[-2000:]
    assert "64x64" in result.stdout and (tmp_path / "out/grid.png").is_file()
    assert "2 items" in result.stdout and re.search(r"\d\.\d each", result.stdout)
    # wrong input
    options = ["--cfg-options", "train_dataloader.dataset.data_root=nowhere"]
    assert_sentence(tool("browse_data.py", config, *options), "nowhere", "does not exist")
    (tmp_path / "file").write_text("")
    result = tool("browse_data.py", config, "--out", tmp_path / "file")
    assert_sentence(result, f"--out {tmp_path / 'file'} can't be written")


@pytest.mark.official
def test_confusion_matrix_agrees_with_miou(tool, weights, tmp_path):
    result = tool(
        "confusion_matrix.py", CONFIGS["mmseg"], weights["mmseg"], "--out", tmp_path / "m.png",
        "--cfg-options", *TEST,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    assert {path.name for path in tmp_path.iterdir()} == {"m.json", "m.png"}
    content = json.loads((tmp_path / "m.json").read_text())
    matrix = np.array(content["matrix"])
    assert content["classes"] == list(shapes.SEMANTIC_CLASSES)
    # every pixel of the four images of 64x64
    assert matrix.sum() == 4 * 64 * 64
    ious = [row["iou"] for row in content["by_class"]]
    (miou,) = re.findall(r"Iter\(test\).* mIoU: (\d+\.\d+)", result.stdout)
    assert np.mean(ious) * 100 == pytest.approx(float(miou), abs=0.006)


@pytest.mark.official
@pytest.mark.parametrize("masks", [[], ["--masks"]])
def test_confusion_matrix_counts_every_object(tool, weights, example_data, tmp_path, masks):
    result = tool(
        "confusion_matrix.py", CONFIGS["mmdet"], weights["mmdet"], "--out", tmp_path / "m", *masks,
        "--score-threshold", 0, "--iou-threshold", 0.1, "--cfg-options", *TEST,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    matrix = np.array(json.loads((tmp_path / "m.json").read_text())["matrix"])
    content = json.loads((example_data / "data/shapes/annotations/instances_val.json").read_text())
    counts = np.bincount([a["category_id"] - 1 for a in content["annotations"]], minlength=4)
    assert matrix[:4].sum(1).tolist() == counts.tolist()
    assert (tmp_path / "m.png").is_file()


def test_confusion_matrix_as_an_evaluator_of_a_config(tool, weights, tmp_path):
    """As docs/visualization.md says; by test.py, which knows nothing of confusion matrices."""
    config = tmp_path / "mine.py"
    config.write_text(
        f"_base_ = {str(CONFIGS['mmseg'])!r}\n"
        "custom_imports = dict(imports=['fcvit_mm.evaluation.confusion_matrix'])\n"
        f"test_evaluator = [dict(type='ConfusionMatrix', out={str(tmp_path / 'm')!r})]\n"
    )
    result = tool(
        "test.py", config, weights["mmseg"], "--work-dir", tmp_path, "--cfg-options", *TEST
    )
    assert result.returncode == 0, result.stderr[-2000:]
    matrix = np.array(json.loads((tmp_path / "m.json").read_text())["matrix"])
    assert matrix.sum() == 4 * 64 * 64 and (tmp_path / "m.png").is_file()


def test_confusion_matrix_of_wrong_input(tool, weights, tmp_path):
    result = tool("confusion_matrix.py", CONFIGS["mmseg"], weights["mmseg"], "--masks")
    assert_sentence(result, "--masks", "not of a model with masks")
    assert_sentence(
        tool("confusion_matrix.py", CONFIGS["mmseg"], weights["mmdet"], "--out", tmp_path / "m"),
        "does not fit the model",
    )


@pytest.mark.official
def test_model_info_prints_what_it_writes(tool, tmp_path):
    config = CONFIGS["mmseg"]
    result = tool(
        "model_info.py",
        config,
        "--json",
        tmp_path / "a/cost.json",
        "--sweep",
        tmp_path / "cost.png",
    )
    assert result.returncode == 0, result.stderr[-3000:]
    content = json.loads((tmp_path / "a/cost.json").read_text())
    # the size that the metafile counts at is this config's default
    (known,) = [
        model["Metadata"]
        for model in yaml.safe_load(
            (ROOT / "configs/segmentation/semantic_fpn_metafile.yml").read_text()
        )["Models"]
        if model["Name"] == config.stem
    ]
    assert known["Input Size"] == "x".join(map(str, content["size"]))
    assert content["total"]["multiply_adds"] == known["FLOPs"]
    assert content["total"]["parameters"] == known["Parameters"]
    for key, combine in (("parameters", sum), ("multiply_adds", sum), ("kept_bytes", sum),
                         ("peak_bytes", max)):  # fmt: skip
        assert content["total"][key] == combine(row[key] for row in content["rows"]) > 0
    lines = result.stdout.splitlines()
    for row in (*content["rows"], content["total"]):
        (line,) = [line.strip() for line in lines if line.strip().startswith(row["part"] + "  ")]
        assert line.removeprefix(row["part"]).split()[:5] == [
            f"{row['parameters'] / 1e6:.3f}",
            f"{row['multiply_adds'] / 1e9:.3f}",
            f"{row['multiply_adds'] / known['FLOPs']:.1%}",
            f"{row['kept_bytes'] / 1e6:.1f}",
            f"{row['peak_bytes'] / 1e6:.1f}",
        ]
    assert (
        "32: 32x32" in result.stdout and "kept: from the forward to the backward" in result.stdout
    )
    maps = [
        (output["shape"][1], output["stride"])
        for row in content["rows"][1:5]
        for output in row["outputs"]
    ]
    assert maps == [(32, 4), (64, 8), (160, 16), (320, 32)]
    image = cv2.imread(str(tmp_path / "cost.png"))
    assert image.std() > 10 and image.shape[1] == 1100
    sweep = content["sweep"]
    assert sweep["sizes"] == [[32, 32], [64, 64], [96, 96], [128, 128]]
    backbone = sweep["multiply-adds, G"]["backbone"]
    assert backbone["residual"] < 0.001
    expected = sum(row["multiply_adds"] for row in content["rows"][:5]) / 1e9
    assert backbone["values"][-1] == pytest.approx(expected)
    assert backbone["start"] + backbone["slope"] * 128**2 == pytest.approx(expected, rel=0.001)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{image}"], ["image.jpg can't be read as a config"]),
        (["{dino}", "--size", "32", "32"], ["32 high and 32 wide", "try a larger --size"]),
    ],
    ids=["image", "size"],
)
def test_model_info_of_bad_input(tool, tmp_path, arguments, words):
    (tmp_path / "image.jpg").write_text("no image")
    places = {
        "image": tmp_path / "image.jpg",
        "dino": ROOT / "configs/detection/dino_fcvit_s12_12e_coco.py",
    }
    words_of = [argument.format(**places) for argument in arguments]
    assert_sentence(tool("model_info.py", *words_of, "--json", tmp_path / "a.json"), *words)
    assert not (tmp_path / "a.json").exists()


@pytest.mark.official
@pytest.mark.parametrize(
    "scope", [pytest.param(s, marks=[] if s == "mmdet" else [pytest.mark.slow]) for s in CONFIGS]
)
def test_similarity_map(tool, weights, tmp_path, scope):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), make_image(0))
    cv2.imwrite(str(folder / "b.png"), make_image(1))
    which: dict[str, list] = {
        "mmdet": [],
        "mmseg": ["--stage", 3, "--block", 2],
        "mmpretrain": ["--all-blocks"],
    }
    if scope == "mmdet":
        (folder / "text.jpg").write_text("no image\n")
    result = tool(
        "similarity_map.py", CONFIGS[scope], weights[scope], folder, "--out", out, *which[scope]
    )
    if scope == "mmdet":
        assert_sentence(result, "text.jpg is not an image")
    else:
        assert result.returncode == 0, result.stderr[-2000:]
    content = json.loads((out / "difference.json").read_text())
    assert content["images"] == 2 and len(content["blocks"]) == 13
    assert all(0 <= block["difference"] <= 1 for block in content["blocks"])
    blocks = {"mmdet": ["4_block2"], "mmseg": ["3_block2"], "mmpretrain": ["4_block1", "4_block2"]}
    expected = {
        f"stage{block}_context{part}_head{head}.png"
        for block in blocks[scope]
        for part in (1, 2)
        for head in range(1, 9)
    }
    for name in ("a", "b"):
        assert {path.name for path in (out / name).iterdir()} == expected
        assert cv2.imread(str(out / f"{name}.png")).std() > 10
    assert cv2.imread(str(out / "difference.png")).std() > 10


def test_similarity_map_of_wrong_input(tool, weights, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), make_image(0))
    result = tool(
        "similarity_map.py", CONFIGS["mmseg"], weights["mmseg"], tmp_path / "a.png",
        "--block", 3, "--out", tmp_path / "out",
    )  # fmt: skip
    assert_sentence(result, "--block 3: stage 4 has the blocks 1 to 2")


@pytest.mark.official
def test_analyze_logs(tool, tmp_path):
    records = [
        {"lr": 0.1 / step, "loss": 3.0 - step, "time": 0.5, "step": step, "memory": 900}
        for step in (1, 2, 3, 4)
    ]
    records += [{"mIoU": 9.0, "step": 2}, {"mIoU": 8.0, "step": 4}]
    for name, some, end in (
        ("run", records, ""),
        ("other", [records[0], {"mIoU": 7.0, "step": 1}], "{"),
    ):
        path = tmp_path / name / "1" / logs.LOG
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in some) + end)
    out, figures = tmp_path / "plot.png", tmp_path / "figures.json"
    result = tool(
        "analyze_logs.py", tmp_path / "run", tmp_path / "other", "--out", out, "--json", figures
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "line 3: not a whole record" in result.stderr
    found = json.loads(figures.read_text())
    run = found[str(tmp_path / "run")]
    assert run["iterations"] == 4 and run["seconds_per_iteration"] == pytest.approx(0.5)
    assert run["keys"]["mIoU"] == {"last": 8.0, "best": 9.0, "best_iteration": 2}
    assert found[str(tmp_path / "other")]["keys"]["mIoU"]["best"] == 7.0
    assert "mIoU" in result.stdout and "7 (best 7 at 1)" in result.stdout
    image = cv2.imread(str(out))
    assert image.shape[1] > 3 * image.shape[0] * 0.9 and image.std() > 10
    assert_sentence(tool("analyze_logs.py", tmp_path / "nowhere"), "no such work directory")
