"""Images in shards: split over processes, killed, resumed and merged; see fcvit_mm.apis.batch."""

import fcntl
import json
import os
import signal
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import save_checkpoint

from fcvit_mm.apis import batch, inference, sources
from fcvit_mm.apis.predictor import Predictor
from fcvit_mm.apis.result import Result
from fcvit_mm.datasets import shapes
from fcvit_mm.utils.cli import run_tool
from fcvit_mm.utils.config import load_config
from fcvit_mm.utils.errors import ConfigError, ShardError
from helpers import ROOT, warm
from helpers.images import make_image
from helpers.models import CONFIGS
from helpers.tools import load_tool

SETTINGS = {"checkpoint": "a.pth"}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder with eight images, two with names that differ in their ending, and a text."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "b").mkdir()
    for i, name in enumerate(["a.png", "a.jpg", "b/a.png", "b/b.png", "b.png", "c.png", "d.png"]):
        cv2.imwrite(str(folder / name), make_image(i))
    (folder / "b/c.jpg").write_text("no image\n")
    cv2.imwrite(str(folder / "e.png"), make_image(8, 40, 56))
    return folder


class Spy:
    """A predictor that counts images, and that Ctrl-C reaches at one of its calls."""

    def __init__(self, predictor: Predictor, interrupted_at: int = 0) -> None:
        self.predictor, self.interrupted_at = predictor, interrupted_at
        self.calls = self.predicted = 0

    def __getattr__(self, name: str):
        return getattr(self.predictor, name)

    def __call__(self, images, **options):
        self.calls += 1
        if self.calls == self.interrupted_at:
            raise KeyboardInterrupt
        self.predicted += len(images)
        return self.predictor(images, **options)


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder, but for those of the shards."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and batch.FOLDER not in path.parts and path.name != batch.UNREADABLE
    }


# ------------------------------------------------------------------------ the same results


@pytest.mark.parametrize("scope", CONFIGS)
def test_killed_and_resumed_shards_give_the_files_of_a_run_of_one_process(
    predictors, images, tmp_path, scope
):
    """Begun by three processes, of which the last is stopped and the first never comes."""
    predictor = predictors[scope]
    found = sources.find_sources([str(images)], tmp_path / "whole")
    inference.run(predictor, found, tmp_path / "whole", threshold=0.0)
    out = tmp_path / "split"
    run: dict[str, Any] = dict(inputs=[str(images)], out=out, settings=SETTINGS, threshold=0.0)
    batch._begin([str(images)], out, SETTINGS, processes=3)
    spies: list[Any] = [Spy(predictor), Spy(predictor, interrupted_at=2), Spy(predictor)]
    assert batch.run(spies[0], rank=1, processes=3, **run) == []
    with pytest.raises(KeyboardInterrupt, match="goes on"):
        batch.run(spies[1], rank=2, processes=3, **run)
    with (out / "shards/00002.jsonl").open("a") as file:
        file.write('{"image": {"id": 0, "file_na')
    # what came after the list was made does not matter
    lines = batch.run(spies[2], rank=0, processes=1, **run)
    assert [spy.predicted for spy in spies] == [2, 1, 5]
    assert contents(out) == contents(tmp_path / "whole")
    assert lines[-1] == f"no prediction for 1 images: {out / 'unreadable.txt'}"
    (sentence,) = (out / "unreadable.txt").read_text().splitlines()
    assert sentence.startswith(f"{images / 'b/c.jpg'} is not an image")
    # again: nothing is left to do
    spy: Any = Spy(predictor)
    assert batch.run(spy, rank=0, processes=2, **run) == lines
    assert spy.calls == 0 and contents(out) == contents(tmp_path / "whole")


def test_an_image_that_the_pipeline_refuses_does_not_stop_its_batch(
    predictors, images, tmp_path, monkeypatch
):
    prepare = Predictor.prepare

    def refuse(self: Predictor, image: np.ndarray) -> dict:
        if image.shape[:2] == (56, 40):
            raise ConfigError("it is too odd")
        return prepare(self, image)

    monkeypatch.setattr(Predictor, "prepare", refuse)
    batch.run(
        predictors["mmpretrain"], [str(images)], tmp_path, SETTINGS, batch_size=20, draw=False
    )
    content = json.loads((tmp_path / "classes.json").read_text())["images"]
    assert [Path(image["file_name"]).name for image in content] == [
        "a.jpg", "a.png", "a.png", "b.png", "b.png", "c.png", "d.png"
    ]  # fmt: skip
    sentences = (tmp_path / "unreadable.txt").read_text().splitlines()
    assert sentences[1] == f"{images / 'e.png'}: it is too odd"
    assert not (tmp_path / "drawn").exists()


# --------------------------------------------------------------------------- what is read


def test_images_of_a_folder_are_those_of_a_run_of_one_process(images, tmp_path):
    found = [*sources.iter_images([str(images)], tmp_path)]
    assert found == sources.find_sources([str(images)], tmp_path) and len(found) == 9
    assert [str(source.name) for source in found] == [
        "a.jpg", "a_2.png", "b/a.png", "b/b.png", "b/c.jpg", "b.png", "c.png", "d.png", "e.png"
    ]  # fmt: skip


