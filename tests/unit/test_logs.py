"""Logs of trainings: joined over resumptions, damaged ones, figures and plots."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from fcvit_mm.analysis import logs
from fcvit_mm.utils.errors import ConfigError
from helpers.images import read
from helpers.tools import load_tool


def write_log(folder: Path, date: str, lines: list) -> Path:
    path = folder / date / logs.LOG
    path.parent.mkdir(parents=True)
    path.write_text("".join(x if isinstance(x, str) else json.dumps(x) + "\n" for x in lines))
    return path


def training(step: int, loss: float, **more: float) -> dict:
    return {"lr": 0.1 / step, "loss": loss, "time": 0.5 + step / 1000, "step": step, **more}


def test_a_resumed_run_is_joined(tmp_path):
    """Resumed after iteration 20: what was done twice counts as the second time."""
    write_log(tmp_path, "1", [
        training(10, 4.0), training(20, 3.0), {"mIoU": 40.0, "step": 20},
        training(30, 9.0), {"mIoU": 99.0, "step": 30}, training(40, 9.0),
    ])  # fmt: skip
    write_log(tmp_path, "2", [training(30, 2.0), {"mIoU": 50.0, "step": 30}])
    run = logs.read_run(tmp_path)
    assert run.series("loss") == [(10, 4.0), (20, 3.0), (30, 2.0)]
    assert run.series("mIoU") == [(20, 40.0), (30, 50.0)]
    found = logs.summary(run, ["loss", "mIoU"])
    assert found["iterations"] == 30 and "epochs" not in found
    assert found["seconds_per_iteration"] == pytest.approx(0.52)
    assert found["keys"] == {
        "loss": {"last": 2.0}, "mIoU": {"last": 50.0, "best": 50.0, "best_iteration": 30}
    }  # fmt: skip


def test_the_best_is_not_the_last(tmp_path):
    write_log(tmp_path, "1", [{"mAP": value, "step": step} for step, value in
                              ((1, 0.2), (2, 0.7), (3, 0.7), (4, 0.5))])  # fmt: skip
    found = logs.summary(logs.read_run(tmp_path), ["mAP"])["keys"]["mAP"]
    assert found == {"last": 0.5, "best": 0.7, "best_iteration": 2}


def test_epochs_become_iterations(tmp_path):
    """Where a training counts epochs, the steps of its evaluations are epochs."""
    write_log(tmp_path, "1", [
        training(50, 3.0, epoch=1), training(100, 2.0, epoch=1), {"coco/bbox_mAP": 0.1, "step": 1},
        training(150, 1.5, epoch=2, memory=900), training(200, 1.0, epoch=2, memory=1000),
        {"coco/bbox_mAP": 0.2, "step": 2},
    ])  # fmt: skip
    run = logs.read_run(tmp_path)
    assert run.series("coco/bbox_mAP") == [(100, 0.1), (200, 0.2)]
    found = logs.summary(run, [])
    assert (found["epochs"], found["memory_mb"]) == (2, 1000)


def test_damaged_lines_and_what_is_not_finite(tmp_path):
    path = write_log(tmp_path, "1", [
        training(10, float("nan")), "[1, 2]\n", training(20, 3.0), '{"lr": 0.1, "loss": 2.0}\n',
        '{"loss": 2.0, "step": Infinity}\n', '{"lr": 0.1, "loss": 2.0, "st',
    ])  # fmt: skip
    run = logs.read_run(tmp_path)
    assert run.problems == [
        f"{path}, line {number}: not a whole record, left out" for number in (2, 4, 5, 6)
    ]
    assert list(run.training) == [10, 20]
    found = logs.summary(run, ["loss"])
    assert found["not_finite"] == 1 and found["keys"]["loss"] == {"last": 3.0}


def test_a_training_that_ends_with_nan(tmp_path, monkeypatch):
    """JSON has no NaN, and the best is among the rest."""
    nan = float("nan")
    write_log(tmp_path, "1", [
        training(1, 1.0), {"mAP": nan, "step": 1}, training(2, nan), {"mAP": 0.5, "step": 2}
    ])  # fmt: skip
    run = logs.read_run(tmp_path)
    found = logs.summary(run, ["loss", "mAP"])
    json.dumps(found, allow_nan=False)
    assert found["not_finite"] == 2 and found["keys"] == {
        "loss": {"last": None}, "mAP": {"last": 0.5, "best": 0.5, "best_iteration": 2}
    }  # fmt: skip
    assert "not finite" in list(
        load_tool("analyze_logs").make_table({"run": found}, ["loss"]).columns[1].cells
    )
    figures = []
    monkeypatch.setattr(logs, "save_figure", lambda figure, path: figures.append(figure))
    logs.plot([run], ["loss", "mAP"], tmp_path / "plot.png")
    assert [axes.get_title() for axes in figures[-1].axes] == ["loss", "evaluation"]


def test_names_of_runs_stay_whole_in_a_narrow_table(tmp_path):
    runs = [logs.Run("work_dirs/" + "x" * 60 + end, {1: training(1, 1.0)}) for end in "ab"]
    printed = io.StringIO()
    console = Console(file=printed, width=60)
    found = {run.name: logs.summary(run, ["loss"]) for run in runs}
    console.print(load_tool("analyze_logs").make_table(found, ["loss"]))
    heads = [line for line in printed.getvalue().splitlines() if line.startswith("┃")]
    columns = zip(*(re.split("┃", line)[2:4] for line in heads), strict=True)
    assert ["".join(column).replace(" ", "") for column in columns] == [run.name for run in runs]


def test_time_is_that_of_an_iteration(tmp_path):
    """Evaluations are timed as well."""
    write_log(tmp_path, "1", [training(1, 1.0), {"mAP": 0.5, "time": 9.0, "step": 1}])
    run = logs.read_run(tmp_path)
    assert run.series("time") == [(1, 0.501)]
    assert logs.summary(run, ["time"])["keys"] == {"time": {"last": 0.501}}


def test_keys(tmp_path):
    evaluation = {"coco/bbox_mAP": 0.1, "coco/bbox_mAP_50": 0.2, "step": 1}
    write_log(tmp_path, "1", [training(1, 1.0, loss_mask=0.5, grad_norm=3.0), evaluation])
    run = logs.read_run(tmp_path)
    assert logs.choose([run], None) == ["loss", "loss_mask", "lr", "coco/bbox_mAP"]
    assert logs.choose([run], ["grad_norm"]) == ["grad_norm"]
    with pytest.raises(ConfigError, match=r"no run has loss_maks; did you mean loss_mask\?"):
        logs.choose([run], ["loss_maks"])
    # nothing of the usual
    write_log(tmp_path / "other", "1", [{"PQ": 41.0, "step": 1}])
    other = logs.read_run(tmp_path / "other")
    assert logs.choose([other], None) == ["PQ"]
    logs.plot([other], ["PQ"], tmp_path / "plot.png")
    assert read(tmp_path / "plot.png").std() > 10


def test_lines_of_a_plot_differ(tmp_path, monkeypatch):
    """By color or style, and in the legend, also for runs of one name."""
    terms = {f"loss_{i}": float(i) for i in range(9)}
    runs = []
    for folder in ("a", "b"):
        write_log(tmp_path / folder / "run", "1", [training(1, 1.0, **terms)])
        runs.append(logs.read_run(tmp_path / folder / "run"))
    figures = []
    monkeypatch.setattr(logs, "save_figure", lambda figure, path: figures.append(figure))
    logs.plot(runs, logs.choose(runs, None), tmp_path / "plot.png")
    axes = figures[-1].axes[0]
    assert len(axes.lines) == 20
    looks = {
        (line.get_color(), str(line._dash_pattern), line.get_linewidth()) for line in axes.lines
    }
    assert len(looks) == 20
    # a line through one point would be invisible
    assert {line.get_marker() for line in axes.lines} == {"o"}
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(set(names)) == 20 and f"loss, {tmp_path}/a/run" in names


def test_a_run_has_one_color_in_all_panels(tmp_path, monkeypatch):
    """Whether a panel has more keys than there are runs, or fewer."""
    runs = []
    for folder in ("a", "b"):
        record = training(1, 1.0, loss_a=1.0, loss_b=2.0)
        write_log(tmp_path / folder, "1", [record, {"mIoU": 0.5, "step": 1}])
        runs.append(logs.read_run(tmp_path / folder))
    figures = []
    monkeypatch.setattr(logs, "save_figure", lambda figure, path: figures.append(figure))
    logs.plot(runs, logs.choose(runs, None), tmp_path / "plot.png")
    panels = figures[-1].axes
    assert [len(axes.lines) for axes in panels] == [6, 2, 2]
    for name, color in (("a", "C0"), ("b", "C1")):
        lines = [
            line for axes in panels for line in axes.lines if line.get_label().endswith(f", {name}")
        ]
        assert len(lines) == 5 and {line.get_color() for line in lines} == {color}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (None, "no such work directory"),
        ([], "the log has no records; the training may not have begun"),
        (["# a text\n"], "the log has no records; none of its lines is one"),
    ],
)
def test_no_log(tmp_path, lines, words):
    if lines is not None:
        write_log(tmp_path / "run", "1", lines)
    with pytest.raises(ConfigError, match=words):
        logs.read_run(tmp_path / "run")
