"""The model index lists every config, with what is counted and what was published."""

import re
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from mmengine.infer import BaseInferencer

from helpers import ROOT, model_index

REMEDY = "run: python tests/helpers/model_index.py"
METAFILES = [
    yaml.safe_load((ROOT / path).read_text())["Models"]
    for path in yaml.safe_load((ROOT / "model-index.yml").read_text())["Import"]
]
MODELS = {model["Config"]: model for models in METAFILES for model in models}
SMALLEST = [
    min(models, key=lambda m: m["Metadata"]["Parameters"])["Config"] for models in METAFILES
]


def test_every_config_is_listed():
    configs = {str(path.relative_to(ROOT)) for path in model_index.leaves()}
    assert set(MODELS) == configs, REMEDY


@pytest.mark.slow
def test_the_files_are_what_the_configs_say():
    """But for the FLOPs, which take longer; see the next test."""

    def known(config: Path) -> int:
        return MODELS[str(config.relative_to(ROOT))]["Metadata"]["FLOPs"]

    for path, text in model_index.files(known).items():
        assert path.read_text() == text, f"{path.relative_to(ROOT)} is out of date; {REMEDY}"


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if "_s12_" in n else []) for n in SMALLEST]
)
def test_flops(name):
    entry = model_index.entry(ROOT / name)
    assert MODELS[name]["Metadata"]["FLOPs"] == entry["Metadata"]["FLOPs"], REMEDY


def test_arithmetic_left_out_is_still_counted():
    """The count does not depend on whether anything is computed."""
    cfg = Config.fromfile(ROOT / "configs/classification/fcvit_tiny_in1k.py")
    model = model_index.build(cfg)
    # a stem of 7x7 on a quarter of the positions, from 3 channels to 32
    assert model_index.multiply_adds(model.backbone.patch_embed, "mmpretrain", (64, 64)) == (
        7 * 7 * 3 * 32 * 16 * 16
    )


@pytest.mark.parametrize("name", model_index.PUBLISHED)
def test_published_figures_are_those_of_the_configs_headers(name):
    (config,) = [path for path in MODELS if Path(path).stem == name]
    root = re.sub("fcvit_(tiny|s24|s48)_", "fcvit_s12_", config)
    header = (ROOT / root).read_text()
    for result in MODELS[config]["Results"]:
        for figure in result["Metrics"].values():
            assert re.search(rf"\b{figure}\b", header), f"{figure} is not in {root}"


@pytest.mark.official
def test_openmmlab_reads_the_index():
    """As its inferencers list a package's models."""
    found = BaseInferencer._get_models_from_metafile(str(ROOT / "fcvit_mm/.mim"))
    assert {model["Config"] for model in found} == set(MODELS)
