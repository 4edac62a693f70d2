"""Files that strangers made, and files that were damaged: a sentence, or the right weights.

HOSTILE=20000 sets how many bits are flipped, and a fifth as often a file is cut; by default 50, and
500 in a test that is marked slow.
"""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from mmdet.apis import DetInferencer
from mmdet.structures import DetDataSample
from mmengine.logging import MMLogger
from mmengine.runner import CheckpointLoader
from mmengine.structures import InstanceData
from PIL import Image

from fcvit_mm import CheckpointError, FCViT, engine, load_pretrained, read_checkpoint
from fcvit_mm.apis.model import build_model, load_model
from fcvit_mm.apis.predictor import Predictor
from fcvit_mm.apis.result import Result
from fcvit_mm.engine.preflight import check_files
from fcvit_mm.models.weights import convert_checkpoint
from fcvit_mm.utils import files
from fcvit_mm.utils.config import load_config
from fcvit_mm.utils.errors import ConfigError
from helpers import ROOT
from helpers.bombs import BOMBS
from helpers.hostile import READERS
from helpers.stress import some
from helpers.tools import SHORT, assert_sentence, free_port, load_tool

NUMBERS = some("HOSTILE", 50, 500)
SMALL = dict(layers=(1, 1, 1, 1), dims=(8, 8, 8, 8), mlp_ratios=(1, 1, 1, 1))


def small() -> FCViT:
    """An FCViT of 60 kB whose weights are all random."""
    model = FCViT(SMALL)
    for value in model.state_dict().values():
        if value.is_floating_point():
            torch.nn.init.normal_(value)
    return model


