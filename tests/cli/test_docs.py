"""README's and the pages' commands and code are run, their links and tables are checked."""

import ast
import inspect
import os
import re
import runpy
import shlex
import subprocess
from collections.abc import Callable, Sequence
from configparser import ConfigParser
from pathlib import Path
from typing import NamedTuple

import cv2
import jupytext
import mmengine
import pandas
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

import fcvit_mm
from fcvit_mm import FCViT, config_path
from fcvit_mm.__main__ import find_tools
from fcvit_mm.checkpoint.downloads import RELEASED
from fcvit_mm.models.arch import ARCHS
from fcvit_mm.utils.config import load_config
from helpers import ROOT, warm
from helpers.images import make_image, read

PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in
         (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}  # fmt: skip
README = PAGES["README.md"]


# where the toolboxes are installed
SITE_PACKAGES = Path(mmengine.__file__).parents[1]


class Block(NamedTuple):
    page: str
    language: str
    text: str


BLOCKS = [
    Block(page, language, block)
    for page, text in PAGES.items()
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
]
PYTHON = [block for block in BLOCKS if block.language == "python"]
PROGRAM = re.compile(r"^(import|from) |predictor|result", re.MULTILINE)
CONFIGS = [block for block in PYTHON if not PROGRAM.search(block.text)]
# Everything that a page tells its reader to type. Two pages are run from their first command to
# their last by test_custom_data.py and test_tutorial.py.
WHOLE_PAGES = ("docs/custom_data.md", "docs/tutorial.md")
COMMANDS = sorted(
    {
        line.split("  #")[0].strip()
        for block in BLOCKS
        if block.language == "bash" and block.page not in WHOLE_PAGES
        for line in block.text.splitlines()
    }
)


def kind(name: str) -> list[str]:
    return [command for command in COMMANDS if re.search(name, command)]


RUNS = (
    r"(tools/|fcvit_mm |fcvit )(dist_)?"
    "(train|test|check_data|infer|similarity_map|confusion_matrix|export|app)"
)
# those that would run whole, as their own tests do
WHOLE = (
    r"(fcvit |deployment/)"
    "(analyze_logs|benchmark|browse_data|download|model_info|publish|run_exported)"
)


def test_every_block_and_command_is_of_a_kind_that_is_tested_below():
    assert {block.language for block in BLOCKS} <= {"bash", "json", "python", "text"}
    tested = [
        command
        for pattern in (
            "^make ",
            "^pip install",
            RUNS,
            WHOLE,
            "tools/slurm",
            "convert_checkpoint",
            "benchmarks/",
            "^(docker|kubectl|sbatch) ",  # in test_deploy.py
        )
        for command in kind(pattern)
    ]
    assert sorted(COMMANDS) == sorted(tested) and len(COMMANDS) >= 15
    assert len(PYTHON) > len(CONFIGS) >= 5


@pytest.mark.parametrize("block", CONFIGS, ids=lambda block: block.page)
def test_configs_build(block, tmp_path, monkeypatch):
    """What a page shows as a config, or as a part of one, builds in a directory of one's own."""
    monkeypatch.chdir(tmp_path)
    text = block.text
    if "_base_" not in text:
        whole = "fcvit_mm::segmentation/semantic_fpn_fcvit_s12_ade20k.py"
        text = f"_base_ = '{whole}'\n{text}\nmodel = dict(backbone=backbone)\n"
    if checkout := re.search(r'^_base_ = "(configs/.*)"', text):
        # what lies in a toolbox's checkout comes with its package, too
        (path,) = SITE_PACKAGES.glob(f"mm*/.mim/{checkout[1]}")
        text = text.replace(checkout[1], str(path))
    Path("mine.py").write_text(text)
    cfg = Config.fromfile("mine.py")
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    assert isinstance(model.backbone, FCViT)
    if getattr(model, "neck", None) is not None and hasattr(model.neck, "in_channels"):
        assert list(model.neck.in_channels) == list(model.backbone.out_channels)


def test_the_config_of_somebody_elses_toolbox_builds_as_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = [block.text for block in PYTHON if block.page == "docs/getting_started.md"]
    (config,) = [text for text in page if "mmdet::" in text]
    (script,) = [text for text in page if "MODELS.build" in text]
    Path("mine.py").write_text(config)
    scope: dict = {}
    exec(script, scope)
    assert isinstance(scope["model"].backbone, FCViT)


