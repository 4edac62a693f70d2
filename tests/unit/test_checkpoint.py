"""Checkpoints of every released form, the wrong ones, and the hostile ones."""

import argparse
import http.server
import os
import pickle
import re
import threading
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import safetensors.torch
import torch
from mmengine.config import Config
from mmengine.fileio import BaseStorageBackend
from mmengine.fileio.backends import prefix_to_backends
from mmengine.logging import HistoryBuffer, MMLogger
from mmengine.runner import CheckpointLoader

from fcvit_mm import CheckpointError, FCViT, load_pretrained, read_checkpoint
from fcvit_mm.checkpoint import downloads, mmengine_backends
from fcvit_mm.checkpoint.reader import fetch
from fcvit_mm.models.weights import check_fit, convert_checkpoint, infer_arguments
from fcvit_mm.utils.files import sha256
from helpers.hostile import READERS, Payload, hostile
from helpers.released import KEYS, timm_checkpoint

pytestmark = pytest.mark.official


@pytest.fixture(scope="module")
def released() -> dict:
    return timm_checkpoint("tiny")


def tiny(**kwargs) -> FCViT:
    """A tiny FCViT that loads as a Runner would make it."""
    return FCViT("tiny", **kwargs)


def assert_loaded(model: FCViT, expected: dict, offset: float = 0) -> None:
    """Every parameter and buffer is the file's, but for the output norms."""
    compared = 0
    for key, value in model.state_dict().items():
        if key.startswith("norm"):
            assert torch.equal(value, torch.full_like(value, float(key.endswith("weight")))), key
            continue
        add = offset if value.is_floating_point() else 0
        assert torch.equal(value, expected[key] + add), key
        compared += 1
    assert compared == len([key for key in expected if not key.startswith(("norm.", "head."))])


# ------------------------------------------------------------------- the forms of the files


def write(path: Path, content: dict) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("form", ["plain", "ema", "no_ema_switch", "model", "bare", "ddp",
                                  "ddp_ema", "safetensors"])  # fmt: skip
def test_every_released_form_loads_completely(tmp_path, released, form):
    state, offset, options, name = released["state_dict"], 0, {}, "fcvit.pth.tar"
    content = {k: v for k, v in released.items() if k != "state_dict_ema"}
    if form == "ema":
        content, offset = released, 1
    elif form == "no_ema_switch":
        content, options = released, {"ema": False}
    elif form == "model":
        content, name = {"model": state}, "fcvit.pth"
    elif form == "bare":
        content, name = state, "fcvit.pth"
    elif form == "ddp":
        content = {"state_dict": {f"module.{k}": v for k, v in state.items()}}
    elif form == "ddp_ema":
        ema = {f"module.{k}": v for k, v in released["state_dict_ema"].items()}
        content, offset = {**released, "state_dict_ema": ema}, 1
    elif form == "safetensors":
        content, name = state, "fcvit.safetensors"
    path = write(tmp_path / name, content)
    model = tiny(init_cfg=dict(type="Pretrained", checkpoint=str(path), **options))
    model.init_weights()
    assert_loaded(model, state, offset)


@pytest.mark.parametrize("options", [{}, {"prefix": "backbone."}], ids=["found", "given"])
def test_the_backbone_of_a_detector_loads_with_its_output_norms(tmp_path, options):
    source = tiny()
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter)
    state = {f"backbone.{k}": v for k, v in source.state_dict().items()}
    state["neck.lateral_convs.0.conv.weight"] = torch.zeros(4, 32, 1, 1)
    path = write(tmp_path / "detector.pth", {"meta": {}, "state_dict": state, "optimizer": {}})
    model = tiny()
    load_pretrained(model, path, **options)
    expected = source.state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_pretrained_weights_come_after_other_initializers(tmp_path):
    source = tiny()
    path = write(tmp_path / "a.pth", source.state_dict())
    pretrained = dict(type="Pretrained", checkpoint=str(path))
    constant = dict(type="Constant", layer="GroupNorm", val=3)
    model = tiny(init_cfg=[pretrained, constant])
    model.init_weights()
    assert torch.equal(model.network[0][0].norm1.weight, source.network[0][0].norm1.weight)
    model = tiny(init_cfg=constant)
    model.init_weights()
    assert (model.norm0.weight == 3).all()


