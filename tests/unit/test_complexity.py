"""What a model costs, against counts by hand."""

from collections import Counter

import pytest
import torch
from mmengine.config import Config
from torch import nn

from fcvit_mm import FCViT
from fcvit_mm.analysis import complexity, tracing, workload
from fcvit_mm.models.layers import NUM_HEADS, GlobalContext
from fcvit_mm.ops import row_tiling
from fcvit_mm.utils.config import load_config
from fcvit_mm.utils.errors import ConfigError
from helpers import ROOT
from helpers.models import CONFIGS
from helpers.plain import PlainFCViT, saved_bytes
from helpers.tools import load_tool

SIZE = (64, 96)
CPU = torch.device("cpu")


def built(scope: str) -> nn.Module:
    return workload.build(load_config(str(CONFIGS[scope])))


# ------------------------------------------------------------------------------ multiply-adds


def by_hand(model: nn.Module, scope: str, size: tuple[int, int]) -> Counter:
    """Multiply-adds by module, from the shapes that layers see in an ordinary prediction."""
    found: Counter = Counter()

    def book(name: str, number: int) -> None:
        found[name] += number

    def counted(name, module):
        """Its forward, as hooks would see no row tiles."""
        forward = module.forward

        def count(x):
            output = forward(x)
            if isinstance(module, nn.ConvTranspose2d):
                book(name, x.numel() * module.weight[0].numel())
            elif isinstance(module, nn.Conv2d):
                book(name, output.numel() * module.weight[0].numel())
            elif isinstance(module, nn.Linear):
                book(name, output.numel() * module.in_features)
            elif isinstance(module, GlobalContext):
                # of each position with a matrix (d, h), and back
                book(name, 2 * x.numel() * NUM_HEADS)
            return output

        return count

    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, GlobalContext)
    modules = {name: each for name, each in model.named_modules() if isinstance(each, kinds)}
    for name, module in modules.items():
        vars(module)["forward"] = counted(name, module)
    with torch.no_grad():
        workload.run_prediction(
            model, torch.rand(1, 3, *size), workload.example_samples(scope, size, 1, CPU)
        )
    for module in modules.values():
        del module.forward
    return found


@pytest.mark.official
@pytest.mark.parametrize("scope", CONFIGS)
def test_parameters_and_multiply_adds_are_those_counted_by_hand(scope):
    model = built(scope)
    measured = complexity.measure(model, scope, SIZE)
    expected = by_hand(model, scope, SIZE)
    assert measured.total.multiply_adds == expected.total() > 1e7
    assert measured.total.parameters == sum(p.numel() for p in model.parameters())
    rows = {row.part: row for row in measured.rows}
    belongs = {"stem": ["patch_embed."]} | {
        f"stage {i + 1}": [f"network.{2 * i - 1}.", f"network.{2 * i}.", f"norm{2 * i}."]
        for i in range(4)
    }
    for part, prefixes in belongs.items():
        starts = tuple(f"backbone.{prefix}" for prefix in prefixes)
        numbers = [n for name, n in expected.items() if name.startswith(starts)]
        parameters = [p for name, p in model.named_parameters() if name.startswith(starts)]
        assert rows[f"backbone: {part}"].multiply_adds == sum(numbers) > 0
        assert rows[f"backbone: {part}"].parameters == sum(p.numel() for p in parameters)
    for part in rows.keys() - {f"backbone: {part}" for part in belongs} - {tracing.REST}:
        start = part.replace(": ", ".") + "."
        assert rows[part].multiply_adds == sum(
            n for name, n in expected.items() if name.startswith(start)
        )


def test_attention_counts_as_its_products():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.MultiheadAttention(32, 4, batch_first=True)

        def forward(self, x):
            tokens = x.flatten(2).mT.repeat(1, 1, 11)[..., :32]
            return self.inner(tokens, tokens, tokens, need_weights=False)[0]

    n, d = 6 * 4, 32
    # four projections of each token; each token's similarity to each, and the sums by it
    assert (
        complexity.multiply_adds(Attention().eval(), "mmpretrain", (6, 4))
        == 4 * n * d**2 + 2 * n**2 * d
    )