@contextmanager
def without_hanging() -> Iterator[None]:
    """Raise TimeoutError where something hangs, on however busy a machine."""

    def stop(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(300)
    try:
        yield
    finally:
        signal.alarm(0)


# ------------------------------------------------------------------------------ damaged files


def save_zip(path: Path, weights: dict) -> Path:
    torch.save({"meta": {"epoch": 1}, "state_dict": weights}, path.with_suffix(".pth"))
    return path.with_suffix(".pth")


def save_safetensors(path: Path, weights: dict) -> Path:
    source = save_zip(path, weights)
    convert_checkpoint(source, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def damaged(content: bytes, flips: int) -> Iterator[bytes]:
    """The content cut off, and with bits flipped: anywhere, and where the weights are not."""
    rng = random.Random(0)
    for _ in range(flips // 5):
        yield content[: rng.randrange(len(content))]
    edges = [*range(min(2000, len(content))), *range(max(0, len(content) - 10_000), len(content))]
    for i in range(flips * 2):
        changed = bytearray(content)
        place = rng.choice(edges) if i % 2 else rng.randrange(len(content))
        changed[place] ^= 1 << rng.randrange(8)
        yield bytes(changed)


def loads(model: FCViT, path: Path) -> bool:
    """Whether a file is loaded, soon, and not refused by a sentence."""
    try:
        with without_hanging():
            load_pretrained(model, path)
    except CheckpointError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return False
    return True


@NUMBERS
@pytest.mark.parametrize("save", [save_zip, save_safetensors], ids=["pth", "safetensors"])
def test_a_damaged_file_is_refused_or_gives_the_right_weights(tmp_path, save, number):
    source = small()
    right = source.state_dict()
    path = save(tmp_path / "whole", right)
    content, model = path.read_bytes(), small()
    refused = 0
    for changed in damaged(content, number):
        path.write_bytes(changed)
        if not loads(model, path):
            refused += 1
            continue
        wrong = [k for k, v in model.state_dict().items() if not torch.equal(v, right[k])]
        places = [i for i, byte in enumerate(changed) if byte != content[i]]
        assert not wrong, (places, len(content))
        model = small()
    # the rest hit a date, a permission, or bytes between the records
    assert refused > 0.6 * number * 2.2


@NUMBERS
def test_damage_of_a_file_without_checksums_is_no_crash(tmp_path, number):
    """PyTorch's form before 1.6: a changed value can't be told, anything else is a sentence."""
    path, model = tmp_path / "a.pth", small()
    torch.save(small().state_dict(), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    load_pretrained(model, path)
    for changed in damaged(content, number // 10):
        path.write_bytes(changed)
        loads(model, path)


def test_a_record_that_was_changed_is_named(tmp_path):
    path = save_zip(tmp_path / "a", {"w": torch.arange(1000.0)})
    content = path.read_bytes()
    values = torch.arange(1000.0).numpy().tobytes()
    changed = bytearray(content)
    changed[content.index(values) + 100] ^= 16
    path.write_bytes(changed)
    with pytest.raises(CheckpointError, match=r"damaged .*Bad CRC-32 for file 'a/data/0'"):
        read_checkpoint(path)


def test_files_without_checksums_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(small().state_dict(), tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    load_pretrained(small(), tmp_path / "a.pth")
    safetensors.torch.save_file(small().state_dict(), tmp_path / "a.safetensors")
    load_pretrained(small(), tmp_path / "a.safetensors")


# ------------------------------------------------------------------------------ hostile files

READ = """
import json, resource, sys, time
from fcvit_mm import CheckpointError, read_checkpoint
(used,) = (int(line.split()[1]) for line in open("/proc/self/status") if "VmSize" in line)
most = (used << 10) + (1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
for path in sys.argv[1:]:
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read_checkpoint(path)
        text = "read"
    except CheckpointError as error:
        text = str(error)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    print(json.dumps([path, text, time.process_time() - start, grown]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.official
def test_no_file_fills_the_memory_or_takes_for_ever(tmp_path):
    """In a process of its own with 1 GB, so that what fails here takes nothing else with it."""
    for name, (make, _) in BOMBS.items():
        make(tmp_path / f"{name}.pth")
    result = subprocess.run(
        [sys.executable, "-c", READ, *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True, text=True, timeout=600, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("[")]
    assert result.returncode == 0, (lines[-1:], result.stderr[-2000:])
    found = {Path(path).stem: rest for path, *rest in lines}
    assert found.keys() == BOMBS.keys()
    for name, (text, seconds, megabytes) in found.items():
        assert BOMBS[name][1] in text and text.isprintable(), (name, text)
        assert seconds < 5 and megabytes < 400, (name, seconds, megabytes)


# --------------------------------------------------------------------------------- every route

CONFIG = ROOT / "configs/detection/mask_rcnn_fcvit_tiny_shapes.py"
ROUTES: dict[str, Callable[[str], object]] = {
    **READERS,
    "test": lambda path: engine.test(load_config(str(CONFIG), {"load_from": path})),
    "train": lambda path: engine.train(load_config(str(CONFIG), {"load_from": path})),
    "model": lambda path: load_model(load_config(str(CONFIG)), path),
    "convert": lambda path: convert_checkpoint(path, Path(path).with_name("b.safetensors")),
}


def flipped(path: Path) -> None:
    values = torch.arange(1000.0)
    torch.save({"w": values}, path)
    content = bytearray(path.read_bytes())
    content[content.index(values.numpy().tobytes()) + 100] ^= 16
    path.write_bytes(content)


@pytest.mark.official
@pytest.mark.parametrize("route", ROUTES)
def test_every_route_refuses_a_damaged_file(tmp_path, route):
    path = tmp_path / "a.pth"
    flipped(path)
    with without_hanging(), pytest.raises(CheckpointError, match="CRC-32 for file .a/data/0"):
        ROUTES[route](str(path))
    assert list(tmp_path.iterdir()) == [path]


def test_infer_ends_with_status_2(tool, example_data, tmp_path):
    flipped(tmp_path / "a.pth")
    image = example_data / "data/shapes/images/val/00001.png"
    result = tool("infer.py", CONFIG, tmp_path / "a.pth", image, "--out", tmp_path / "out")
    assert_sentence(result, "a.pth", "CRC-32")
    assert not (tmp_path / "out").exists()


def whole_model() -> dict[str, torch.Tensor]:
    return build_model(load_config(str(CONFIG))).state_dict()


@pytest.mark.official
def test_a_checkpoint_that_can_only_be_loaded_is_not_resumed(tool, tmp_path):
    meta = {"epoch": 1, "iter": 2}
    content = {"state_dict": whole_model(), "meta": meta, "optimizer": {"param_groups": 3}}
    torch.save(content, tmp_path / "a.pth")
    result = tool("train.py", CONFIG, "--resume", tmp_path / "a.pth", "--work-dir", tmp_path,
                  "--cfg-options", *SHORT)  # fmt: skip
    assert_sentence(result, "a.pth", "can't be loaded or resumed")


METAS: list[Any] = [
    None, [], {"dataset_meta": 3}, {3: 4}, {"classes": 5}, {"dataset_meta": {"classes": [1, 2]}},
    {"classes": ("a", "b", "c", "d"), "palette": [(1, 2)] * 4},
    {"classes": ("a", "b", "c", "d"), "palette": [None, "x", 3, (1, 2, 3)]},
    {"classes": ("a", "b", "c", "d"), "palette": [[1e9] * 3] * 4},
]  # fmt: skip


@pytest.mark.official
@pytest.mark.parametrize("meta", METAS, ids=str)
def test_what_a_file_says_of_itself_may_be_anything(tmp_path, meta):
    weights: dict[Any, Any] = {**whole_model(), 3: "x", "text": "y"}
    torch.save({"state_dict": weights, "meta": meta}, tmp_path / "a.pth")
    model = load_model(load_config(str(CONFIG)), str(tmp_path / "a.pth"))
    classes, palette = model.dataset_meta["classes"], model.dataset_meta["palette"]
    assert len(classes) == 4 == len(palette) and all(isinstance(name, str) for name in classes)
    assert all(len(color) == 3 and 0 <= min(color) <= max(color) < 256 for color in palette)


NAMES: list[Any] = [
    ["a", "b", "c", "\x1b[2Jd"], ["a", "b", "c", "d\nerror: x"], ["a", "b", "c", "d" * 1000],
    ["a", "b", "c", "\ud800"], [f"{i}" for i in range(200_000)],
]  # fmt: skip


@pytest.mark.official
@pytest.mark.parametrize("names", NAMES, ids=lambda names: str(len(str(names))))
def test_class_names_that_no_terminal_should_see_are_left_out(tmp_path, names):
    palette = np.zeros((4, 3))
    meta = {"dataset_meta": {"classes": names, "palette": palette}, "CLASSES": names}
    torch.save({"state_dict": whole_model(), "meta": meta}, tmp_path / "a.pth")
    content = read_checkpoint(tmp_path / "a.pth")
    # what can't be encoded is read as U+FFFD
    is_read = names[-1] == "\ud800"
    expected = {"classes": [*names[:3], "\ufffd" * 3]} if is_read else {}
    assert content["meta"]["dataset_meta"] == expected
    model = load_model(load_config(str(CONFIG)), str(tmp_path / "a.pth"))
    assert len(model.dataset_meta["classes"]) == 4


@pytest.mark.official
def test_fewer_class_names_than_classes_are_an_error(tmp_path):
    torch.save({"state_dict": whole_model(), "meta": {"CLASSES": ["a", "b"]}}, tmp_path / "a.pth")
    words = r"bbox_head of .*mask_rcnn.* has 4 classes, of which .*a\.pth.* names 2"
    with pytest.raises(CheckpointError, match=words):
        load_model(load_config(str(CONFIG)), str(tmp_path / "a.pth"))


@pytest.mark.official
def test_a_class_name_with_a_formula_is_drawn(tmp_path):
    meta = {"dataset_meta": {"classes": [r"$\frac{$"] * 4}}
    torch.save({"state_dict": whole_model(), "meta": meta}, tmp_path / "a.pth")
    predictor = Predictor(load_config(str(CONFIG)), str(tmp_path / "a.pth"))
    found = InstanceData(
        bboxes=torch.tensor([[5.0, 5.0, 40.0, 40.0]]), labels=torch.tensor([3]),
        scores=torch.tensor([0.9]), masks=torch.zeros(1, 64, 64, dtype=torch.bool),
    )  # fmt: skip
    image, sample = np.zeros((64, 64, 3), np.uint8), DetDataSample(pred_instances=found)
    result = Result.from_sample(image, sample, predictor.classes, predictor.palette)
    assert result.select(0.5).draw().any()


@pytest.mark.official
@pytest.mark.parametrize("place", ["meta", "message_hub"])
def test_an_inferencer_runs_no_config_that_a_checkpoint_holds(tmp_path, place):
    mark = tmp_path / "ran"
    text = f"open({str(mark)!r}, 'w').close()"
    content: dict[str, Any] = {"state_dict": {"w": torch.zeros(1)}}
    content[place] = {"cfg": text} if place == "meta" else {"runtime_info": {"cfg": text}}
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="config text in the checkpoint is not run"):
        DetInferencer(weights=str(tmp_path / "a.pth"))
    assert not mark.exists()


def test_a_tensor_name_that_no_terminal_should_see_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"w\nerror: x": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="too long or can't be printed") as error:
        read_checkpoint(path)
    assert str(error.value).isprintable()


def test_mmengine_gets_the_names_alone_and_the_versions_of_modules(tmp_path):
    weights = small().state_dict()
    weights[3] = "x"
    torch.save({"state_dict": weights}, tmp_path / "a.pth")
    given = CheckpointLoader.load_checkpoint(str(tmp_path / "a.pth"))["state_dict"]
    assert given.keys() == weights.keys() - {3} and given._metadata == weights._metadata


def test_weights_of_another_type_or_that_are_no_numbers(tmp_path, caplog):
    weights = small().state_dict()
    key = "network.0.0.norm1.weight"
    torch.save({**weights, key: weights[key].long()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=rf"1 of another type: {key} \(torch.int64 in the"):
        load_pretrained(small(), tmp_path / "a.pth")
    torch.save({**weights, key: weights[key] * torch.nan}, tmp_path / "a.pth")
    log = tmp_path / "log.txt"
    MMLogger.get_instance("infinite", log_file=str(log))
    load_pretrained(small(), tmp_path / "a.pth")
    assert f"NaN or infinite values in 1 tensors: {key}; the file is damaged" in log.read_text()


# --------------------------------------------------------------------------- the exported file


def write_onnx(path: Path, about: object, location: str | None = None) -> Path:
    """A segmentor of three classes whose logits are the image, with a weight at `location`."""
    from onnx import TensorProto, helper

    weight = helper.make_tensor("w", TensorProto.FLOAT, [3, 1, 1], [1.0, 1.0, 1.0])
    if location:
        weight.ClearField("float_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=location)
    names = ("images", "logits")
    given, found = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, "h", "w"]) for name in names
    )
    node = helper.make_node("Mul", ["images", "w"], ["logits"])
    graph = helper.make_graph([node], "segmentor", [given], [found], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    texts = {"fcvit_mm.json": json.dumps(about), files.SHA256_KEY: files.SHA256_PLACEHOLDER}
    helper.set_model_props(model, texts)
    path.write_bytes(files.embed_sha256(model.SerializeToString()))
    return path


ABOUT = {"kind": "segmentor", "classes": ["a", "b", "c"], "palette": [[9, 9, 9]] * 3, "resize": []}


@NUMBERS
def test_a_damaged_onnx_file_is_refused(tmp_path, number):
    path = write_onnx(tmp_path / "a.onnx", ABOUT)
    content, script = path.read_bytes(), load_tool("run_exported")
    assert script.open_model(str(path))[1] == ABOUT
    for changed in damaged(content, number):
        path.write_bytes(changed)
        with without_hanging(), pytest.raises(ValueError, match="SHA-256"):
            script.open_model(str(path))


HUGE = {"scale": [10**6, 10**6], "keep_ratio": False}


@pytest.mark.parametrize(
    ("about", "location", "words"),
    [
        (ABOUT, None, ""),
        ({**ABOUT, "resize": [HUGE]}, None, "sides of"),
        ({**ABOUT, "resize": 3}, None, "int"),
        ({**ABOUT, "classes": []}, None, "index"),
        ([], None, "list"),
        (ABOUT, "secret.bin", "external"),
        (ABOUT, "../secret.bin", "external"),
        (ABOUT, "/dev/zero", "external"),
    ],
    ids=str,
)
def test_a_hostile_onnx_file_is_a_sentence(tmp_path, monkeypatch, capsys, about, location, words):
    (tmp_path / "secret.bin").write_bytes(np.ones(3, np.float32).tobytes())
    folder = tmp_path / "folder"
    folder.mkdir()
    Image.new("RGB", (20, 10)).save(folder / "a.png")
    path = write_onnx(folder / "a.onnx", about, location)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["run_exported.py", str(path), "a.png", "out.png"])
    if not words:
        load_tool("run_exported").main()
        assert (folder / "out.png").exists()
        return
    with pytest.raises(SystemExit) as end:
        load_tool("run_exported").main()
    text = capsys.readouterr().err
    assert end.value.code == 2 and text.startswith("error: ") and text.count("\n") == 1
    assert words in text.lower() and not (folder / "out.png").exists()


# ---------------------------------------------------------------------------------- datasets


def test_a_dataset_that_is_a_pickle_is_refused():
    cfg = load_config(str(CONFIG))
    cfg.train_dataloader.dataset.ann_file = "annotations.pkl"
    with pytest.raises(ConfigError, match=r"annotations\.pkl is a pickle.*JSON"):
        check_files(cfg, ("train_dataloader",))


# ------------------------------------------------------------------------ several processes


def launch(script: Path, port: int) -> subprocess.CompletedProcess:
    """Two processes of a script."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes=1",
        "--node_rank=0",
        "--master_addr=127.0.0.1",
        f"--master_port={port}",
        "--nproc_per_node=2",
        str(script),
    ]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=script.parent, timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


COLLECT = """
import os, stat, tempfile
from torch import distributed
import mmengine.dist

distributed.init_process_group("gloo")
made, mkdtemp = [], tempfile.mkdtemp
tempfile.mkdtemp = lambda **options: made.append(mkdtemp(**options)) or made[-1]
load = mmengine.dist.dist.pickle.load
mmengine.dist.dist.pickle.load = lambda file: print(
    "read", file.name, oct(os.stat(os.path.dirname(file.name)).st_mode & 0o777)) or load(file)
mmengine.dist.collect_results([distributed.get_rank()], 2, "cpu")
distributed.barrier()
distributed.destroy_process_group()
"""


def test_results_lie_where_this_user_alone_can_write(tmp_path):
    """As docs/reliability.md says: they are pickles in a folder that the first process makes."""
    script = tmp_path / "collect.py"
    script.write_text(COLLECT)
    result = launch(script, free_port())
    assert result.returncode == 0, result.stderr[-2000:]
    lines = [line.split() for line in result.stdout.splitlines() if line.startswith("read")]
    assert [(Path(name).name, mode) for _, name, mode in lines] == [
        ("part_0.pkl", "0o700"), ("part_1.pkl", "0o700")
    ]  # fmt: skip
    assert Path(lines[0][1]).parts[0] == ".dist_test" and not list(tmp_path.glob(".dist_test/*"))