def test_other_outputs_than_the_file_was_trained_with_are_no_misfit(tmp_path):
    path = write(tmp_path / "a.pth", tiny(out_indices=(1, 3)).state_dict())
    load_pretrained(tiny(out_indices=(2, 3)), path)


def test_one_line_tells_how_many_tensors_came_from_which_file(tmp_path, released):
    path = write(tmp_path / "fcvit.pth.tar", released)
    log = tmp_path / "log.txt"
    MMLogger.get_instance("one-line", log_file=str(log))
    load_pretrained(tiny(), path)
    lines = log.read_text().splitlines()
    count = sum(not k.startswith(("norm.", "head.")) for k in released["state_dict"])
    (line,) = [line for line in lines if "FCViT" in line]
    assert f"{count} tensors" in line and str(path) in line
    assert sha256(path) in line and "state_dict_ema" in line


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The folder where torch keeps downloads, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    return tmp_path / "hub/hub/checkpoints"


@pytest.fixture
def site(tmp_path) -> Iterator[str]:
    """The address at which `tmp_path` is served."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_url(tmp_path, released, cache, site):
    write(tmp_path / "fcvit.pth.tar", released)
    url = f"{site}/fcvit.pth.tar"
    model = tiny(init_cfg=dict(type="Pretrained", checkpoint=url, ema=False))
    model.init_weights()
    assert_loaded(model, released["state_dict"])
    # also through MMEngine's own entry
    assert CheckpointLoader.load_checkpoint(url)["version"] == 2
    with pytest.raises(CheckpointError, match="can't be downloaded"):
        read_checkpoint(url + ".absent")
    assert [path.name[8:] for path in cache.glob("[!.]*")] == ["-fcvit.pth.tar"]


def test_what_torch_has_downloaded_is_taken_if_its_hash_fits(cache, monkeypatch):
    """Without a network, as plain MMEngine does for `torchvision://resnet50`."""
    monkeypatch.setattr(downloads, "urlopen", lambda *_, **__: os.stat("absent"))
    monkeypatch.setattr(downloads, "PAUSE", 0)
    cache.mkdir(parents=True)
    path = write(cache / "a.pth", {"state_dict": {"a": torch.ones(2)}})
    path = path.rename(cache / f"resnet50-{sha256(path)[:8]}.pth")
    url = f"https://example.org/{path.name}"
    assert "a" in read_checkpoint(url)["state_dict"]
    with path.open("ab") as file:
        file.write(b"another")
    with pytest.raises(CheckpointError, match="can't be downloaded"):
        read_checkpoint(url)


def test_a_refused_download_does_not_stay(tmp_path, cache, site):
    (tmp_path / "a.pth").write_text("<html>log in first</html>")
    with pytest.raises(CheckpointError, match=rf"{site}/a.pth is a web page"):
        read_checkpoint(f"{site}/a.pth")
    assert not [*cache.rglob("*.pth")]
    write(tmp_path / "a.pth", {"state_dict": {"a": torch.ones(2)}})
    assert "a" in read_checkpoint(f"{site}/a.pth")["state_dict"]


class Bucket(BaseStorageBackend):
    """A storage that MMEngine knows by prefixes, in a dict."""

    content: ClassVar[dict[str, bytes]] = {}

    def get(self, filepath):
        return self.content[filepath]

    get_text = get


@pytest.mark.parametrize("name", ["s3://a/b.pth", "petrel://a/b.pth", "x:s3://a/b.pth"])
def test_mmengines_other_storages_are_read_safely(tmp_path, cache, monkeypatch, name):
    monkeypatch.setattr(Bucket, "content", {})
    for prefix in ("s3", "petrel"):
        monkeypatch.setitem(prefix_to_backends, prefix, Bucket)
    for value in (1, 2):  # a file there may change
        path = write(tmp_path / "a.pth", {"state_dict": {"a": torch.full((2,), value)}})
        Bucket.content[name] = path.read_bytes()
        assert CheckpointLoader.load_checkpoint(name)["state_dict"]["a"].tolist() == [value] * 2
        assert sha256(fetch(name)) == sha256(path)
    Bucket.content[name] = hostile(path, tmp_path / "ran", None).read_bytes()
    with pytest.raises(CheckpointError, match=f"{name} is refused: besides weights"):
        CheckpointLoader.load_checkpoint(name)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(CheckpointError, match=r"s3://c can't be downloaded: KeyError"):
        read_checkpoint("s3://c")


def test_mmengines_tables_of_models(tmp_path, monkeypatch):
    """`mmcls://` takes the backbone alone; a renamed model is found; a path is MMENGINE_HOME's."""
    monkeypatch.setenv("MMENGINE_HOME", str(tmp_path))
    state = {"backbone.a": torch.ones(2), "head.b": torch.ones(2)}
    path = write(tmp_path / "a.pth", {"state_dict": state})
    mmcls = {"mmcls": lambda: {"net": str(path)}}
    monkeypatch.setattr(mmengine_backends, "TABLES", mmengine_backends.TABLES | mmcls)
    assert [*CheckpointLoader.load_checkpoint("mmcls://net")["state_dict"]] == ["a"]
    (tmp_path / "open_mmlab.json").write_text('{"new": "a.pth"}')
    renamed = {"old": "new"}
    monkeypatch.setattr(mmengine_backends, "get_deprecated_model_names", lambda: renamed)
    for name in ("open-mmlab://new", "openmmlab://old"):
        assert CheckpointLoader.load_checkpoint(name)["state_dict"].keys() == state.keys()
    with pytest.raises(CheckpointError, match="no such model; there are"):
        CheckpointLoader.load_checkpoint("open-mmlab://absent")
    with pytest.raises(CheckpointError, match="download the file and give its path"):
        CheckpointLoader.load_checkpoint("pavi://a")


