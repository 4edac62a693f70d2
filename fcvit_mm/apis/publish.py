"""Publish the best model of a work directory as a folder that anybody can load, test and upload."""

import math
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmengine.config import Config

from .. import __version__
from ..engine import runner
from ..models.weights import write_weights
from ..utils import work_dir
from ..utils.cli import require, writing
from ..utils.config import drop_pretrained, iter_leaf_datasets, load_config, task_of
from ..utils.errors import ConfigError, first_line
from ..utils.files import make_folder, sha256, write_json
from .model import load_model

# The Hub's names of our tasks.
PIPELINES = {
    "detection": "object-detection",
    "segmentation": "image-segmentation",
    "classification": "image-classification",
}
SUMS = "SHA256SUMS"
CARD = """\
# {name}

A {method} with the backbone FCViT ([paper](https://arxiv.org/abs/2212.12552)), trained with
fcvit_mm {version}. Classes: {classes}.

```python
import fcvit_mm

predictor = fcvit_mm.load("{name}")
result = predictor("image.jpg")
```

{measured}

`config.json` has classes, colors, preprocessing and metrics, `{config}` all settings of the
training. `sha256sum -c {sums}` checks the files.
"""


def publish(folder: Path, out: Path, test: bool = True) -> list[Path]:
    """Write weights, config, classes, preprocessing, metrics, model card and checksums to a folder.

    It is written as a whole or not at all. `load` and `fcvit test` take it like a work directory.

    Args:
        folder: a work directory; its best checkpoint is taken, or else its newest.
        out: the folder to write; it must not be there yet.
        test: measure the metrics, on the test dataset of the config.

    Returns:
        The files.

    Raises:
        ConfigError: no work directory, no data to test with, or a folder that can't be written.
        CheckpointError: the checkpoint can't be read, or does not fill the model.
    """
    require("huggingface_hub", "hub")
    if out.exists():
        raise ConfigError(f"{out} is there already; remove it, or name another folder")
    config, checkpoint = work_dir.find(folder)
    model = load_model(load_config(str(folder)), str(checkpoint), torch.device("cpu"))
    cfg = load_config(str(folder))
    _make_portable(cfg, model.dataset_meta)
    with writing(out):
        make_folder(out.parent)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        made = Path(scratch, out.name)
        with writing(out):
            write_weights(model.state_dict(), made / work_dir.PUBLISHED)
            cfg.dump(made / config.name)
        facts = _describe(cfg, model.dataset_meta)
        if test:
            command, values = f"fcvit test {out.name}", _measure(made, folder)
            facts["metrics"] = {"command": command, "values": values}
        with writing(out):
            write_json(made / "config.json", facts)
            _write_card(made, config.name, facts)
            sums = [f"{sha256(path)}  {path.name}\n" for path in sorted(made.iterdir())]
            (made / SUMS).write_text("".join(sums))
            os.replace(made, out)
    return sorted(out.iterdir())


def upload(out: Path, repository: str) -> str:
    """Upload a published folder to `ORG/NAME` on the Hugging Face Hub; returns its address.

    Raises:
        ConfigError: not logged in, no such organization, no network.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=out)
    except Exception as error:  # of the Hub's client and of the one that it talks with
        raise ConfigError(
            f"{out} is complete, but was not uploaded to {repository}: {first_line(error)}; log in "
            f"with hf auth login, then: hf upload {repository} {out}"
        ) from error
    return str(address)


def _make_portable(cfg: Config, meta: dict[str, Any]) -> None:
    """Take out of a config what belongs to its training's machine, and put the classes in."""
    for key in ("work_dir", "launcher", "load_from", "resume"):
        cfg._cfg_dict.pop(key, None)
    drop_pretrained(cfg)
    for _, dataset in iter_leaf_datasets(cfg.test_dataloader.dataset, ""):
        dataset["metainfo"] = {**(dataset.get("metainfo") or {}), **meta}


def _describe(cfg: Config, meta: dict[str, Any]) -> dict[str, Any]:
    """Return what a program without OpenMMLab wants to know of a model."""
    _, dataset = next(iter_leaf_datasets(cfg.test_dataloader.dataset, ""))
    return {
        "task": task_of(cfg),
        "method": cfg.model.type,
        **meta,
        "preprocessing": {
            "pipeline": dataset["pipeline"],
            "data_preprocessor": cfg.model.get("data_preprocessor"),
        },
        "dataset": {"type": dataset["type"], "data_root": dataset.get("data_root")},
        "versions": {"fcvit_mm": __version__, "torch": torch.__version__},
    }


def _measure(made: Path, folder: Path) -> dict[str, float]:
    """Test a published folder as `fcvit test` does; its logs go to the work directory."""
    config, checkpoint = work_dir.find(made)
    cfg = load_config(str(config), work_dir=str(folder))
    cfg.load_from = str(checkpoint)
    try:
        measured = runner.test(cfg)
    except ConfigError as error:
        raise ConfigError(f"{error} To publish without metrics, add --no-test.") from error
    # MMDetection's are -1 for sizes of which there are no objects; MMSegmentation's are NumPy's
    found = {key: round(float(value), 4) for key, value in measured.items()}
    return {key: value for key, value in found.items() if math.isfinite(value) and value >= 0}


def _write_card(made: Path, config: str, facts: dict[str, Any]) -> None:
    """Write the model card as the Hub reads it: its data in YAML, then a page."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    metrics = facts.get("metrics", {"values": {}, "command": ""})
    dataset, pipeline = facts["dataset"], PIPELINES[facts["task"]]
    results = [
        EvalResult(
            task_type=pipeline,
            dataset_type=dataset["type"],
            dataset_name=Path(dataset["data_root"] or dataset["type"]).name,
            metric_type=key,
            metric_name=key,
            metric_value=value,
        )
        for key, value in metrics["values"].items()
    ]
    data = ModelCardData(
        library_name="fcvit_mm",
        pipeline_tag=pipeline,
        tags=["fcvit", "openmmlab", facts["method"].lower()],
        model_name=made.name,
        eval_results=results,
    )
    rows = [f"| {key} | {value} |" for key, value in metrics["values"].items()]
    measured = "Its metrics were not measured."
    if rows:
        table = "\n".join(["| metric | value |", "|---|---|", *rows])
        measured = f"{table}\n\nMeasured by `{metrics['command']}` on {results[0].dataset_name}."
    page = CARD.format(
        name=made.name,
        method=facts["method"],
        version=__version__,
        classes=", ".join(facts["classes"]),
        measured=measured,
        config=config,
        sums=SUMS,
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{page}").save(made / "README.md")