def test_rows_that_strips_compute_twice_count_once(monkeypatch):
    model = FCViT("tiny").eval()
    expected = complexity.multiply_adds(model, "mmpretrain", SIZE)
    assert expected == by_hand(model, "mmpretrain", SIZE).total()
    monkeypatch.setattr(row_tiling, "PREDICTION_BYTES", 2**12)
    assert by_hand(model, "mmpretrain", SIZE).total() > 1.1 * expected
    assert complexity.multiply_adds(model, "mmpretrain", SIZE) == expected


def test_the_backbone_is_linear_in_the_pixels():
    model = FCViT("tiny").eval()
    small, large = (
        complexity.multiply_adds(model, "mmpretrain", size) for size in ((64, 64), (128, 192))
    )
    # but for the context vectors' linear layers, of which there is one an image
    constant = sum(
        linear.weight.numel() for linear in model.modules() if isinstance(linear, nn.Linear)
    )
    assert large - constant == 6 * (small - constant)


# ------------------------------------------------------------------------------------- memory


def test_memory_counts_each_tensor_while_it_is_there():
    x = torch.rand(1000)
    with tracing.Memory(nn.Module()) as found:
        a = x + 1
        b = a.view(10, 100)  # the same bytes
        assert found.now == 4000
        c = b.double()
        assert found.now == 12000
        del a
        assert found.now == 12000
        del b
        assert found.now == 8000
        c += 1  # in place
        assert (found.now, found.peak) == (8000, 12000)
        assert found.kept() == {tracing.REST: 8000}
    del c


def test_memory_leaves_out_what_was_there():
    x, weight = torch.rand(10, 10), torch.rand(10, 10)
    with tracing.Memory(nn.Module(), x, weight) as found:
        views = x.view(100), weight.mT
        assert found.now == found.peak == 0
        product = x @ weight
        assert found.now == 400
    del views, product


def test_what_is_kept_is_what_autograd_saves(monkeypatch):
    """Compared with autograd's hooks, with row tiles and without, which keeps twice as much."""
    monkeypatch.setattr(row_tiling, "TRAINING_BYTES", 2**12)
    found = {}
    for model in (FCViT("tiny"), PlainFCViT("tiny")):
        x = torch.rand(2, 3, *SIZE)
        tracing.keep_statistics(model)
        expected = saved_bytes(model, x)
        found[type(model)] = tracing.kept_for_backward(model.eval(), x, []).total()
        assert found[type(model)] == pytest.approx(expected, rel=0.01)
        assert not model.training
    assert found[FCViT] < 0.5 * found[PlainFCViT]


def test_a_single_position_is_no_obstacle_to_training():
    """BatchNorm refuses one in training mode, in which all other layers are."""

    class Seen(nn.Module):
        def forward(self, x):
            return modes.append(self.training) or x

    modes: list[bool] = []
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), Seen()).eval()
    assert tracing.kept_for_backward(model, torch.rand(1, 3, 4, 4), []).total() > 0
    assert modes == [True] and not model.training


def test_what_is_kept_belongs_to_the_part_that_made_it():
    model = FCViT("tiny").eval()
    kept = tracing.kept_for_backward(model, torch.rand(1, 3, *SIZE), [])
    del model.network[1:]
    del model.norm2, model.norm4, model.norm6
    model.out_indices = (0,)
    shallow = tracing.kept_for_backward(model, torch.rand(1, 3, *SIZE), [])
    for part in ("stem", "stage 1"):
        assert kept[part] == shallow[part] > 0
    assert not any(shallow[f"stage {i}"] for i in (2, 3, 4))


def test_the_peak_of_a_prediction():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1), nn.Conv2d(2, 2, 1)).eval()
    x = torch.rand(1, 3, 5, 7)
    with torch.no_grad(), tracing.Memory(model, x) as found:
        model(x)
    # in- and output of a layer are there together, but for the image
    maps = [4 * 35 * channels for channels in (8, 8 + 2, 2 + 2)]
    assert [found.peaks[name] for name in "012"] == maps and found.peak == max(maps)


# -------------------------------------------------------------------------------------- parts


class Inner(nn.Module):
    def forward(self, watch: tracing.Watch) -> str:
        if watch.part != "b":
            raise ValueError(watch.part)
        return watch.part


class Outer(nn.Module):
    def __init__(self, inner: Inner) -> None:
        super().__init__()
        self.inner = [inner]

    def forward(self, watch: tracing.Watch) -> list[str]:
        # directly, as MMSegmentation calls its heads
        return [watch.part, self.inner[0].forward(watch), watch.part]