def test_a_list_names_images_whose_results_do_not_collide(images, tmp_path, monkeypatch):
    monkeypatch.chdir(images)
    listed = tmp_path / "images.txt"
    listed.write_text(f"a.png\r\n{images}/b/../a.jpg\n\nclip.avi\n")
    found = sources.find_sources([str(listed)], tmp_path / "out")
    below = images.relative_to("/")
    assert [(source.path, source.name, source.moving) for source in found] == [
        ("a.png", below / "a.png.png", False),
        (f"{images}/b/../a.jpg", below / "a.jpg.png", False),
        ("clip.avi", below / "clip.avi.png", True),
    ]
    with pytest.raises(ConfigError, match="clip.avi is a video"):
        [*sources.iter_images([str(listed)], tmp_path)]
    listed.write_text("\n")
    with pytest.raises(ConfigError, match="the list has no images"):
        sources.find_sources([str(listed)], tmp_path / "out")


class Classifier:
    """Stands in for a Predictor, and takes no time."""

    task, classes = "classification", ("a", "b")

    def __call__(self, images: Sequence[np.ndarray], **_) -> list[Result]:
        scores, labels = np.array([0.75, 0.25], np.float32), np.array([0, 1])
        colors = [(0, 0, 0), (255, 255, 255)]
        return [Result(image, self.classes, colors, None, scores, labels) for image in images]


def test_memory_does_not_grow_with_the_number_of_images(images, tmp_path):
    def peak(number: int) -> int:
        listed = tmp_path / f"{number}.txt"
        listed.write_text(f"{images / 'e.png'}\n" * number)
        tracemalloc.start()
        lines = batch.run(
            Classifier(),  # type: ignore[arg-type]
            [str(listed)], tmp_path / str(number), SETTINGS, batch_size=10, draw=False,
        )  # fmt: skip
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert lines == [f"classes of {number} images: {tmp_path / str(number) / 'classes.json'}"]
        return most

    peak(10)
    few, many = peak(300), peak(1500)
    assert many < few + 60_000


# ------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a.png"], ["a.png: with --resume, and under torchrun, the input is one folder"]),
        (["b", "b"], ["b b: with --resume"]),
        (["empty"], ["the folder has no images"]),
        (["b", "--track"], ["--track and --max-frames are for videos"]),
        (["b", "--classes", "sqare"], ["no class 'sqare'"]),
        (["texts"], ["no image can be predicted for: ", "is not an image"]),
        (["b", "--out", "a.png"], ["--out a.png can't be written"]),
        (["b", "--out", "begun", "--overlap", "0.4"], ["was begun with overlap=0.2, not 0.4"]),
    ],
)
def test_wrong_input_is_one_sentence(
    weights, images, tmp_path, monkeypatch, capsys, arguments, words
):
    for name in ("empty", "texts"):
        (tmp_path / name).mkdir()
    (tmp_path / "texts/a.jpg").write_text("no image\n")
    for name in ("a.png", "b"):
        (tmp_path / name).symlink_to(images / name)
    monkeypatch.chdir(tmp_path)
    infer = load_tool("infer").main
    command = [str(CONFIGS["mmpretrain"]), weights["mmpretrain"], "--no-draw", "--resume"]
    if "begun" in arguments:
        assert run_tool(infer, [*command, "b", "--out", "begun"]) == 0
    assert run_tool(infer, [*command, "--out", "found", *arguments]) == 2
    error = capsys.readouterr().err
    assert [line for line in error.splitlines() if line.startswith("error: ")]
    for word in words:
        assert word in error


def test_a_shard_that_another_process_still_writes_is_left_alone(predictors, images, tmp_path):
    """As one does whose torchrun was killed."""
    batch._begin([str(images)], tmp_path, SETTINGS, processes=2)
    with (tmp_path / "shards/00001.jsonl").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ShardError, match="another process is still writing .*00001.jsonl"):
            batch.run(predictors["mmpretrain"], [str(images)], tmp_path, SETTINGS, 1, 2)
    assert (tmp_path / "shards/00001.jsonl").read_text() == ""


def test_what_ends_one_process_alone_is_said_by_it(monkeypatch, capsys):
    """Other errors are said by the first process of a machine, for all."""
    monkeypatch.setenv("LOCAL_RANK", "3")

    def fail(_) -> None:
        raise ShardError("the disk is full")

    assert run_tool(fail, []) == 2
    assert "error: the disk is full" in capsys.readouterr().err


