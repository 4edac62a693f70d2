"""Trainings that are killed, or that find no room, and go on with --resume."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from fcvit_mm import CheckpointError, engine, read_checkpoint
from fcvit_mm.analysis import logs
from fcvit_mm.engine import resume
from fcvit_mm.utils.config import load_config
from fcvit_mm.utils.files import PARTIAL
from helpers import ROOT, processes, warm
from helpers.processes import assert_equal_runs, children, losses, partials, said
from helpers.tools import free_port
from helpers.trainings import (
    BY_EPOCHS,
    BY_ITERATIONS,
    ITERATIONS,
    METHODS,
    NO_WORKERS,
    OPTIONS,
    SEGMENTATION,
    SMALL,
)

# How many kills the training of `test_random_kills` must survive; KILLS=20 is the slow mode.
KILLS = int(os.environ.get("KILLS", "2"))
# Configs by epochs and by iterations, options, and the checkpoints of either.
KILLED = {
    "epochs": (BY_EPOCHS, ["randomness.seed=3"], [f"epoch_{i}.pth" for i in (1, 2, 3, 4)]),
    "iterations": (
        BY_ITERATIONS,
        METHODS["segmentation"][1],
        [f"iter_{i}.pth" for i in (2, 4, 6, 8)],
    ),
}


# seconds that nothing takes, however busy the machine
PATIENCE = 600


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def kill(process: BaseProcess, moment: Callable[[], bool]) -> bool:
    """SIGKILL a training at a moment, which its loader's workers end with; False if it ended."""
    while process.exitcode is None:
        if moment():
            assert process.pid is not None
            workers = children(process.pid)
            process.kill()
            process.join()
            end = time.monotonic() + PATIENCE
            while any(alive(worker) for worker in workers):
                assert time.monotonic() < end, "loader workers outlive the training"
                time.sleep(0.01)
            return process.exitcode == -signal.SIGKILL
        time.sleep(0.001)
    return False


@pytest.mark.slow
@pytest.mark.official
@pytest.mark.parametrize("method", ["epochs", "iterations"])
def test_random_kills(example_data, tmp_path, method):
    """Every second one while a checkpoint is written, the others at any time."""
    whole, killed, config = tmp_path / "whole", tmp_path / "killed", tmp_path / "config.py"
    text, options, checkpoints = KILLED[method]
    config.write_text(text)
    warm.ready()
    began = time.monotonic()
    processes.train(example_data, whole, config, options)
    duration = time.monotonic() - began
    draw = random.Random(method)
    kills, amid = 0, 0
    for _ in range(3 * KILLS + 3):
        process = processes.start(example_data, killed, config, options, "--resume")
        if kills < KILLS and kills % 2 == 0:
            written = killed / draw.choice(checkpoints)
            partial = PARTIAL.format(stem=written.stem, unique="*", suffix=".pth")

            def half_written(partial: str = partial) -> bool:
                return any(killed.glob(partial))

            if kill(process, half_written):
                kills, amid = kills + 1, amid + half_written()
                continue
        elif kills < KILLS:
            end = time.monotonic() + draw.uniform(0, duration)

            def moment(end: float = end) -> bool:
                return time.monotonic() > end

            if kill(process, moment):
                kills += 1
                continue
        process.join()
        assert process.exitcode == 0, said(killed).read_text()[-3000:]
        assert_equal_runs(killed, whole, checkpoints[-1])
        if kills == KILLS:
            break
        shutil.rmtree(killed)
    assert kills == KILLS and amid, f"{kills} kills, {amid} of them amid the writing of a file"
    print(f"{method}: {kills} kills, {amid} of them left a half-written checkpoint")


@pytest.fixture(scope="module")
def kept(example_data, tmp_path_factory) -> Path:
    """A finished training without a seed, all of its checkpoints."""
    work_dir = tmp_path_factory.mktemp("kept") / "run"
    options = [*OPTIONS, *NO_WORKERS, *SMALL, "default_hooks.checkpoint.max_keep_ckpts=-1"]
    processes.train(example_data, work_dir, SEGMENTATION, options)
    return work_dir