def test_a_watch_knows_the_innermost_part_and_leaves_no_trace():
    inner = Inner()
    model = nn.ModuleDict({"a": Outer(inner), "b": inner})
    with tracing.Watch(model) as watch:
        assert model["a"](watch) == ["a", "b", "a"] and watch.part == tracing.REST
        with pytest.raises(ValueError, match=tracing.REST):
            model["a"](tracing.Watch(nn.Module()))
        assert watch.part == tracing.REST
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("size", [(64, 96), (100, 75), (33, 200)])
def test_strides_are_the_backbones(size):
    model = FCViT("tiny").eval()
    shapes = complexity.count(model, "mmpretrain", size).shapes
    maps = [shapes[f"stage {i}"][0] for i in range(1, 5)]
    strides = [complexity.stride_of(shape, size) for shape in maps]
    assert tuple(strides) == model.strides
    assert [channels for _, channels, *_ in maps] == list(model.out_channels)


def test_what_is_no_map_of_the_image_has_no_stride():
    for shape in ((1, 8, 3, 100), (2, 8, 16, 16), (16, 16)):
        assert complexity.stride_of(shape, (64, 64)) is None


def test_outputs_are_written_with_channels_once():
    outputs = [
        complexity.Output((1, 64, 32, 48), 4),
        complexity.Output((1, 64, 16, 24), 8),
        complexity.Output((1, 5, 32, 48), 4),
        complexity.Output((100, 8), None),
        complexity.Output((1, 300, 8), None),
    ]
    assert load_tool("model_info").as_text([*outputs, *outputs]) == [
        ("64: 32x48 16x24", "4 8"), ("5: 32x48", "4"), ("100x8", ""), ("300x8", ""),
    ]  # fmt: skip


# --------------------------------------------------------------------------- what models are run on


@pytest.mark.official
@pytest.mark.parametrize("scope", CONFIGS)
def test_a_model_learns_from_the_example(scope):
    """A loss with a gradient for every part of the model, for two images of an odd size."""
    model, size = built(scope).train(), (41, 67)
    inputs, samples = torch.rand(2, 3, *size), workload.example_samples(scope, size, 2, CPU)
    loss = workload.run_loss(model, inputs, samples)
    loss.backward()
    assert loss.isfinite() and loss > 0
    for name, modules in tracing.parts_of(model).items():
        parameters = [p for module in modules for p in module.parameters()]
        assert not parameters or any(p.grad is not None and p.grad.any() for p in parameters), name


def test_a_detector_keeps_as_many_as_are_wanted_at_most():
    """Of the anchors of four maps, many overlapping, the largest map's best and all others."""
    wanted = {"rpn.max_per_img": 1000, "rcnn.max_per_img": 300}
    options = {f"model.test_cfg.{key}": number for key, number in wanted.items()}
    model = workload.build(load_config(str(CONFIGS["mmdet"]), options))
    shapes = complexity.count(model, "mmdet", (64, 64)).shapes
    proposals = model.test_cfg.rpn.nms_pre + 3 * (8 * 8 + 4 * 4 + 2 * 2)
    assert shapes["roi_head: bbox_head"][0][0] == proposals < 1000
    assert shapes["roi_head: mask_head"][0][0] == 300
    samples = workload.example_samples("mmdet", (64, 64), 1, CPU)
    (found,) = workload.run_prediction(model, torch.rand(1, 3, 64, 64), samples)
    assert len(found.pred_instances) == 300


def test_the_objects_of_the_example_are_the_quarters():
    (sample,) = workload.example_samples("mmdet", (40, 60), 1, CPU)
    masks, boxes = sample.gt_instances.masks.to_ndarray(), sample.gt_instances.bboxes
    assert (masks.sum(0) == 1).all()
    for mask, box in zip(masks, boxes.int().tolist(), strict=True):
        left, top, right, bottom = box
        assert mask[top:bottom, left:right].all() and mask.sum() == 20 * 30


# -------------------------------------------------------------------------------------- sweep