def test_the_inferencer_takes_our_config_as_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (script,) = [block.text for block in PYTHON if "DetInferencer" in block.text]
    cfg = Config.fromfile(config_path("detection/mask_rcnn_fcvit_s12_coco.py"))
    cfg.model.backbone.init_cfg = None
    init_default_scope("mmdet")
    model = MODELS.build(cfg.model)
    torch.save({"state_dict": model.state_dict()}, "epoch_12.pth")
    scope: dict = {}
    exec(script, scope)
    loaded = scope["inferencer"].model.state_dict()
    assert all(value.equal(loaded[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "block", [b for b in PYTHON if "import FCViT" in b.text], ids=lambda block: block.page
)
def test_the_example_of_the_backbone_prints_what_it_says(block, capsys):
    scope: dict = {}
    exec(block.text, scope)
    printed = capsys.readouterr().out.strip()
    assert f"# {printed}\n" in block.text
    assert [tuple(f.shape) for f in scope["features"]] == [
        (1, 64, 56, 56), (1, 128, 28, 28), (1, 320, 14, 14), (1, 512, 7, 7)
    ]  # fmt: skip


@pytest.fixture
def trained(tmp_path, monkeypatch) -> Callable[[Path, str, Sequence[str]], None]:
    """Write what a training leaves in a work directory, in an empty current directory."""
    monkeypatch.chdir(tmp_path)

    def write(config: Path, work_dir: str, classes: Sequence[str]) -> None:
        cfg = load_config(str(config))
        init_default_scope(cfg.default_scope)
        torch.manual_seed(0)
        content = {"state_dict": MODELS.build(cfg.model).state_dict(),
                   "meta": {"dataset_meta": {"classes": classes}}}  # fmt: skip
        Path(work_dir).mkdir(parents=True)
        cfg.dump(f"{work_dir}/{config.name}")
        for name in ("epoch_12", "best_coco_bbox_mAP_epoch_12"):
            torch.save(content, f"{work_dir}/{name}.pth")

    return write


def test_the_page_on_python_is_true(trained):
    """Its blocks are one program, from the first to the last."""
    config = ROOT / "configs/detection/mask_rcnn_fcvit_tiny_shapes.py"
    trained(config, "work_dirs/parts", ("bolt", "nut", "washer", "pin"))
    Path("parts.py").write_text(f"_base_ = 'fcvit_mm::detection/{config.name}'\n")
    Image.fromarray(make_image(0)).save("photograph.jpg")
    clip = cv2.VideoWriter("clip.mp4", cv2.VideoWriter.fourcc(*"mp4v"), 25, (64, 48))
    for _ in range(2):
        clip.write(make_image(0))
    clip.release()
    scope: dict = {}
    for block in PYTHON:
        if block.page == "docs/python.md":
            exec(block.text, scope)
    assert len(scope["large"]) and scope["large"].scores.min() >= 0.3
    assert scope["followed"].track_ids.max() >= 0
    assert scope["predictor"].classes == ("bolt", "nut", "washer", "pin")
    assert [result.image.shape for result in scope["results"]] == [(48, 64, 3)] * 3
    assert read("drawn.png").shape == (48, 64, 3)
    assert set(scope["result"].classes[label] for label in scope["result"].labels) <= {
        "bolt",
        "nut",
    }


def test_the_two_lines_of_readme_predict(trained):
    (text,) = [b.text for b in PYTHON if b.page == "README.md" and "fcvit_mm.load" in b.text]
    config = ROOT / "configs/detection/mask_rcnn_fcvit_tiny_shapes.py"
    trained(config, "work_dirs/demo_detection_shapes", ("a", "b", "c", "d"))
    Path("data/shapes/images/val").mkdir(parents=True)
    Image.fromarray(make_image(0)).save("data/shapes/images/val/00000.png")
    scope: dict = {"fcvit_mm": fcvit_mm}
    exec(text, scope)
    for name in re.findall(r"\.(\w+)\b(?=[,(])", text.partition("#")[2]):
        assert hasattr(scope["result"], name)
    assert scope["result"].boxes.shape[1] == 4


def test_the_notebook_makes_a_table_of_a_photograph(trained, capsys):
    """It is read as Jupyter reads it, and its cells are run in order."""
    config = ROOT / "configs/detection/mask_rcnn_fcvit_tiny_coins.py"
    trained(config, "work_dirs/demo_detection_coins", ("coin",))
    notebook = jupytext.read(ROOT / "docs/notebooks/photograph_to_table.py")
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) == 5 == len(notebook.cells) - 4
    scope: dict = {}
    for cell in cells:
        exec(cell, scope)
    rows = len(scope["result"])
    assert f"{rows} coins" in capsys.readouterr().out
    table = pandas.read_csv("coins.csv")
    assert len(table) == rows == len(scope["table"]) and rows > 0
    assert table.diameter.is_monotonic_decreasing
    assert table.columns.tolist() == [
        "class", "score", "left", "top", "right", "bottom", "pixels", "diameter"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["timm", "segmentation_models_pytorch", "torchvision.models.detection"]
)
def test_the_examples_with_other_libraries_print_what_they_say_and_learn(name, capsys):
    (block,) = [b for b in PYTHON if re.search(rf"^(import|from) {name} ?", b.text, re.MULTILINE)]
    scope: dict = {}
    exec(block.text, scope)
    printed = capsys.readouterr().out.strip()
    assert f"# {printed}\n" in block.text
    model = scope["model"].train()
    images = [torch.rand(3, 64, 64), torch.rand(3, 64, 64)]
    if name == "torchvision.models.detection":
        model.transform.min_size = (64,)
        target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
        loss = sum(model(images, [target, target]).values())
    else:
        outputs = model(torch.stack(images))
        loss = sum(output.square().mean() for output in outputs)
    loss.backward()
    (stem,) = [p for key, p in model.named_parameters() if key.endswith("patch_embed.proj.weight")]
    assert stem.grad.abs().sum() > 0


@pytest.mark.parametrize("command", kind("^make ") + re.findall(r"`(make [^`]+)`", README))
def test_make_targets_exist(command):
    result = subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True)
    assert result.returncode == 0


