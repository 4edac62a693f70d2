"""Files that strangers made, and files that were damaged: a sentence, or the right weights.

HOSTILE=20000 sets how many bits are flipped, and a fifth as often a file is cut; 500 by default.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import ROOT

from fcvit_mm import CheckpointError, FCViT, load_pretrained, read_checkpoint, runtime
from fcvit_mm.checkpoint import convert_checkpoint

FLIPS = int(os.environ.get("HOSTILE", "500"))
SMALL = dict(layers=(1, 1, 1, 1), dims=(8, 8, 8, 8), mlp_ratios=(1, 1, 1, 1))


def small() -> FCViT:
    """An FCViT of 60 kB whose weights are all random."""
    model = FCViT(SMALL)
    for value in model.state_dict().values():
        if value.is_floating_point():
            torch.nn.init.normal_(value)
    return model


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise TimeoutError where something hangs."""

    def stop(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
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


def damaged(content: bytes, flips: int = FLIPS) -> Iterator[bytes]:
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


@pytest.mark.official
@pytest.mark.parametrize("save", [save_zip, save_safetensors], ids=["pth", "safetensors"])
def test_a_damaged_file_is_refused_or_gives_the_right_weights(tmp_path, save):
    source = small()
    right = source.state_dict()
    path = save(tmp_path / "whole", right)
    content, model = path.read_bytes(), small()
    refused = 0
    for changed in damaged(content):
        path.write_bytes(changed)
        try:
            with at_most(20):
                load_pretrained(model, path)
        except CheckpointError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
            continue
        wrong = [k for k, v in model.state_dict().items() if not torch.equal(v, right[k])]
        places = [i for i, byte in enumerate(changed) if byte != content[i]]
        assert not wrong, (places, len(content))
        model = small()
    # the rest hit a date, a permission, or bytes between the records
    assert refused > 0.6 * FLIPS * 2.2


def test_damage_of_a_file_without_checksums_is_no_crash(tmp_path):
    """PyTorch's form before 1.6: a changed value can't be told, anything else is a sentence."""
    path, model = tmp_path / "a.pth", small()
    torch.save(small().state_dict(), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    load_pretrained(model, path)
    for changed in damaged(content, FLIPS // 5):
        path.write_bytes(changed)
        try:
            with at_most(20):
                load_pretrained(model, path)
        except CheckpointError as error:
            assert str(path) in str(error) and "\n" not in str(error)


def test_a_record_that_was_changed_is_named(tmp_path):
    path = save_zip(tmp_path / "a", {"w": torch.arange(1000.0)})
    content = path.read_bytes()
    values = torch.arange(1000.0).numpy().tobytes()
    changed = bytearray(content)
    changed[content.index(values) + 100] ^= 16
    path.write_bytes(changed)
    with pytest.raises(CheckpointError, match=r"damaged .*checksum of a/data/0 does not agree"):
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


def archive(path: Path, pickled: bytes) -> None:
    """A file such as torch.save writes, of a pickle that was written by hand."""
    with zipfile.ZipFile(path, "w") as file:
        for name, content in (("data.pkl", pickled), ("version", "3\n"), ("byteorder", "little")):
            file.writestr(f"a/{name}", content)


def called(name: str, argument: bytes) -> bytes:
    """A pickle that calls a global with an argument."""
    module, _, function = name.rpartition(".")
    return b"\x80\x02c%s\n%s\n%s\x85R." % (module.encode(), function.encode(), argument)


def long(number: int) -> bytes:
    content = number.to_bytes(15, "little")
    return b"\x8a\x0f" + content


def nested_key(levels: int) -> bytes:
    """A dict whose key is a tuple of two tuples of two tuples ..."""
    steps = (b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(levels))
    return b"\x80\x02)q\x00" + b"".join(steps) + b"}h%cK\x01s." % levels


def colliding(number: int) -> bytes:
    """A dict whose keys have one and the same hash."""
    keys = (long(i * (2**61 - 1)) + b"N" for i in range(number))
    return b"\x80\x02}(" + b"".join(keys) + b"u."


def compressed(path: Path) -> None:
    torch.save({"w": torch.zeros(50_000_000)}, path)
    with zipfile.ZipFile(path) as file:
        records = {record.filename: file.read(record) for record in file.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in records.items():
            file.writestr(name, content)


def declared(path: Path) -> None:
    """The form before PyTorch 1.6, whose pickle says how large a storage is."""
    torch.save({"w": torch.zeros(1000)}, path, _use_new_zipfile_serialization=False)
    size = b"J" + (2**31 - 1).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(b"M\xe8\x03", size))


def tensor(make: Callable[[], torch.Tensor]) -> Callable[[Path], None]:
    return lambda path: torch.save({"w": make()}, path)


GIGABYTES = long(3 * 2**30)
BOMBS: dict[str, tuple[Callable[[Path], object], str]] = {
    "bytearray": (
        lambda path: archive(path, called("builtins.bytearray", GIGABYTES)),
        "asks for builtins.bytearray",
    ),
    "plain": (
        lambda path: path.write_bytes(called("__builtin__.bytearray", GIGABYTES)),
        "asks for builtins.bytearray",
    ),
    "tensor": (
        lambda path: archive(path, called("torch.Tensor", GIGABYTES)), "asks for torch.Tensor"
    ),
    "keys": (lambda path: archive(path, nested_key(60)), "time without end"),
    "collisions": (lambda path: archive(path, colliding(100_000)), "time without end"),
    "compressed": (compressed, "its records are compressed"),
    "declared": (declared, "damaged or not a PyTorch checkpoint"),
    "strides": (tensor(lambda: torch.zeros(1).expand(2**33)), "stand for tensors of 34359738368"),
    "shared": (tensor(lambda: [*torch.zeros(1000).expand(1000, 1000)]), "stand for tensors"),
    "header": (
        lambda path: path.with_suffix(".safetensors").write_bytes((2**40).to_bytes(8, "little")),
        "not a whole safetensors file",
    ),
    "long text": (
        lambda path: archive(path, b"\x80\x02}X\xff\xff\xff\xffa\x01s."), "damaged or not"
    ),
    "sparse": (tensor(lambda: torch.eye(3).to_sparse()), "_rebuild_sparse_tensor"),
    "meta": (tensor(lambda: torch.zeros(2**40, device="meta")), "_rebuild_meta_tensor"),
    "quantised": (
        tensor(lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)),
        "_rebuild_qtensor",
    ),
    "complex": (tensor(lambda: torch.zeros(3, dtype=torch.complex64)), "torch.ComplexFloatStorage"),
    "objects": (
        lambda path: torch.save({"w": np.array([{}], dtype=object)}, path), "numpy.dtypes.Object"
    ),
}  # fmt: skip

READ = """
import json, resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
from fcvit_mm import CheckpointError, read_checkpoint
for path in sys.argv[1:]:
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read_checkpoint(path)
        text = "read"
    except CheckpointError as error:
        text = str(error)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    print(json.dumps([path, text, time.monotonic() - start, grown]), flush=True)
"""


@pytest.mark.official
def test_no_file_fills_the_memory_or_takes_for_ever(tmp_path):
    """In a process of its own with bounds, so that what fails here takes nothing else with it."""
    for name, (make, _) in BOMBS.items():
        make(tmp_path / f"{name}.pth")
    result = subprocess.run(
        [sys.executable, "-c", READ, *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:] + result.stdout[-2000:]
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("[")]
    found = {Path(path).stem: rest for path, *rest in lines}
    assert found.keys() == BOMBS.keys()
    for name, (text, seconds, megabytes) in found.items():
        assert BOMBS[name][1] in text and "\n" not in text, (name, text)
        assert seconds < 5 and megabytes < 400, (name, seconds, megabytes)


# ---------------------------------------------------------------------------------- options

CONFIG = ROOT / "configs/detection/mask_rcnn_fcvit_tiny_shapes.py"


def parsed(*words: str) -> dict:
    parser = argparse.ArgumentParser()
    runtime.add_cfg_options(parser)
    return parser.parse_args(["--cfg-options", *words]).cfg_options


@pytest.mark.official
@pytest.mark.parametrize(
    "words",
    [
        # what MMEngine imports where no registry has the name, and calls
        ["model.neck._delete_=True", "model.neck.type=subprocess.getoutput",
         "model.neck.cmd=touch${IFS}ran"],
        ["model.neck.type=os.system"],
        ["train_pipeline.0.type=pathlib.Path.touch"],
        ["default_hooks.checkpoint.type=mmengine.load"],
        ["optim_wrapper.constructor=subprocess.getoutput"],
        ["val_evaluator.type=mmdet.apis.init_detector"],
        ["model.type=antigravity"],
        ["default_scope=antigravity"],
        ["model._scope_=antigravity"],
        # what mmcv and MMPretrain evaluate
        ["model.test_cfg.rcnn.nms.type=__import__('os').system('touch${IFS}ran')"],
        ["model.test_cfg.rcnn.nms.type=[].__class__"],
        ["train_pipeline.0.dtype=hub.load('x')"],
        ["a=__import__('os').system('touch${IFS}ran')"],
        # what is imported when the config is read again
        ["custom_imports.imports=[antigravity]"],
        ["custom_imports=[antigravity]"],
        ["model.a'+exit()+'=1"],
        # what is unpickled
        ["model.roi_head.bbox_head.loss_cls.class_weight=weights.pkl"],
        ["train_dataloader.dataset.proposal_file=[a,b.pickle]"],
    ],
    ids=lambda words: words[-1],
)  # fmt: skip
def test_an_option_runs_nothing(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(runtime.ConfigError, match="--cfg-options: .*config file alone"):
        runtime.load_config(str(CONFIG), parsed(*words))
    assert not list(tmp_path.iterdir()) and "antigravity" not in sys.modules


def test_templates_and_bases_in_options_are_texts(tmp_path):
    words = ["work_dir={{fileDirname}}", "model.neck.a={{$HOME:b}}"]
    cfg = runtime.load_config(str(CONFIG), parsed(*words))
    assert (cfg.work_dir, cfg.model.neck.a) == ("{{fileDirname}}", "{{$HOME:b}}")
    with pytest.raises(runtime.ConfigError, match="_base_ is nothing"):
        runtime.load_config(str(CONFIG), parsed(f"_base_={tmp_path}/a.py"))


@pytest.mark.official
def test_options_that_name_classes_and_files_are_taken():
    words = [
        "model.backbone.arch=s24", "model.neck.type=mmdet.FPN",
        "model.test_cfg.rcnn.nms.type=soft_nms", "optim_wrapper.type=AmpOptimWrapper",
        "train_dataloader.dataset.ann_file=test.json", "model.neck.in_channels=(1,2)",
        "default_scope=mmdet", "test_evaluator.out_file_path=a.pkl",
    ]  # fmt: skip
    cfg = runtime.load_config(str(CONFIG), parsed(*words))
    assert cfg.model.neck.type == "mmdet.FPN" and cfg.model.neck.in_channels == (1, 2)


@pytest.mark.parametrize("word", ["a=[1,2", "a=f(1,2)", "a=)("])
def test_an_option_with_odd_brackets_is_a_sentence(capsys, word):
    with pytest.raises(SystemExit) as end:
        parsed(word)
    assert end.value.code == 2 and "its brackets are no list" in capsys.readouterr().err


def test_a_data_set_that_is_a_pickle_is_refused():
    cfg = runtime.load_config(str(CONFIG))
    cfg.train_dataloader.dataset.ann_file = "annotations.pkl"
    with pytest.raises(runtime.ConfigError, match=r"annotations\.pkl is a pickle.*JSON"):
        runtime.check_files(cfg, ("train_dataloader",))