# ------------------------------------------------------------------ processes that are killed


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> list[Path]:
    """A config and a checkpoint of the smallest classifier."""
    folder = tmp_path_factory.mktemp("classifier")
    config, checkpoint = folder / "smallest.py", folder / "smallest.pth"
    config.write_text(
        f"_base_ = {str(CONFIGS['mmpretrain'])!r}\n"
        "model = dict(backbone=dict(arch=dict(_delete_=True, layers=(1,) * 4, "
        "dims=(8, 16, 16, 32), mlp_ratios=(2,) * 4)), head=dict(in_channels=32))\n"
    )
    cfg = Config.fromfile(config)
    init_default_scope("mmpretrain")
    state = MODELS.build(cfg.model).state_dict()
    meta = {"dataset_meta": {"classes": shapes.CLASSES}}
    save_checkpoint({"state_dict": state, "meta": meta}, str(checkpoint))
    return [config, checkpoint]


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """A folder with 2,000 small images in two folders."""
    folder = tmp_path_factory.mktemp("many")
    random = np.random.default_rng(0)
    for i in range(2000):
        path = folder / f"{i % 2}/{i:04}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), random.integers(0, 255, (32, 32, 3), np.uint8))
    return folder


@pytest.fixture
def started() -> Iterator[list[BaseProcess]]:
    """Processes that end with the test."""
    processes: list[BaseProcess] = []
    yield processes
    for process in processes:
        process.kill()


def start(words: Sequence[object], directory: Path, processes: int) -> list[BaseProcess]:
    """Start `fcvit infer` in several processes, as torchrun does."""
    common = {**os.environ, "WORLD_SIZE": str(processes)}
    return [
        warm.start(
            [ROOT / "tools/demos/infer.py", *words],
            directory,
            directory / "said.txt",
            environment={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(processes)
    ]


def have_ended(processes: Sequence[BaseProcess]) -> bool:
    return all(process.exitcode is not None for process in processes)


def wait_for(is_so: Callable[[], bool], directory: Path) -> None:
    end = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < end, (directory / "said.txt").read_text()[-3000:]
        time.sleep(0.02)


@pytest.mark.slow
def test_four_processes_that_are_killed_leave_no_image_out_and_do_none_twice(
    classifier, many, tmp_path, started
):
    out = tmp_path / "found"
    words = [*classifier, many, "--out", out, "--no-draw", "--batch-size", 5]

    def written() -> list[bytes]:
        """What is complete of each shard."""
        files = [path.read_bytes() for path in sorted((out / "shards").glob("0*.jsonl"))]
        return [content[: content.rfind(b"\n") + 1] for content in files]

    def number() -> int:
        return sum(content.count(b"\n") for content in written())

    def are_at_work(most: int) -> bool:
        grown = [
            len(now) > len(then) or now.count(b"\n") == 500
            for now, then in zip(written(), before, strict=False)
        ]
        return grown == [True] * 4 and number() >= most

    before: list[bytes] = [b""] * 4
    for most, ended in ((500, -signal.SIGKILL), (1100, 128 + signal.SIGTERM)):
        running = start(words, tmp_path, 4)
        started += running
        wait_for(partial(are_at_work, most), tmp_path)
        # torchrun, too, ends the others once one has been killed
        running[0].kill()
        for process in running[1:]:
            process.kill() if ended == -signal.SIGKILL else process.terminate()
        wait_for(partial(have_ended, running), tmp_path)
        # those that had done their part are gone; the first waits for them
        statuses = [process.exitcode for process in running]
        assert statuses[0] == -signal.SIGKILL and {*statuses[1:]} <= {ended, 0}
        assert number() < 2000 and not (out / "classes.json").exists()
        now = written()
        assert all(a.startswith(b) for a, b in zip(now, before, strict=True))
        before = now
    # one machine less
    running = start(words, tmp_path, 2)
    started += running
    wait_for(partial(have_ended, running), tmp_path)
    output = (tmp_path / "said.txt").read_text()
    assert [process.exitcode for process in running] == [0, 0], output[-3000:]
    assert output.count(f"classes of 2000 images: {out / 'classes.json'}") == 1
    assert all(a.startswith(b) for a, b in zip(written(), before, strict=True))
    content = json.loads((out / "classes.json").read_text())["images"]
    assert [entry["id"] for entry in content] == [*range(1, 2001)]
    names = [entry["file_name"] for entry in content]
    assert names == sorted(str(path) for path in many.rglob("*.png"))
    assert Counter(names).most_common(1)[0][1] == 1
    predictor = Predictor(load_config(str(classifier[0])), str(classifier[1]))
    for entry in content[::200]:
        found = predictor(entry["file_name"]).to_table()
        assert [row["class"] for row in found[:1]] == [entry["classes"][0]["class"]]
        assert found[0]["score"] == pytest.approx(entry["classes"][0]["score"], rel=1e-4)


@pytest.mark.slow
def test_torchrun_starts_the_command_as_the_page_says(classifier, images, tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    infer = ["-m", "fcvit_mm", "infer", *classifier, images, "--out", "found", "--no-draw"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = warm.run([*torchrun, *infer], tmp_path, environment)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "classes of 8 images: found/classes.json" in result.stdout
    shards = sorted((tmp_path / "found/shards").glob("0*.jsonl"))
    assert [len(path.read_text().splitlines()) for path in shards] == [5, 4]