# ------------------------------------------------------------------------ complete or an error


def test_nothing_is_changed_when_a_file_does_not_fit(tmp_path, released):
    state = dict(released["state_dict"])
    del state["network.6.1.norm2.bias"]
    path = write(tmp_path / "a.pth", state)
    model = tiny()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"1 missing: network\.6\.1\.norm2\.bias"):
        load_pretrained(model, path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def resnet() -> dict:
    return {"conv1.weight": torch.zeros(64, 3, 7, 7), "layer1.0.bn1.bias": torch.zeros(64)}


@pytest.mark.parametrize(
    ("model", "content", "words"),
    [
        ({}, lambda: FCViT("s12").state_dict(), ["arch='s12'", "arch='tiny'", "of another shape"]),
        (
            {},
            lambda: FCViT(dict(layers=(1, 3, 5, 2), dims=(32, 64, 160, 320),
                               mlp_ratios=(8, 8, 4, 4))).state_dict(),
            ["'layers': (1, 3, 5, 2)", "missing", "network.0.1"],
        ),
        (
            {},
            lambda: tiny(kernel_size=(5, 7)).state_dict(),
            ["kernel_size=(5, 7)", "kernel_size=(11, 11)", "set kernel_size=(5, 7)"],
        ),
        (
            {},
            lambda: tiny(global_context=False).state_dict(),
            ["set global_context=False", "missing", "gc1.fc1.weight"],
        ),
        (
            {"weighted_context": False},
            lambda: tiny().state_dict(),
            ["set weighted_context=True", "unexpected", "gc1.rescale_weight"],
        ),
        ({}, resnet, ["not an FCViT (docs/weights.md says where", "conv1.weight"]),
        (
            {},
            lambda: {"neck.w": torch.zeros(1), **{f"backbone.{k}": v for k, v in resnet().items()}},
            ["not an FCViT", "detector", "conv1.weight"],
        ),
        (
            {},
            lambda: {f"encoder.{k}": v for k, v in tiny().state_dict().items()},
            ["set prefix='encoder.'"],
        ),
        (
            {},
            lambda: {**tiny().state_dict(), "network.0.0.extra": torch.zeros(1)},
            ["1 unexpected: network.0.0.extra"],
        ),
        ({}, lambda: {"epoch": 3, "optimizer": {}}, ["no weights", "epoch, optimizer"]),
        ({}, lambda: {3: torch.zeros(1)}, ["no weights"]),
    ],
    ids=["arch", "custom arch", "kernel size", "no context", "weighted", "resnet", "detector",
         "prefix", "unexpected", "no weights", "no names"],
)  # fmt: skip
def test_a_misfit_is_explained(tmp_path, model, content, words):
    path = write(tmp_path / "a.pth", content())
    with pytest.raises(CheckpointError) as error:
        load_pretrained(tiny(**model), path)
    for word in [str(path), *words]:
        assert word in str(error.value)


def test_a_detectors_checkpoint_for_a_segmentor_is_named():
    backbone = {f"backbone.{key}": value for key, value in FCViT("tiny").state_dict().items()}
    given = {**backbone, "roi_head.bbox_head.fc_cls.bias": torch.zeros(5)}
    wanted = {**backbone, "decode_head.conv_seg.bias": torch.zeros(5)}
    words = "other parts, backbone, roi_head, where this one has backbone, decode_head .take"
    with pytest.raises(CheckpointError, match=words):
        check_fit("epoch_1.pth", given, wanted)


@pytest.mark.parametrize("arch", ["tiny", "b12", "b24", "b48"])
def test_arguments_are_inferred_from_released_files(arch):
    shapes = {key: torch.empty(shape, device="meta") for key, shape in KEYS[arch].items()}
    assert infer_arguments(shapes) == {
        "arch": arch.replace("b", "s"),
        "kernel_size": (11, 11),
        "global_context": True,
        "weighted_context": True,
    }


# ------------------------------------------------------------------------------ damaged files


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize(
    ("damage", "word"),
    [
        ("absent", "no such"),
        ("empty", "empty"),
        ("text", "is a web page and no checkpoint; download|not a whole"),
        ("truncated", "damaged or not|not a whole"),
        ("list", "holds a list|not a whole"),
    ],
)
def test_damaged_file_is_one_sentence(tmp_path, name, damage, word):
    path = tmp_path / name
    if damage != "absent":
        torch.save([1, 2], path)
        if damage != "list":
            write(path, tiny().state_dict())
        data = path.read_bytes()
        path.write_bytes(
            {"empty": b"", "text": b"<html>Sign in</html>", "truncated": data[: len(data) // 2],
             "list": data}[damage]
        )  # fmt: skip
    with pytest.raises(CheckpointError, match=word) as error:
        read_checkpoint(path)
    message = str(error.value)
    assert str(path) in message and "\n" not in message and "weights_only" not in message


# ------------------------------------------------------------------------------ hostile files


@pytest.mark.parametrize("protocol", [None, 2, 4], ids=["torch", "pickle2", "pickle4"])
@pytest.mark.parametrize("function", [os.system, eval, getattr, exec], ids=lambda f: f.__name__)
def test_a_file_that_would_run_code_runs_nothing(tmp_path, protocol, function):
    mark = tmp_path / "ran"
    path = hostile(tmp_path / "a.pth", mark, protocol, function)
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    assert not mark.exists()


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_it(tmp_path, reader):
    mark = tmp_path / "ran"
    path = hostile(tmp_path / "a.pth", mark, None)
    with pytest.raises(CheckpointError):
        READERS[reader](path)
    assert not mark.exists()


def test_the_refusal_names_what_the_file_asked_for(tmp_path):
    path = hostile(tmp_path / "a.pth", tmp_path / "ran", None)
    with pytest.raises(CheckpointError, match=r"posix\.system.*Nothing of it was run"):
        read_checkpoint(path)


def test_getattr_reaches_the_history_buffers_statistics_and_nothing_else(tmp_path):
    for owner, name in ((HistoryBuffer, "__init__"), (HistoryBuffer, "__globals__"),
                        (argparse.Namespace, "mean"), (np.ndarray, "tofile")):  # fmt: skip
        torch.save({"x": Payload(getattr, owner, name)}, tmp_path / "a.pth")
        with pytest.raises(CheckpointError, match="refused"):
            read_checkpoint(tmp_path / "a.pth")


def test_arrays_that_share_no_type_object_are_read(tmp_path):
    """After a checkpoint was loaded and saved again, each array may have a type of its own."""
    types = [pickle.loads(pickle.dumps(np.dtype("f8"), 2)).newbyteorder("=") for _ in range(2)]
    arrays = [np.arange(2.0).view(one) for one in (types[0], types[0], types[1], types[1])]
    assert len({id(array.dtype) for array in arrays}) > 1
    torch.save({"arrays": arrays}, tmp_path / "a.pth")
    found = read_checkpoint(tmp_path / "a.pth")["arrays"]
    assert all(np.array_equal(array, [0, 1]) for array in found)


@pytest.mark.parametrize("core", ["core", "_core"], ids=["NumPy 1", "NumPy 2"])
@pytest.mark.parametrize("is_zip", [True, False], ids=["ZIP", "before 1.6"])
def test_what_timm_and_mmengine_write_is_read_as_it_was(tmp_path, core, is_zip):
    history = HistoryBuffer([0.5, 1.5], [1, 2])
    base = torch.arange(6.0)
    content: dict[str, Any] = {
        "state_dict": OrderedDict(whole=base, rows=base.view(2, 3)[:, 1], empty=base[:0]),
        "parameter": torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16)),
        "args": argparse.Namespace(lr=1e-3, aa=None, img_size=(3, 224, 224)),
        "param_schedulers": [{"milestones": Counter({3: 1, 9: 2}), "betas": (0.9, 0.999)}] * 3,
        "message_hub": {"log_scalars": OrderedDict([("train/loss", history)]),
                        "runtime_info": OrderedDict(n=np.float64(2.5), i=np.int64(-3))},
        "meta": {"empty": HistoryBuffer(), "text": "größe\n", "big": 2**70, "none": None,
                 "device": torch.device("cuda", 1), "size": torch.Size((2, 3)),
                 "dtype": torch.float16, "set": {"a", "b"}, "bytes": b"\x00\xff"},
    }  # fmt: skip
    content["state_dict"]._metadata = OrderedDict([("", {"version": 2})])
    path = tmp_path / "a.pth"
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    names = rb"numpy\._?core\.multiarray"
    if is_zip:
        with zipfile.ZipFile(path) as file:
            records = {name: file.read(name) for name in file.namelist()}
        with zipfile.ZipFile(path, "w") as file:
            for name, data in records.items():
                file.writestr(name, re.sub(names, b"numpy.%s.multiarray" % core.encode(), data))
    else:
        data = re.sub(names, b"numpy.%s.multiarray" % core.encode(), path.read_bytes())
        path.write_bytes(data)
    found = read_checkpoint(path)
    assert found["state_dict"]._metadata == content["state_dict"]._metadata
    weights = found["state_dict"]
    assert all(torch.equal(weights[key], value) for key, value in content["state_dict"].items())
    assert weights["rows"].stride() == (3,)
    assert weights["rows"].untyped_storage().data_ptr() == weights["whole"].data_ptr()
    parameter = found["parameter"]
    assert isinstance(parameter, torch.nn.Parameter) and parameter.requires_grad
    assert torch.equal(parameter, content["parameter"])
    for key in ("args", "param_schedulers"):
        assert found[key] == content[key]
    hub = found["message_hub"]
    assert hub["runtime_info"] == content["message_hub"]["runtime_info"]
    assert type(hub["runtime_info"]["n"]) is np.float64
    read, written = hub["log_scalars"]["train/loss"], history
    assert all(map(np.array_equal, read.data, written.data)) and read.mean() == written.mean()
    assert read.statistics("mean") == written.mean()
    assert read.data[1].dtype == np.int64 and len(found["meta"].pop("empty").data[0]) == 0
    read.update(3.0)
    content["meta"].pop("empty")
    assert found["meta"] == content["meta"]