def test_extras_exist():
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg")
    named = set(re.findall(r"'(?:\.|fcvit-mm)\[([\w,-]+)\]'", "".join(PAGES.values())))
    named = {name for group in named for name in group.split(",")}
    assert named == {"openmmlab", "openmmlab-official", "app", "data", "export", "faster-eval",
                     "hub", "mlflow", "openvino", "tensorboard", "timm", "track",
                     "wandb"}  # fmt: skip
    assert named <= parser["options.extras_require"].keys()


@pytest.mark.parametrize(
    "command",
    [pytest.param(c, marks=[pytest.mark.slow] if "dist_" in c else []) for c in kind(RUNS)],
)
def test_tools_get_as_far_as_the_missing_weights_or_data(tool, command, example_data):
    """There is no COCO, ADE20K or ImageNet weights where tests run: the tools say so, status 2."""
    words = [
        word for word in shlex.split(command) if word not in ("python", "-m", "fcvit_mm", "fcvit")
    ]
    # The other machine is not there: the command is tried for one.
    # Its first process is tried alone.
    words = words[3:] if words[0] == "torchrun" else words
    words = [word for word in words if not re.match("(NNODES|NODE_RANK|MASTER_ADDR|PORT)=", word)]
    name = words[0].removeprefix("tools/")
    name = name if "." in name else f"{name}.py"
    if name.startswith("dist_"):
        gpus = 2 if name == "dist_train.sh" else 3
        words[gpus] = "1"
    if "my_config.py" in words:
        (page,) = [b for b in CONFIGS if "my_config" in PAGES[b.page] and "fcvit_mm::" in b.text]
        (example_data / "my_config.py").write_text(page.text)
    arguments = [ROOT / word if word.startswith("configs/") else word for word in words[1:]]
    assert all(a.is_file() for a in arguments if isinstance(a, Path))
    result = tool(name, *arguments)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    errors = re.findall(r"^error: (.*)", result.stderr, re.MULTILINE)
    assert len(errors) == 1
    assert re.search("pretrained weights|no such (checkpoint )?file|does not exist", errors[0])


@pytest.mark.parametrize("command", kind(WHOLE))
def test_tools_take_the_arguments_that_the_pages_give_them(command):
    _, script, *arguments = shlex.split(command)
    assert all((ROOT / a).is_file() for a in arguments if a.startswith("configs/"))
    runpy.run_path(str(find_tools()[Path(script).stem]))["parse_args"](arguments)


@pytest.mark.parametrize("command", kind("benchmarks/"))
def test_benchmarks_take_what_the_page_gives_them(command):
    """A measure that does not exist, behind the others, has them refused before any is taken."""
    _, script, *arguments = shlex.split(command)
    result = warm.run([script, *arguments, "no_such_measure"], ROOT)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "no measure no_such_measure; there are " in result.stderr


