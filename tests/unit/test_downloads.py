"""Downloads: by name, from the Hub and from web servers, through everything that goes wrong."""

import io
import json
import os
import random
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from mmengine.runner import CheckpointLoader
from rich.console import Console

from fcvit_mm import CheckpointError, FCViT, read_checkpoint
from fcvit_mm.checkpoint import downloads, reader
from fcvit_mm.checkpoint.downloads import LOCK, RELEASED
from fcvit_mm.checkpoint.reader import fetch
from fcvit_mm.engine.preflight import check_files
from fcvit_mm.utils import cli
from fcvit_mm.utils.config import load_config
from fcvit_mm.utils.errors import ConfigError
from fcvit_mm.utils.files import sha256
from helpers import ROOT
from helpers.hostile import hostile
from helpers.services import Site, serve
from helpers.tools import load_tool

COMMIT, LATER = "a" * 40, "b" * 40
NAME = "fcvit_s12_in1k"


def packed(value: float = 1, size: int = 50_000) -> bytes:
    """A checkpoint with a tensor of one value."""
    file = io.BytesIO()
    torch.save({"state_dict": {"a": torch.full((size,), value)}}, file)
    return file.getvalue()


@pytest.fixture
def site(tmp_path, monkeypatch) -> Iterator[Site]:
    """All services, with a file each; torch's and the Hub's caches are empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(downloads, "PAUSE", 0)
    monkeypatch.setattr(random, "uniform", lambda *_: 0)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    with serve(monkeypatch, tmp_path) as site:
        site.files["/a.pth"] = packed()
        site.files[f"/org/name/{COMMIT}/weights/a.pth"] = packed()
        site.commits["main"] = COMMIT
        put_on_drive(site, {"fcvit_b12.pth.tar": packed(), "log.txt": b"epoch 1"})
        yield site


def put_on_drive(site: Site, files: dict[str, bytes], name: str = NAME) -> None:
    site.drive[RELEASED[name].rpartition("/")[2]] = files


def name_of(service: str, site: Site) -> str:
    hub = f"hf://org/name/weights/a.pth@{COMMIT}"
    return {"web": f"{site.address}/moved/a.pth", "hub": hub, "drive": NAME}[service]


def cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def recorded(lock: Path | None = None) -> dict:
    return json.loads((lock or Path(torch.hub.get_dir()) / LOCK).read_text())


SERVICES = pytest.mark.parametrize("service", ["web", "hub", "drive"])


@SERVICES
def test_each_service_redirects_breaks_and_is_resumed(service, site):
    """The connection breaks twice; the second and third request ask for what is missing."""
    site.breaks = 2
    name = name_of(service, site)
    assert read_checkpoint(name)["state_dict"]["a"].sum() == 50_000
    assert fetch(name).read_bytes() == packed()
    starts = [int(one.removeprefix("bytes=").rstrip("-")) for one in site.ranges]
    size = len(packed())
    assert len(starts) == 2 and size // 2 - 4096 <= starts[0] < starts[1] < size
    assert recorded() == {name: {"size": size, "sha256": sha256(fetch(name))}}
    # the second use needs no network, MMEngine's neither
    asked = len(site.asked)
    assert CheckpointLoader.load_checkpoint(name)["state_dict"]["a"].sum() == 50_000
    assert len(site.asked) == asked


@pytest.mark.parametrize("service", ["web", "drive"])
def test_what_came_of_a_broken_download_is_kept_for_the_next_run(service, site, monkeypatch):
    name = name_of(service, site)
    site.breaks, sleeps = 100, []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(downloads.time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        fetch(name, again=True)
    assert not [*cache().rglob("[!.]*.pth*")]
    site.breaks, before = 0, len(site.ranges)
    assert fetch(name, again=True).read_bytes() == packed()
    (start,) = site.ranges[before:]
    assert int(start.removeprefix("bytes=").rstrip("-")) > len(packed()) * 0.8


@pytest.mark.parametrize("refusals", [2, 3])
def test_a_busy_server_is_asked_three_times(site, refusals):
    site.refusals, name = refusals, f"{site.address}/a.pth"
    if refusals == 2:
        assert fetch(name).read_bytes() == packed()
    else:
        with pytest.raises(CheckpointError, match="HTTPError .*503"):
            fetch(name)
    assert len(site.asked) == 3


@SERVICES
def test_a_stalled_connection_counts_as_broken(service, site, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", 0.3)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    site.stalls, site.pause = 1, 1.5
    assert fetch(name_of(service, site), again=True).read_bytes() == packed()
    assert len(site.ranges) == 1


@SERVICES
def test_a_slow_server_is_waited_for(service, site):
    site.stalls, site.pause = 1, 0.3
    assert fetch(name_of(service, site), again=True).read_bytes() == packed()
    assert not site.ranges


def test_a_file_that_changed_amid_a_download_is_downloaded_anew(site, monkeypatch):
    name, new = name_of("web", site), packed(2)
    site.breaks = 1

    def change(_: float) -> None:
        site.files["/a.pth"] = new

    monkeypatch.setattr(downloads.time, "sleep", change)
    assert fetch(name, again=True).read_bytes() == new and len(site.ranges) == 1


def test_without_ranges_or_tags_a_download_begins_anew(site):
    site.has_ranges, site.breaks = False, 1
    assert fetch(name_of("web", site), again=True).read_bytes() == packed()


def test_a_download_that_was_killed_at_its_end_is_completed(site):
    name = name_of("web", site)
    done = fetch(name)
    left = done.rename(done.with_name(f".partial-{done.name}"))
    tag = sha256(left)
    left.with_name(f"{left.name}.tag").write_text(f'"{tag}"')
    assert fetch(name).read_bytes() == packed() and len(site.ranges) == 1


@SERVICES
def test_what_is_not_there_is_a_sentence(service, site):
    site.files.clear()
    put_on_drive(site, {"log.txt": b""})
    what = {"web": "HTTPError .*404", "hub": "can't be downloaded: .*Not.?Found",
            "drive": f"{RELEASED[NAME]} has no checkpoint"}  # fmt: skip
    with pytest.raises(CheckpointError, match=what[service]) as error:
        fetch(name_of(service, site))
    assert "\n" not in str(error.value)
    # asking again would not help
    assert len({path for _, path, _ in site.asked}) == len(site.asked)


def test_a_quota_of_google_drive_is_a_sentence_with_the_address_for_a_browser(site):
    site.is_over_quota = True
    remedy = f"can't be downloaded: .*Too many users .*in a browser from {RELEASED[NAME]} and give"
    with pytest.raises(CheckpointError, match=remedy):
        fetch(NAME)


def test_a_file_of_a_folder_with_several_is_named(site):
    put_on_drive(site, {"a.pth": packed(1), "a.pth.tar": packed(2), "args.yaml": b""})
    with pytest.raises(CheckpointError, match=rf"has a\.pth, a\.pth\.tar; name one as {NAME}/FILE"):
        fetch(NAME)
    with pytest.raises(CheckpointError, match=r"has a\.pth, a\.pth\.tar; name one"):
        fetch(f"{NAME}/b.pth")
    for name, value in (("a.pth", 1), ("a.pth.tar", 2)):
        site.breaks = 1
        assert fetch(f"{NAME}/{name}").read_bytes() == packed(value)


@SERVICES
def test_a_hostile_file_is_refused_before_it_runs_or_stays(service, site, tmp_path):
    bad = hostile(tmp_path / "bad.pth", tmp_path / "ran", None).read_bytes()
    site.files = dict.fromkeys(site.files, bad)
    put_on_drive(site, {"a.pth": bad})
    name = name_of(service, site)
    with pytest.raises(CheckpointError, match=f"^{name} is refused: besides weights"):
        read_checkpoint(name)
    assert not (tmp_path / "ran").exists()
    # the Hub's cache belongs to its client
    assert not [*cache().rglob("*.pth")]


def test_pretrained_weights_come_by_the_name_of_a_release(site):
    arch = dict(layers=(1,) * 4, dims=(8, 16, 16, 32), mlp_ratios=(2,) * 4)
    weights, file = FCViT(arch).state_dict(), io.BytesIO()
    torch.save({"state_dict": weights, "args": Namespace(lr=1e-3)}, file)
    put_on_drive(site, {"model_best.pth.tar": file.getvalue()}, "fcvit_tiny_in1k")
    model = FCViT(arch, init_cfg=dict(type="Pretrained", checkpoint="fcvit_tiny_in1k"))
    model.init_weights()
    for loaded in (model, FCViT.from_pretrained("fcvit_tiny_in1k")):
        assert all(value.equal(weights[key]) for key, value in loaded.state_dict().items())


def test_a_config_is_checked_with_what_it_names_before_anything_is_built(site):
    put_on_drive(site, {"a.pth": packed()}, "fcvit_tiny_in1k")
    config = str(ROOT / "configs/detection/mask_rcnn_fcvit_tiny_coco.py")
    cfg = load_config(config, {"model.backbone.init_cfg.checkpoint": "fcvit_tiny_in1k"})
    check_files(cfg, ())
    assert (cache() / "fcvit_tiny_in1k/a.pth").read_bytes() == packed()
    cfg.model.backbone.init_cfg.checkpoint = f"{site.address}/b.pth"
    with pytest.raises(ConfigError, match=r"b\.pth can't be downloaded: .*\. To start from random"):
        check_files(cfg, ())


def test_only_the_first_process_of_a_machine_downloads(site, monkeypatch):
    monkeypatch.setattr(reader, "get_local_rank", lambda: 1)
    with pytest.raises(CheckpointError, match="not downloaded by this machine's first process"):
        fetch(NAME)
    assert not site.asked


@pytest.mark.parametrize("service", ["web", "drive"])
def test_a_terminal_shows_how_much_has_come(service, site, monkeypatch):
    shown = io.StringIO()
    terminal = partial(Console, file=shown, force_terminal=True, width=200)
    monkeypatch.setattr(downloads, "Console", lambda **_: terminal())
    fetch(name_of(service, site))
    assert "100%" in shown.getvalue() and "401.6/401.6 kB" in shown.getvalue()


# ------------------------------------------------------------------------------------- offline


def test_the_hub_offline_works_from_its_cache_or_is_a_sentence(site, monkeypatch):
    name = "hf://org/name/weights/a.pth"
    fetch(name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(site.asked)
    assert fetch(name, again=True).read_bytes() == packed()
    assert len(site.asked) == asked
    with pytest.raises(CheckpointError, match="b.pth can't be downloaded: .*HF_HUB_OFFLINE"):
        fetch("hf://org/name/b.pth")


@SERVICES
def test_without_a_network_what_is_in_the_cache_works(service, site):
    name = name_of(service, site)
    fetch(name, again=True)
    site.stop()
    assert fetch(name, again=True).read_bytes() == packed()


@SERVICES
def test_without_a_network_what_is_not_in_the_cache_is_a_sentence(service, site, monkeypatch):
    site.stop()
    # the Hub's client waits between its tries
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(CheckpointError, match=r"can't be downloaded: \w*Error .*refused"):
        fetch(name_of(service, site))


# ---------------------------------------------------------------------------------------- lock


def test_another_file_than_at_its_first_use_is_refused(site):
    """A branch has moved on; the commit that it was at works."""
    name = "hf://org/name/weights/a.pth@main"
    fetch(name, again=True)
    site.files[f"/org/name/{LATER}/weights/a.pth"] = packed(2)
    site.commits["main"] = LATER
    with pytest.raises(CheckpointError, match=rf"main: .* another file than .*{LOCK} has recorded"):
        read_checkpoint(name)
    assert fetch(name.replace("main", COMMIT), again=True).read_bytes() == packed()


def test_a_cached_file_that_changed_is_refused(site):
    name = name_of("web", site)
    path = fetch(name, again=True)
    path.write_bytes(packed(2))
    with pytest.raises(CheckpointError, match=f"{path} is another file than at its first use"):
        read_checkpoint(name)
    path.unlink()
    assert read_checkpoint(name)["state_dict"]["a"].sum() == 50_000


def test_a_lock_file_of_the_project_is_compared_with_and_added_to(site):
    """As a colleague has committed it."""
    name = name_of("web", site)
    entry = {"size": 3, "sha256": "0" * 64}
    Path(LOCK).write_text(json.dumps({name: entry}))
    with pytest.raises(CheckpointError, match=f"which {LOCK} has recorded"):
        fetch(name, again=True)
    Path(LOCK).write_text("{}")
    fetch(name, again=True)
    assert recorded(Path(LOCK)) == recorded() and [*recorded()] == [name]
    for text, problem in (("<<<<<<< HEAD", "can't be read"), ("[]", "is no map of names")):
        Path(LOCK).write_text(text)
        with pytest.raises(CheckpointError, match=f"^{LOCK} {problem}.*mend or delete it"):
            fetch(name, again=True)


def test_a_lock_file_that_can_not_be_written_is_a_warning(site, monkeypatch):
    """As in a container whose caches are read-only."""
    said: list[str] = []
    monkeypatch.setattr(downloads, "write_json", lambda *_: os.stat("absent"))
    monkeypatch.setattr(downloads, "print_log", lambda text, *_: said.append(text))
    assert fetch(name_of("web", site), again=True).read_bytes() == packed()
    assert len(said) == 1 and f"{LOCK} can't be written: " in said[0]


def test_several_may_ask_for_a_file_at_once(site):
    """As trainings of several machines with one home do; it is sent once."""
    name, found = name_of("web", site), []
    site.stalls, site.pause = 1, 0.3
    threads = [threading.Thread(target=lambda: found.append(fetch(name))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({*found}) == 1 and len(found) == 4 and found[0].read_bytes() == packed()
    assert len([path for _, path, _ in site.asked if path == "/a.pth"]) == 1


# ----------------------------------------------------------------------------------- what is said


@pytest.mark.parametrize("name", ["hf://org/a.pth", "hf://org/name", "hf://org/name/a.pth@"])
def test_what_is_no_name_of_the_hub_is_a_sentence(name, site):
    with pytest.raises(CheckpointError, match="must be hf://ORG/REPO/FILE or .*@REVISION"):
        fetch(name)


@pytest.mark.parametrize(("service", "package"), [("hub", "huggingface_hub"), ("drive", "gdown")])
def test_a_missing_package_is_a_sentence_with_its_command(service, package, site, monkeypatch):
    monkeypatch.setattr(cli, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=rf"needs {package}.*pip install 'fcvit-mm\[hub\]'"):
        fetch(name_of(service, site))


def test_the_tool_downloads_records_and_copies(site, capsys):
    tool = load_tool("download")
    tool.main(["b12", "--out", "pretrained/fcvit_s12.pth"])
    said = capsys.readouterr().out
    assert Path("pretrained/fcvit_s12.pth").read_bytes() == packed()
    assert said.startswith(f"{NAME}: 0.4 MB, SHA-256 {sha256('pretrained/fcvit_s12.pth')}, is ")
    assert [*recorded(Path(LOCK))] == [NAME] and LOCK in said
    Path(LOCK).unlink()
    assert cli.run_tool(tool.main, ["s24"]) == 2 and not Path(LOCK).exists()
    capsys.readouterr()
    assert cli.run_tool(tool.main, ["s13"]) == 2
    assert capsys.readouterr().err.startswith("error: s13 is unknown; there are tiny, s12, ")