def test_a_global_that_the_user_has_allowed_is_read(tmp_path):
    torch.save({"x": Fraction(1, 3)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"asks for fractions\.Fraction"):
        read_checkpoint(tmp_path / "a.pth")
    with torch.serialization.safe_globals([Fraction]):
        assert read_checkpoint(tmp_path / "a.pth") == {"x": Fraction(1, 3)}


@pytest.mark.parametrize("is_zip", [True, False])
def test_map_location_is_obeyed(tmp_path, is_zip):
    path = tmp_path / "a.pth"
    torch.save({"w": torch.ones(3)}, path, _use_new_zipfile_serialization=is_zip)
    for place in ("cpu", torch.device("cpu"), None, {"cpu": "cpu"}, lambda storage, _: storage):
        assert torch.equal(read_checkpoint(path, place)["w"], torch.ones(3))
    assert read_checkpoint(path, "meta")["w"].is_meta


# ------------------------------------------------------------------------------ converting


@pytest.mark.parametrize("name", ["clean.pth", "clean.safetensors"])
def test_convert_writes_weights_alone(tmp_path, released, name):
    source = write(tmp_path / "fcvit.pth.tar", released)
    target = tmp_path / name
    line = convert_checkpoint(source, target)
    assert "tiny" in line and f"{len(released['state_dict'])} tensors" in line
    assert sha256(target) in line
    clean = read_checkpoint(target)
    clean = clean.get("state_dict", clean)
    assert clean.keys() == released["state_dict"].keys()
    assert all(torch.equal(v, released["state_dict_ema"][k]) for k, v in clean.items())
    model = tiny()
    load_pretrained(model, target)
    assert_loaded(model, released["state_dict"], offset=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source.name, name])
    assert target.stat().st_mode == source.stat().st_mode


