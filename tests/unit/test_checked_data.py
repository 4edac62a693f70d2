"""The note of checked datasets: nothing unchanged is checked again, everything else is."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fcvit_mm.datasets import checks
from fcvit_mm.engine import checked_data
from fcvit_mm.engine.preflight import check_files
from fcvit_mm.utils.config import load_config
from fcvit_mm.utils.errors import ConfigError
from helpers.tools import TASKS

LOADERS = ("train_dataloader", "val_dataloader")


@pytest.fixture
def count(data, tmp_path, monkeypatch) -> Callable[..., int]:
    """Check the data for a training; returns how often they were read."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def run(task: str = "detection", **options: Any) -> int:
        calls = []

        def check(*args: Any, **kwargs: Any) -> list[checks.Report]:
            calls.append(args)
            return original(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(checks, "check", check)
            changes = {key.replace("__", "."): value for key, value in options.items()}
            check_files(load_config(str(TASKS[task]), changes), LOADERS)
        return len(calls)

    original = checks.check
    return run


@pytest.mark.parametrize("task", TASKS)
def test_what_has_not_changed_is_not_checked_again(count, capsys, tmp_path, task):
    assert (count(task), count(task)) == (1, 0)
    (line,) = capsys.readouterr().err.splitlines()
    note = tmp_path / "torch/fcvit_checked_data.json"
    assert line.startswith("data: unchanged since they were checked at 20") and str(note) in line
    (entry,) = json.loads(note.read_text()).values()
    assert entry["warnings"] == []
    # of these the check reads nothing
    other = dict(train_dataloader__batch_size=1, work_dir="other", optim_wrapper__type="Wrapper")
    assert count(task, **other, model__backbone__init_cfg=None) == 0


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


CHANGES: dict[str, Callable[[Path], Any]] = {
    "time of an image": lambda data: touch(data / "images/val/00001.png"),
    "size of an image": lambda data: (data / "images/train/00001.png").open("ab").write(b"0"),
    "a new file": lambda data: shutil.copy(data / "images/train/00001.png", data / "images/val"),
    "annotations": lambda data: touch(data / "annotations/instances_train.json"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_a_file_is_checked(count, data, change):
    assert count() == 1
    CHANGES[change](data)
    assert (count(), count()) == (1, 0)


@pytest.mark.parametrize(
    "options",
    [
        dict(train_dataloader__dataset__filter_cfg=None),
        dict(val_evaluator=dict(type="CocoMetric", metric="bbox")),
    ],
    ids=str,
)
def test_a_change_of_the_config_is_checked(count, options):
    assert (count(), count(**options)) == (1, 1)


def test_another_number_of_classes_is_found_all_the_same(count):
    assert count() == 1
    with pytest.raises(ConfigError, match="heads with another number of classes"):
        count(model__roi_head__bbox_head__num_classes=7)


def test_another_version_checks_again(count, monkeypatch):
    assert count() == 1
    monkeypatch.setattr(checked_data, "__version__", "99")
    assert count() == 1


def test_an_error_is_never_noted(count, data):
    (data / "images/train/00003.png").write_text("no")
    for _ in range(2):
        with pytest.raises(ConfigError, match="not an image"):
            count()


def test_warnings_are_repeated(count, data, capsys):
    path = data / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 3]
    path.write_text(json.dumps(content))
    for expected in (1, 0):
        assert count() == expected
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("warning: ") and "never occur: 'triangle'" in last


def test_files_that_the_note_can_not_see_are_checked_each_time(count, data, tmp_path):
    """Below a folder that is a link, or that the annotation file alone names."""
    (data / "images/train").rename(tmp_path / "elsewhere")
    (data / "images/train").mkdir()
    (data / "images/train/link").symlink_to(tmp_path / "elsewhere")
    path = data / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    for image, folder in zip(content["images"], ["link", tmp_path / "elsewhere"] * 4, strict=True):
        image["file_name"] = f"{folder}/{image['file_name']}"
    path.write_text(json.dumps(content))
    assert (count(), count()) == (1, 1)


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 1}', "\0"])
def test_a_damaged_note_is_none(count, tmp_path, text):
    assert count() == 1
    note = tmp_path / "torch/fcvit_checked_data.json"
    if text == '{"a": 1}':
        text = json.dumps(dict.fromkeys(json.loads(note.read_text()), 1))
    note.write_text(text)
    assert (count(), count()) == (1, 0)


def test_where_no_note_can_be_written_the_check_is_repeated(count, tmp_path):
    (tmp_path / "torch").write_text("a file")
    assert (count(), count()) == (1, 1)


def test_old_notes_make_room(count, tmp_path, monkeypatch):
    monkeypatch.setattr(checked_data, "KEPT", 2)
    assert (count("detection"), count("segmentation")) == (1, 1)
    assert count("detection", train_dataloader__dataset__filter_cfg=None) == 1
    assert len(json.loads((tmp_path / "torch/fcvit_checked_data.json").read_text())) == 2
    assert (count("segmentation"), count("detection")) == (0, 1)