def interrupted(kept: Path, work_dir: Path, *steps: int) -> None:
    """A work directory with some of the checkpoints."""
    work_dir.mkdir()
    for step in steps:
        shutil.copy2(kept / f"iter_{step}.pth", work_dir)
    (work_dir / "last_checkpoint").write_text(str(work_dir / f"iter_{steps[-1]}.pth"))


@pytest.mark.official
def test_damaged_checkpoints_are_named_and_passed_over(example_data, kept, tmp_path):
    """The one before goes on as the whole training did, whose seed nobody had set."""
    work_dir = tmp_path / "run"
    interrupted(kept, work_dir, 2, 4, 6, 8)
    truncated, flipped = work_dir / "iter_6.pth", work_dir / "iter_8.pth"
    os.truncate(truncated, truncated.stat().st_size // 2)
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    for step, path in enumerate([truncated, flipped]):
        os.utime(path, (time.time() + step, time.time() + step))
    left = work_dir / PARTIAL.format(stem="iter_10", unique="0", suffix=".pth")
    left.write_bytes(b"half")
    # two loader workers, which the first four iterations were done without
    processes.train(example_data, work_dir, SEGMENTATION, [*OPTIONS, *SMALL], "--resume")
    warnings = [line for line in said(work_dir).read_text().splitlines() if "warning: " in line]
    assert len(warnings) == 2 and all("iter_4.pth is taken in its place" in w for w in warnings)
    assert "iter_8.pth is damaged" in warnings[0] and "CRC-32" in warnings[0]
    assert "iter_6.pth is damaged" in warnings[1]
    again, before = losses(work_dir), losses(kept)
    assert again == {step: before[step] for step in (5, 6, 7, 8)}
    # the one after the fourth iteration might have been cut off
    for run in (work_dir, kept):
        assert [step for step, _ in logs.read_run(run).series("mIoU")] == [4, 8]
    assert logs.read_run(work_dir).series("mIoU") == logs.read_run(kept).series("mIoU")
    assert not left.exists()


def test_where_no_checkpoint_can_be_used(kept, tmp_path, capsys):
    cfg = load_config(str(SEGMENTATION), work_dir=str(tmp_path / "run"))
    assert resume.newest(cfg) is None
    interrupted(kept, tmp_path / "run", 2, 4)
    for path in resume.checkpoints(cfg):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*run can be used: .*is empty"):
        resume.newest(cfg)
    # weights alone, and what MMEngine keeps as the best
    alone, (best,) = tmp_path / "alone.pth", kept.glob("best_mIoU_*.pth")
    torch.save({"state_dict": read_checkpoint(best)["state_dict"]}, alone)
    cfg.resume = True
    for path in (alone, best):
        cfg.load_from = str(path)
        with pytest.raises(CheckpointError, match=r"\.pth holds no training to go on.*load_from="):
            engine.train(cfg)


def test_a_machine_that_does_not_see_the_checkpoint_says_so(tmp_path, monkeypatch):
    cfg = load_config(str(SEGMENTATION), {"resume": True}, work_dir=str(tmp_path))
    monkeypatch.setattr(resume, "run_on_main_process", lambda _: "absent/iter_2.pth")
    with pytest.raises(CheckpointError, match=r"absent/iter_2\.pth lies on the first machine"):
        engine.train(cfg)


def test_the_checkpoint_written_last_is_the_newest(tmp_path):
    """A training in the directory of an earlier, longer one has lower numbers."""
    cfg = Config(dict(work_dir=str(tmp_path / "run")))
    for hook, folder, names in (
        (dict(by_epoch=False), "run", ["iter_500.pth", "iter_2.pth"]),
        (dict(), "run", ["epoch_9.pth", "epoch_10.pth"]),
        (dict(out_dir=str(tmp_path / "out")), "out/run", ["epoch_1.pth", "epoch_2.pth"]),
        (dict(filename_tmpl="at_{:03d}.pt"), "run", ["at_001.pt", "at_000.pt"]),
    ):
        cfg.default_hooks = dict(checkpoint=hook)
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for when, name in enumerate(names):
            (tmp_path / folder / name).touch()
            os.utime(tmp_path / folder / name, (when, when))
        assert [path.name for path in resume.checkpoints(cfg)] == names[::-1]


def test_the_only_checkpoint_is_not_deleted_before_the_next(tmp_path):
    options = {"default_hooks.checkpoint.max_keep_ckpts": 1}
    cfg = load_config(str(SEGMENTATION), options, work_dir=str(tmp_path))
    (line,) = resume.keep_enough(cfg)
    assert cfg.default_hooks.checkpoint.max_keep_ckpts == 2 and "deletes the only" in line
    assert not resume.keep_enough(cfg)


@pytest.mark.official
def test_a_full_disk(example_data, kept, tmp_path):
    work_dir = tmp_path / "run"
    interrupted(kept, work_dir, 2, 4)
    before = (work_dir / "iter_4.pth").read_bytes()
    process = processes.start(
        example_data, work_dir, SEGMENTATION, [*OPTIONS, *NO_WORKERS, *SMALL], "--resume",
        largest_file=1_000_000,
    )  # fmt: skip
    process.join()
    output = said(work_dir).read_text()
    assert process.exitcode == 2 and "Traceback" not in output
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert re.search(
        r"iter_6\.pth can't be written: File too large; .*iter_4\.pth is whole.*--resume", line
    )
    assert (work_dir / "iter_4.pth").read_bytes() == before and not partials(work_dir)


# ------------------------------------------------------------------------- several processes

TOGETHER = [*OPTIONS, *NO_WORKERS, *SMALL, "randomness.seed=3"]


def launch(
    directory: Path, work_dir: Path, gpus: int, *words: str, **environment: str
) -> subprocess.Popen:
    command = [ROOT / "tools/dist_train.sh", SEGMENTATION, gpus, "--work-dir", work_dir, *words]
    return subprocess.Popen(
        [*map(str, command), "--cfg-options", *TOGETHER],
        cwd=directory,
        env={**os.environ, "PYTHON": sys.executable, "ON_CPU": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_one_of_two_processes_is_killed_and_two_machines_go_on(example_data, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    processes.train(example_data, whole, SEGMENTATION, TOGETHER, processes=2)
    training = launch(example_data, killed, 2, PORT=str(free_port()))
    while not (killed / "iter_2.pth").exists():
        assert training.poll() is None, training.communicate()[0][-3000:]
        time.sleep(0.01)
    both = children(training.pid)
    assert len(both) == 2
    os.kill(both[1], signal.SIGKILL)
    output, _ = training.communicate(timeout=PATIENCE)
    assert training.returncode == 1, output[-3000:]
    assert not (killed / "iter_8.pth").exists()
    assert not [process for process in both if alive(process)]

    port = str(free_port())
    machines = [
        launch(example_data, killed, 1, "--resume", PORT=port, NNODES="2", NODE_RANK=rank)
        for rank in ("0", "1")
    ]
    for machine in machines:
        output, _ = machine.communicate(timeout=PATIENCE)
        assert machine.returncode == 0, output[-3000:]
    assert losses(killed) == losses(whole) and len(losses(whole)) == ITERATIONS
    # BatchNorm's running statistics are each process's own, and the checkpoint's the first one's
    ours, theirs = (
        {
            key: value
            for key, value in read_checkpoint(path / "iter_8.pth")["state_dict"].items()
            if not key.endswith(("running_mean", "running_var"))
        }
        for path in (killed, whole)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