@pytest.mark.parametrize("name", ["clean.pth", "clean.safetensors"])
def test_convert_that_fails_amid_writing_leaves_what_was_there(
    tmp_path, released, monkeypatch, name
):
    source, target = write(tmp_path / "fcvit.pth.tar", released), tmp_path / name
    target.write_bytes(b"before")

    write_bytes = Path.write_bytes

    def full_disk(path, *_):
        write_bytes(path, b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", lambda weights, path: full_disk(path))
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(CheckpointError, match="can't be written.*No space left"):
        convert_checkpoint(source, target)
    assert target.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source.name, name])


def test_convert_refuses_other_targets_and_makes_folders(tmp_path, released):
    source = write(tmp_path / "fcvit.pth.tar", released)
    with pytest.raises(CheckpointError, match=r"must end in \.pth or \.safetensors"):
        convert_checkpoint(source, tmp_path / "a.onnx")
    convert_checkpoint(source, tmp_path / "new/folder/a.pth")
    assert (tmp_path / "new/folder/a.pth").is_file()


def test_mmengine_config_carries_the_switch():
    cfg = Config(dict(init_cfg=dict(type="Pretrained", checkpoint="a.pth", ema=False)))
    with pytest.raises(CheckpointError, match=r"a\.pth: there is no such"):
        tiny(init_cfg=cfg.init_cfg).init_weights()
