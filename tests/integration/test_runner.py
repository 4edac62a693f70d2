"""What keeps a Runner of the smallest detector from being built is a sentence."""

import pytest

from fcvit_mm import engine
from fcvit_mm.utils.config import load_config
from fcvit_mm.utils.errors import ConfigError
from helpers.trainings import DETECTION


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model.backbone.arch": "s13"}, ["'s13'", "nearest name is 's12'"]),
        ({"model.type": "MaskRCNNN"}, ["MaskRCNNN"]),
        ({"optim_wrapper.type": "NoSuchWrapper"}, ["NoSuchWrapper"]),
        ({"train_dataloader.dataset.type": "NoSuchSet"}, ["NoSuchSet"]),
        ({"val_evaluator.metric": "no_such_metric"}, ["no_such_metric"]),
        ({"activation_checkpointing": ["nope"]}, ["nope"]),
        ({"efficient_conv_bn_eval": 3}, ["not iterable"]),
        ({"model.neck.in_channels": [8, 16]}, ["is [8, 16]", "=[32, 64, 160, 320], or"]),
        ({"model.neck.in_channels": [32, 64, 160, 256]}, ["is [32, 64, 160, 256]"]),
    ],
    ids=str,
)
def test_what_can_not_be_built_is_a_sentence(example_data, monkeypatch, tmp_path, options, words):
    monkeypatch.chdir(example_data)
    cfg = load_config(str(DETECTION), options, str(tmp_path))
    with pytest.raises(ConfigError) as error:
        engine.build_runner(cfg)
    message = str(error.value)
    assert all(word in message for word in words) and "\n" not in message


def test_what_can_not_be_compiled_is_a_sentence(example_data, monkeypatch, tmp_path):
    monkeypatch.chdir(example_data)
    cfg = load_config(str(DETECTION), {"compile": [1]}, str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"compile=\[1\] can't be done: .*should be a dict or bool"
    ):
        engine.build_runner(cfg)._maybe_compile("train_step")
