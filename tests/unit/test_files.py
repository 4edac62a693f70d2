"""Files that are complete or not there, and nothing else destroyed on the way."""

import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mmengine
import pytest
import torch
from mmengine.runner import save_checkpoint

from fcvit_mm.utils.files import atomic_write


def put(path: Path, content: bytes = b"new") -> None:
    with atomic_write(path) as partial:
        partial.write_bytes(content)


def test_many_may_write_one_path(tmp_path):
    path, contents = tmp_path / "a.bin", [bytes([n]) * 100_000 for n in range(100)]
    with ThreadPoolExecutor(8) as executor:
        assert len([*executor.map(lambda content: put(path, content), contents)]) == 100
    assert path.read_bytes() in contents and [*tmp_path.iterdir()] == [path]


def test_a_symbolic_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real/a.bin", tmp_path / "b.bin"
    link.symlink_to(target)
    for content in (b"made", b"replaced"):
        put(link, content)
        assert link.is_symlink() and target.read_bytes() == content
    assert {*tmp_path.iterdir()} == {target.parent, link} and [*target.parent.iterdir()] == [target]


def test_a_file_with_two_names_keeps_both(tmp_path):
    first, second = tmp_path / "a.bin", tmp_path / "b.bin"
    first.write_bytes(b"old")
    os.link(first, second)
    put(second)
    assert first.read_bytes() == second.read_bytes() == b"new" and first.stat().st_nlink == 2


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o200])
def test_the_mode_stays(tmp_path, mode):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    path.chmod(mode)
    with atomic_write(path) as partial:
        assert stat.S_IMODE(partial.stat().st_mode) == mode, "readable by others while written"
        partial.write_bytes(b"new")
    assert stat.S_IMODE(path.stat().st_mode) == mode
    path.chmod(0o600)
    assert path.read_bytes() == b"new"


def test_a_new_file_has_the_mode_of_any_other(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    put(tmp_path / "a.bin")
    assert (tmp_path / "a.bin").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.skipif(
    not hasattr(os, "chown") or os.geteuid() != 0,
    reason="only root may give a file to another user",
)
def test_the_owner_stays(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    os.chown(path, 1234, 2345)
    put(path)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 2345)
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("name", ["n" * 249 + ".pth", "ü" * 125 + ".pth", "a." + "s" * 253])
def test_names_as_long_as_a_file_system_takes(tmp_path, name):
    put(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_pipe_is_written_to_and_stays(tmp_path):
    path, got = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()), daemon=True)
    reader.start()
    put(path)
    reader.join(300)
    assert got == [b"new"] and stat.S_ISFIFO(path.stat().st_mode)


def test_mmengine_writes_checkpoints_alone_this_way(tmp_path, monkeypatch):
    """What it writes else goes to the path itself, as without `fcvit_mm`."""
    checkpoint, other = tmp_path / "a.pth", tmp_path / "a.bin"
    for path in (checkpoint, other):
        path.write_bytes(b"old")
    numbers = {path: path.stat().st_ino for path in (checkpoint, other)}
    save_checkpoint({"state_dict": {"a": torch.ones(2)}}, str(checkpoint))
    mmengine.fileio.put(b"new", str(other))
    assert checkpoint.stat().st_ino != numbers[checkpoint]
    assert other.stat().st_ino == numbers[other] and other.read_bytes() == b"new"
    before = checkpoint.read_bytes()

    def full_disk(path, content):
        os.write(os.open(path, os.O_WRONLY | os.O_CREAT), b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left") as caught:
        save_checkpoint({"state_dict": {}}, str(checkpoint))
    assert caught.value.filename == str(checkpoint)
    assert checkpoint.read_bytes() == before and {*tmp_path.iterdir()} == {checkpoint, other}
