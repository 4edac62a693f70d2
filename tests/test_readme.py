"""README's commands and code are run, its links and tables are checked."""

import ast
import inspect
import os
import re
import shlex
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest
from conftest import ROOT

from fcvit_mm import FCViT
from fcvit_mm.arch import ARCHS
from fcvit_mm.runtime import RELEASED_WEIGHTS

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
PYTHON = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [
    line.split("  #")[0].strip()
    for language, text in BLOCKS
    if language == "bash"
    for line in text.splitlines()
]


def kind(name: str) -> list[str]:
    return [command for command in COMMANDS if re.search(name, command)]


def test_every_block_and_command_is_of_a_kind_that_is_tested_below():
    assert {language for language, _ in BLOCKS} == {"bash", "python", "text"}
    tested = kind("^make ") + kind("^pip install") + kind("tools/")
    assert sorted(COMMANDS) == sorted(tested) and len(COMMANDS) >= 10
    assert len(PYTHON) == 3


def test_the_config_of_the_first_screen_builds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(PYTHON[0])
    scope: dict = {}
    exec(PYTHON[1], scope)
    model = scope["model"]
    assert isinstance(model.backbone, FCViT)
    assert model.neck.in_channels == list(model.backbone.out_channels)


def test_the_example_of_the_backbone_prints_what_it_says(capsys):
    scope: dict = {}
    exec(PYTHON[2], scope)
    printed = capsys.readouterr().out.strip()
    assert f"# {printed}\n" in PYTHON[2]
    assert [tuple(f.shape) for f in scope["features"]] == [
        (1, 64, 56, 56), (1, 128, 28, 28), (1, 320, 14, 14), (1, 512, 7, 7)
    ]  # fmt: skip


@pytest.mark.parametrize("command", kind("^make ") + re.findall(r"`(make [^`]+)`", README))
def test_make_targets_exist(command):
    result = subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True)
    assert result.returncode == 0


def test_extras_exist():
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg")
    named = re.findall(r"'\.\[([\w-]+)\]'", README)
    assert len(named) == 2 and set(named) <= parser["options.extras_require"].keys()


@pytest.mark.parametrize("command", kind(r"tools/(train|test|dist)"))
def test_tools_get_as_far_as_the_missing_weights_or_data(tool, command):
    """There is no COCO, ADE20K or ImageNet weights where tests run: the tools say so, status 2."""
    words = [word for word in shlex.split(command) if word != "python"]
    # The other machine is not there: the command is tried for one.
    words = [word for word in words if not re.match("(NNODES|NODE_RANK|MASTER_ADDR|PORT)=", word)]
    name = words[0].removeprefix("tools/")
    if name.startswith("dist_"):
        gpus = 2 if name == "dist_train.sh" else 3
        words[gpus] = "1"
    arguments = [ROOT / word if word.startswith("configs/") else word for word in words[1:]]
    assert all(a.is_file() for a in arguments if isinstance(a, Path))
    result = tool(name, *arguments)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    errors = re.findall(r"^error: (.*)", result.stderr, re.MULTILINE)
    assert len(errors) == 1
    assert re.search("pretrained weights|no such checkpoint file", errors[0])


@pytest.mark.parametrize("command", kind("tools/slurm"))
def test_slurm_commands_reach_srun(command, tmp_path):
    srun = tmp_path / "srun"
    srun.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    result = subprocess.run(
        shlex.split(command),
        cwd=ROOT,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    config = shlex.split(command)[3]
    assert config in result.stdout.splitlines() and (ROOT / config).is_file()


def test_the_argument_table_is_the_signature():
    table = README.split("| argument |")[1].split("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \|", table, re.MULTILINE))
    parameters = inspect.signature(FCViT).parameters
    defaults = {name: ast.literal_eval(text) for name, text in rows.items()}
    assert defaults == {name: parameter.default for name, parameter in parameters.items()}


def test_links_to_files_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(links) > 4 and all((ROOT / link).exists() for link in links)


def test_the_table_of_weights_has_the_channels_of_the_arch_table():
    rows = re.findall(r"^\| (\w+) \|[ \w]*\| ([\d, ]+) \|", README, re.MULTILINE)
    assert {name: ast.literal_eval(f"({dims})") for name, dims in rows} == {
        name: arch.dims for name, arch in ARCHS.items()
    }


def test_weights_are_where_the_tools_say():
    assert all(url in README for url in RELEASED_WEIGHTS.values())