def test_fit_is_the_line_through_what_lies_on_one():
    line = complexity.fit([1, 2, 5], [5, 7, 13])
    assert line == pytest.approx({"start": 3, "slope": 2, "residual": 0}, abs=1e-9)
    # the mean, as a bend in the middle has no slope
    line = complexity.fit([0, 1, 2], [10, 13, 10])
    assert line == pytest.approx({"start": 11, "slope": 0, "residual": 2 / 11}, abs=1e-9)


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        ((128, 128), [(32, 32), (64, 64), (96, 96), (128, 128)]),
        ((800, 1280), [(192, 320), (288, 480), (384, 640), (512, 800), (608, 960), (704, 1120),
                       (800, 1280)]),
    ],
)  # fmt: skip
def test_sizes_of_a_sweep(size, sizes):
    assert complexity.sweep_sizes(size) == sizes


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("detection/retinanet_fcvit_s12_1x_coco", (800, 1280)),
        ("segmentation/semantic_fpn_fcvit_s12_80k_cityscapes", (512, 1024)),
        ("detection/mask2former_fcvit_s12_50e_coco", (800, 1280)),
        ("segmentation/upernet_fcvit_s12_ade20k", (512, 512)),
        ("classification/fcvit_tiny_in1k", (224, 224)),
        ("segmentation/upernet_fcvit_tiny_shapes", (128, 128)),
    ],
)
def test_the_size_is_that_of_the_test_pipeline_whatever_the_file_is_called(name, size, tmp_path):
    cfg = load_config(str(ROOT / f"configs/{name}.py"))
    assert workload.default_size(cfg) == size
    cfg.dump(tmp_path / "mine_cityscapes.py")
    assert workload.default_size(Config.fromfile(tmp_path / "mine_cityscapes.py")) == size


@pytest.mark.parametrize(
    ("steps", "size"),
    [
        ([dict(type="Resize", scale=(640, 480))], (480, 640)),
        ([dict(type="Resize", scale=640)], (640, 640)),
        ([dict(type="Resize", scale=(640, 640), keep_ratio=True)], (416, 640)),
        ([dict(type="Resize", scale=(640, 640), keep_ratio=True),
          dict(type="Pad", size=(640, 640))], (640, 640)),
        ([dict(type="ResizeEdge", scale=256), dict(type="CenterCrop", crop_size=224)], (224, 224)),
    ],
    ids=str,
)  # fmt: skip
def test_the_size_of_a_pipeline_of_ones_own(steps, size):
    cfg = load_config(str(CONFIGS["mmdet"]))
    cfg.test_dataloader.dataset.pipeline = [dict(type="LoadImageFromFile"), *steps]
    assert workload.default_size(cfg) == size


@pytest.mark.parametrize("scope", ["mmdet", "mmpretrain"])
def test_images_that_keep_their_size_have_that_of_the_first(scope, example_data, monkeypatch):
    cfg = load_config(str(CONFIGS[scope]))
    monkeypatch.chdir(example_data / "data")
    with pytest.raises(ConfigError, match="its dataset is not there: give their --size"):
        workload.default_size(cfg)
    monkeypatch.chdir(example_data)
    assert workload.default_size(cfg) == {"mmdet": (64, 64), "mmpretrain": (32, 32)}[scope]


# ---------------------------------------------------------------------------------- the tool


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--json", "{}/file/a.json"], "a.json can't be written: File exists"),
        (["--json", "{}/folder.json"], "folder.json can't be written: Is a directory"),
        (["--sweep", "{}/a.png", "--size", "32", "64"], "too few multiples of 32 up to 32 64"),
    ],
)
def test_what_cannot_be_written_is_refused_first(tmp_path, monkeypatch, options, words):
    (tmp_path / "file").touch()
    (tmp_path / "folder.json").mkdir()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(complexity, "measure", None)
    options = [option.format(tmp_path) for option in options]
    with pytest.raises(ConfigError, match=words):
        load_tool("model_info").main([str(CONFIGS["mmseg"]), *options])
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("default_scope = 'mmseg'", "mine.py has no model"),
        ("default_scope = 'mmseg'; model = 3", "mine.py has no model"),
        ("model = dict(type='A')", "mine.py: default_scope is None"),
    ],
)
def test_a_config_of_something_else_is_refused(tmp_path, text, words):
    (tmp_path / "mine.py").write_text(text)
    cfg = load_config(str(tmp_path / "mine.py"))
    with pytest.raises(ConfigError, match=words):
        load_tool("model_info").main([str(tmp_path / "mine.py")])
    if "None" in words:
        with pytest.raises(ConfigError, match=words):
            workload.default_size(cfg)