def test_the_benchmark_prints_a_table():
    script = ROOT / "benchmarks/speed.py"
    result = warm.run([script, "pixels", "--repeats", "1", "--threads", "1"], ROOT)
    assert result.returncode == 0, result.stderr[-3000:]
    row = r"\| time per pixel, 1333x800 \| 224x224 \| \d+\.\d\d \| \d+ ns per pixel, \d+ ns \|"
    assert re.search(row, result.stdout) and "PyTorch" in result.stdout


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
    table = PAGES["docs/architecture.md"].split("| argument |")[1].split("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \|", table, re.MULTILINE))
    parameters = inspect.signature(FCViT).parameters
    defaults = {name: ast.literal_eval(text) for name, text in rows.items()}
    assert defaults == {name: parameter.default for name, parameter in parameters.items()}


@pytest.mark.parametrize("page", PAGES)
def test_links_to_files_lead_somewhere(page):
    links = re.findall(r"\]\((?!http)([^)#]+)\)", PAGES[page])
    directory = (ROOT / page).parent
    assert [link for link in links if not (directory / link).exists()] == []
    assert page != "README.md" or len(links) > 4


def test_every_page_is_linked_from_readme():
    assert all(f"]({page})" in README for page in PAGES if page != "README.md")


def test_every_config_is_in_the_page_of_recipes():
    names = {path.stem for path in (ROOT / "configs").glob("[!_]*/*.py")}
    page = PAGES["docs/recipes.md"]
    # a family in one row: `mask_rcnn_fcvit_{s12,s24}_coco`
    named = set()
    for text in re.findall(r"`(\w*fcvit_[\w{},]+)`", page):
        start, _, rest = text.partition("{")
        choices, _, end = rest.partition("}")
        named |= {start + choice + end for choice in choices.split(",")} if rest else {text}
    assert names == named


RECIPES = re.findall(
    r"^\| `(\w*fcvit_\{[\w,]+\}\w+)` \| (\S+) \| (\S+) \| (\d+) \| (\d+)(k? \w+)",
    PAGES["docs/recipes.md"],
    re.MULTILINE,
)


def test_every_family_of_a_public_dataset_has_its_row():
    public = {
        path.stem
        for path in (ROOT / "configs").glob("[!_]*/*_s12_*.py")
        if not path.stem.endswith(("_shapes", "_coins"))
    }
    rows = {re.sub(r"\{.*\}", "s12", name) for name, *_ in RECIPES}
    assert rows == public and len(RECIPES) == len(public) == 14
    assert "fourteen families of configs" in README


@pytest.mark.parametrize(("name", "lr", "decay", "batch", "length", "unit"), RECIPES)
def test_the_rows_of_recipes_are_the_configs(name, lr, decay, batch, length, unit):
    (path,) = (ROOT / "configs").glob(f"*/{re.sub(r'{.*}', 's12', name)}.py")
    cfg = Config.fromfile(path)
    assert cfg.optim_wrapper.optimizer.lr == float(lr)
    assert cfg.optim_wrapper.optimizer.weight_decay == float(decay)
    assert cfg.train_dataloader.batch_size == int(batch)
    assert cfg.auto_scale_lr.base_batch_size == 8 * int(batch)
    if "max_epochs" in cfg.train_cfg:
        assert (length, unit) == (str(cfg.train_cfg.max_epochs), " epochs")
    elif unit == " epochs":
        # COCO's 118,000 images, counted in iterations
        assert cfg.train_cfg.max_iters * 8 * int(batch) // 118000 == int(length)
    else:
        assert (length, unit) == (str(cfg.train_cfg.max_iters // 1000), "k iterations")


def test_the_tables_of_architectures_are_the_code():
    for page in ("docs/weights.md", "docs/architecture.md"):
        rows = re.findall(r"^\| `?(\w+)`?.*?\| (\d+, \d+, \d+, \d+) \|", PAGES[page], re.MULTILINE)
        assert [name for name, _ in rows] == list(ARCHS)
        field = "dims" if page == "docs/weights.md" else "layers"
        assert {name: ast.literal_eval(f"({numbers})") for name, numbers in rows} == {
            name: getattr(arch, field) for name, arch in ARCHS.items()
        }


def test_weights_are_where_the_tools_say():
    assert all(f"[`{name}`]({url})" in PAGES["docs/weights.md"] for name, url in RELEASED.items())
