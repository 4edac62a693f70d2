"""Images and annotations that can't be loaded, in the processes of a training's loader."""

import json
import re
from itertools import islice
from typing import Any

import pytest
from mmengine.registry import init_default_scope

from fcvit_mm.engine.failures import naming_dead_workers
from fcvit_mm.engine.seeding import RepeatableRunner
from fcvit_mm.utils.cli import run_tool
from fcvit_mm.utils.config import load_config
from fcvit_mm.utils.errors import SampleError
from helpers.tools import TASKS


@pytest.mark.official
@pytest.mark.parametrize(
    ("kind", "workers"),
    [("image", 1), ("label map", 0)]
    + [
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [("image", 0), ("label map", 1), ("mask", 0), ("mask", 1)]
    ],
)
def test_what_can_not_be_loaded_ends_a_training_in_a_sentence(data, kind, workers):
    """Without the check, or where the damage comes later."""
    path = data / f"{'images' if kind == 'image' else 'label_maps'}/train/00003.png"
    path.write_bytes(path.read_bytes()[:100])
    annotations = data / "annotations/instances_train.json"
    content = json.loads(annotations.read_text())
    if kind == "mask":
        for annotation in content["annotations"]:
            if annotation["image_id"] == 4:
                annotation["segmentation"] = [[1, 2, 30, 4, "", 60]]
    annotations.write_text(json.dumps(content))
    cfg = load_config(str(TASKS["segmentation" if kind == "label map" else "detection"]))
    init_default_scope(cfg.default_scope)
    cfg.train_dataloader.update(num_workers=workers, persistent_workers=False)
    loader = RepeatableRunner.build_dataloader(cfg.train_dataloader, seed=0)
    with pytest.raises(SampleError) as error, naming_dead_workers():
        list(islice(loader, 8))
    what = "the annotation of data/shapes/images/train/00003.png" if kind == "mask" else str(path)
    what = what.replace(f"{data}", "data/shapes")
    assert re.fullmatch(
        f"{what} can't be loaded \\(.+\\); replace it. fcvit check_data --decode .*",
        str(error.value),
    )

    def main(argv: Any) -> None:
        raise error.value

    assert run_tool(main) == 2
