"""Benchmarks with a clock of our own: nothing is timed."""

import statistics

import pytest
import torch
from mmengine.config import Config
from torch import Tensor, nn

from fcvit_mm import FCViT
from fcvit_mm.analysis import benchmark
from fcvit_mm.analysis.benchmark import PREDICTION, TRAINING, Subject
from fcvit_mm.utils.errors import ConfigError
from helpers.models import CONFIGS
from helpers.tools import load_tool

CPU = torch.device("cpu")


class Clock:
    """Seconds that pass only as long as somebody works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


# -------------------------------------------------------------------------------------- timing


def test_calls_take_turns_and_each_round_begins_with_another():
    clock, order = Clock(), []

    def worker(name, seconds):
        def work():
            order.append(name)
            # slower every time
            clock.now += seconds * order.count(name)

        return work

    calls = {name: worker(name, seconds) for name, seconds in (("a", 1), ("b", 2), ("c", 4))}
    times = benchmark.interleave(calls, 4, clock)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab" + "abc"
    # the first call of each, before the rounds, does not count
    assert times == {
        name: [1000 * seconds * count for count in (2, 3, 4, 5)]
        for name, seconds in (("a", 1), ("b", 2), ("c", 4))
    }


def test_at_least_seven_rounds_are_the_default():
    assert load_tool("benchmark").parse_args(["a.py"]).repeats >= 7


# -------------------------------------------------------------------------------------- models


class Worker(nn.Module):
    """Takes some seconds for a forward pass; remembers in which mode it was called."""

    def __init__(self, clock: Clock, seconds: list[float]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 1)
        self.clock, self.seconds = clock, iter(seconds)
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.clock.now += next(self.seconds)
        self.modes.append((self.training, torch.is_grad_enabled()))
        return self.conv(x)


def test_results_are_medians_ratios_and_throughput():
    clock, inputs = Clock(), torch.rand(4, 3, 2, 6)
    # before the three rounds: a first run, one for memory, one before the clock
    rounds = {"a": [10, 20, 60], "b": [30, 10, 20], "c": [5, 7, 5]}
    workers = {name: Worker(clock, [99, 99, 99, *seconds] * 2) for name, seconds in rounds.items()}
    models = [Subject(name, worker, inputs, []) for name, worker in workers.items()]
    results = benchmark.measure(models, training=True, repeats=3, clock=clock)
    assert [(r.activity, r.name) for r in results] == [
        (activity, name) for activity in (PREDICTION, TRAINING) for name in rounds
    ]
    for result in results:
        expected = [1000 * s for s in rounds[result.name]]
        assert result.milliseconds == pytest.approx(expected)
        lower, median, upper = statistics.quantiles(expected, n=4, method="inclusive")
        assert result.time == pytest.approx({"lower": lower, "median": median, "upper": upper})
    medians = [20, 20, 5] * 2
    assert [r.time["median"] for r in results] == pytest.approx([1000 * m for m in medians])
    assert [r.ratio for r in results] == pytest.approx([m / 20 for m in medians])
    assert [r.images_per_second for r in results] == pytest.approx([4 / m for m in medians])
    for worker in workers.values():
        assert worker.modes == [(False, False)] * 6 + [(True, True)] * 6
        assert worker.conv.weight.grad is None


def test_peak_memory_by_hand():
    """12 positions, of 5 channels, in float32; a gradient is as large as its tensor."""
    subject = Subject("a", Worker(Clock(), [0.0] * 9), torch.rand(1, 3, 2, 6), [])
    output, weights = 4 * 12 * 5, 4 * (3 * 5 + 5)
    subject.model.eval()
    assert benchmark.peak_memory(subject) == output
    subject.model.train()
    found = benchmark.peak_memory(subject)
    # the gradient of the output, those of weights, and a few single numbers
    assert output + weights <= found <= 2 * output + weights + 64


@pytest.mark.official
def test_peers_have_maps_at_strides_4_to_32():
    models = benchmark.subjects([str(CONFIGS["mmseg"])], True, True, (64, 64), 1, CPU)
    assert [subject.name for subject in models] == [CONFIGS["mmseg"].stem, *benchmark.PEERS]
    assert isinstance(models[0].model, FCViT)
    for subject in models[1:]:
        assert not subject.model.training
        outs = subject.model(subject.inputs)
        sizes = [tuple(out.shape[2:]) for out in outs]
        assert sizes == [(16, 16), (8, 8), (4, 4), (2, 2)]
    # as their authors count them, without a classifier
    millions = {"ResNet-50": 23.5, "ConvNeXt-T": 27.8, "PoolFormer-S24": 20.9, "Swin-T": 27.5}
    for subject in models[1:]:
        count = sum(p.numel() for p in subject.model.parameters()) / 1e6
        assert count == pytest.approx(millions[subject.name], abs=0.1)


# ------------------------------------------------------------------------------------ the tool


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([CONFIGS["mmseg"], "absent.py"], "absent.py: there is no such config"),
        ([CONFIGS["mmseg"], "--json", f"{__file__}/a.json"], "--json .*a.json can't be written"),
        ([CONFIGS["mmseg"]] * 2, "two models are named semantic_fpn"),
    ],
)
def test_what_cannot_be_measured_is_refused_first(monkeypatch, arguments, words):
    monkeypatch.setattr(benchmark, "measure", None)
    with pytest.raises(ConfigError, match=words):
        load_tool("benchmark").main([str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("options", "alone"), [([], False), (["--backbone"], True), (["--peers"], True)]
)
def test_peers_are_measured_beside_backbones(monkeypatch, options, alone):
    def subjects(configs, backbones, peers, *_):
        raise ConfigError(f"{backbones} {peers}")

    monkeypatch.setattr(benchmark, "subjects", subjects)
    with pytest.raises(ConfigError, match=f"^{alone} {'--peers' in options}$"):
        load_tool("benchmark").main([str(CONFIGS["mmseg"]), *options])


def test_a_model_without_a_backbone_is_refused(tmp_path):
    cfg = Config.fromfile(CONFIGS["mmseg"])
    cfg.model = dict(type="mmpretrain.ResNet", depth=18)
    cfg.dump(tmp_path / "mine.py")
    with pytest.raises(ConfigError, match="the model has no backbone; leave out --backbone"):
        benchmark.subjects([str(tmp_path / "mine.py")], True, False, (64, 64), 1, CPU)
