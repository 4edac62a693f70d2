"""Configs and tools travel with the package: built, installed and used far from the repository."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from configparser import ConfigParser
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from mmengine.config import Config

import fcvit_mm
from fcvit_mm.__main__ import main
from fcvit_mm.utils.config import load_config
from fcvit_mm.utils.errors import ConfigError
from helpers import ROOT
from helpers.tools import SHORT, TEST, free_port

DETECTION = "detection/mask_rcnn_fcvit_tiny_shapes.py"
CONFIGS = [str(path.relative_to(ROOT / "configs")) for path in (ROOT / "configs").rglob("*.py")]
# what a wheel is made from
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE", "model-index.yml",
           "fcvit_mm", "configs", "tools")  # fmt: skip


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", *map(str, arguments), "--no-deps", "--quiet"]
    subprocess.run([*command, "--disable-pip-version-check"], check=True)


@pytest.fixture(scope="module", params=["wheel", pytest.param("sdist", marks=pytest.mark.slow)])
def installed(request, tmp_path_factory) -> Path:
    """A directory into which the package was installed from a wheel, or from an sdist."""
    directory = tmp_path_factory.mktemp(request.param)
    # a build leaves files behind, and takes along what an earlier one left
    source = directory / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source)
    if request.param == "sdist":
        build = "from setuptools.build_meta import build_sdist as b; b('.')"
        subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
        (source,) = source.glob("*.tar.gz")
    # build isolation would download setuptools
    pip("install", "--no-build-isolation", "--target", directory / "site", source)
    return directory / "site"


Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def python(installed, example_data) -> Run:
    """Run Python with the installed package, in the directory of the example data."""

    def run(*arguments: object) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=example_data,
            env={**os.environ, "PYTHONPATH": str(installed), "PORT": str(free_port())},
            capture_output=True,
            text=True,
        )

    return run


def contents(*paths: Path) -> dict[str, tuple[bytes, bool]]:
    """What files hold and whether they are executable, by their names below a folder's parent."""
    files = [f for path in paths for f in ([path] if path.is_file() else path.rglob("[!.]*.*"))]
    return {
        str(file.relative_to(paths[0].parent)): (file.read_bytes(), os.access(file, os.X_OK))
        for file in files
        if file.is_file() and "__pycache__" not in file.parts
    }


def test_the_package_holds_the_repositorys_files(installed):
    names = ("configs", "tools", "model-index.yml")
    expected = contents(*(ROOT / name for name in names))
    assert len(expected) > 40
    found = contents(*(installed / "fcvit_mm/.mim" / name for name in names))
    assert found.keys() == expected.keys()
    assert found == expected


@pytest.mark.slow
@pytest.mark.parametrize("installed", ["wheel"], indirect=True)
def test_a_user_without_a_clone_trains_and_tests(python, installed, tmp_path):
    """With the user's own config, and by a shell tool with one of the package itself."""
    config = tmp_path / "mine.py"
    where = '__import__("fcvit_mm").__file__'
    config.write_text(f'_base_ = "fcvit_mm::{DETECTION}"\nwhere = {where}\n')
    work_dir = tmp_path / "work_dir"
    common = ("--work-dir", work_dir, "--cfg-options")
    trained = python("-m", "fcvit_mm", "train", config, *common, *SHORT)
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert Config.fromfile(work_dir / "mine.py").where == str(installed / "fcvit_mm/__init__.py")
    checkpoint = work_dir / "iter_4.pth"
    command = ("dist_test", f"fcvit_mm::{DETECTION}", checkpoint, 1)
    tested = python("-m", "fcvit_mm", *command, *common, *TEST)
    assert tested.returncode == 0, tested.stderr[-3000:]

    def metrics(result: subprocess.CompletedProcess) -> list[str]:
        return re.findall(r"coco/(?:bbox|segm)_mAP: (\S+)", result.stdout)

    assert len(metrics(trained)) == 4 and metrics(tested) == metrics(trained)[2:]


@pytest.mark.official
@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_inherited_as_it_is(name, tmp_path):
    """Leaves and bases, from any directory, without a scope of ours."""
    (tmp_path / "mine.py").write_text(f'_base_ = "fcvit_mm::{name}"\nmine = 1\n')
    inherited = Config.fromfile(tmp_path / "mine.py")._cfg_dict
    assert inherited.pop("mine") == 1
    assert inherited == Config.fromfile(ROOT / "configs" / name)._cfg_dict


@pytest.mark.official
def test_a_program_that_knows_nothing_of_us_reads_our_configs(tmp_path):
    """A `_base_` is read before any `custom_imports`, but as an expression, which may import."""
    expression = f'__import__("fcvit_mm").config_path("{DETECTION}")'
    (tmp_path / "mine.py").write_text(f"_base_ = {expression}\n")
    code = (
        "from mmengine.config import Config\n"
        f"print(Config.fromfile({str(tmp_path / 'mine.py')!r}).model.backbone.type)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1:] == ["FCViT"], result.stderr


def test_the_tools_are_listed_and_a_wrong_one_is_a_sentence(capsys):
    for arguments in ([], ["--help"]):
        main(arguments)
        listed = capsys.readouterr().out
        assert listed.startswith("usage: fcvit TOOL")
    scripts = [path.stem for path in (ROOT / "tools").rglob("[!_]*.*") if path.suffix != ".pyc"]
    assert len(scripts) >= 20
    for name in scripts:
        assert re.search(rf"^  {name} +[A-Z].*\.$", listed, re.MULTILINE)
    with pytest.raises(SystemExit) as stopped:
        main(["trian"])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: unknown tool trian; did you mean train?"


def test_fcvit_is_a_console_script():
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg")
    script = parser["options.entry_points"]["console_scripts"].strip()
    assert EntryPoint(name="fcvit", value=script.partition(" = ")[2], group="").load() is main


def test_a_config_that_is_not_there_is_named(tmp_path):
    for wrong in ("detection/absent.py", "detection", "_base_"):
        with pytest.raises(ConfigError, match=f"fcvit_mm::{wrong}: unknown config"):
            load_config(f"fcvit_mm::{wrong}")
    nearest = "did you mean fcvit_mm::detection/mask_rcnn_fcvit_s12_coco.py"
    with pytest.raises(ConfigError, match=nearest):
        load_config("fcvit_mm::detection/mask_rcn_fcvit_s12_coco.py")
    (tmp_path / "mine.py").write_text('_base_ = "fcvit_mm::detection/absent.py"')
    with pytest.raises(ConfigError, match=r"mine.py .*fcvit_mm::detection/absent.py: unk"):
        load_config(str(tmp_path / "mine.py"))


def test_a_config_of_the_package_as_argument():
    cfg = load_config(f"fcvit_mm::{DETECTION}")
    assert cfg._cfg_dict == load_config(str(ROOT / "configs" / DETECTION))._cfg_dict
    assert cfg.work_dir == "work_dirs/mask_rcnn_fcvit_tiny_shapes"
    assert fcvit_mm.config_path(DETECTION) == cfg.filename


def test_other_packages_configs_are_still_mmengines():
    """`mmdet::` is left to MMEngine, scope included."""
    path, scope = Config._get_cfg_path("mmdet::_base_/default_runtime.py", "mine.py")
    assert Path(path).is_file() and scope == "mmdet"
