"""Write model-index.yml and its metafiles anew from the configs.

    python tests/helpers/model_index.py

A metafile a method, in OpenMMLab's form. What is published is in the tables here; parameters,
FLOPs and schedules come from the configs.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config

from fcvit_mm.analysis.complexity import multiply_adds
from fcvit_mm.analysis.workload import build
from fcvit_mm.checkpoint.downloads import RELEASED

ROOT = Path(__file__).parents[2]
ARXIV = "https://arxiv.org/abs/"
FCVIT = {
    "Title": "A Close Look at Spatial Modeling: From Attention to Convolution",
    "URL": ARXIV + "2212.12552",
}
NAME = re.compile(
    r"(?:(?P<method>\w+)_)?fcvit_(?P<arch>tiny|s12|s24|s48)(?:_\w+)?_(?P<data>[a-z0-9]+)"
)


@dataclass
class Method:
    """A family of configs: `{folder}/{prefix}_fcvit_*.py`."""

    name: str
    title: str
    arxiv: str
    parts: list[str]


METHODS = {
    "classification/fcvit": Method("FCViT", FCVIT["Title"], "2212.12552", ["Global Context"]),
    "detection/cascade_mask_rcnn": Method(
        "Cascade Mask R-CNN",
        "Cascade R-CNN: High Quality Object Detection and Instance Segmentation",
        "1906.09756",
        ["Cascade R-CNN", "FPN", "RPN", "RoIAlign"],
    ),
    "detection/dino": Method(
        "DINO",
        "DINO: DETR with Improved DeNoising Anchor Boxes for End-to-End Object Detection",
        "2203.03605",
        ["Deformable Attention", "Transformer"],
    ),
    "detection/mask2former": Method(
        "Mask2Former for instances",
        "Masked-attention Mask Transformer for Universal Image Segmentation",
        "2112.01527",
        ["Deformable Attention", "Transformer"],
    ),
    "detection/mask_rcnn": Method(
        "Mask R-CNN", "Mask R-CNN", "1703.06870", ["FPN", "RPN", "RoIAlign"]
    ),
    "detection/retinanet": Method(
        "RetinaNet", "Focal Loss for Dense Object Detection", "1708.02002", ["FPN", "Focal Loss"]
    ),
    "segmentation/mask2former": Method(
        "Mask2Former for semantic segmentation",
        "Masked-attention Mask Transformer for Universal Image Segmentation",
        "2112.01527",
        ["Deformable Attention", "Transformer"],
    ),
    "segmentation/semantic_fpn": Method(
        "Semantic FPN", "Panoptic Feature Pyramid Networks", "1901.02446", ["FPN"]
    ),
    "segmentation/upernet": Method(
        "UperNet",
        "Unified Perceptual Parsing for Scene Understanding",
        "1807.10221",
        ["PPM", "FPN"],
    ),
}

# Datasets by the end of a config's name, with the height and width to count FLOPs at.
DATA = {
    "ade20k": ("ADE20K", (512, 512)),
    "cityscapes": ("Cityscapes", (512, 1024)),
    "coco": ("COCO", (800, 1280)),
    "coins": ("fcvit_mm.datasets.coins", (128, 128)),
    "in1k": ("ImageNet-1k", (224, 224)),
    "shapes": ("fcvit_mm.datasets.shapes", (128, 128)),
}


@dataclass
class Published:
    """What the paper or the released models say of a config: metrics by task, and the weights."""

    weights: str
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)


Metrics = dict[str, dict[str, float]]


def _detector(box: tuple[float, ...], mask: tuple[float, ...]) -> Metrics:
    names = ("AP", "AP@0.5", "AP@0.75")
    return {
        "Object Detection": dict(zip([f"box {name}" for name in names], box, strict=True)),
        "Instance Segmentation": dict(zip([f"mask {name}" for name in names], mask, strict=True)),
    }


def _classifier(top1: float) -> Metrics:
    return {"Image Classification": {"Top 1 Accuracy": top1}}


def _segmentor(miou: float) -> Metrics:
    return {"Semantic Segmentation": {"mIoU": miou}}


METRICS = {
    "fcvit_tiny_in1k": _classifier(74.9),
    "fcvit_s12_in1k": _classifier(80.9),
    "fcvit_s24_in1k": _classifier(82.5),
    "fcvit_s48_in1k": _classifier(83.6),
    "mask_rcnn_fcvit_s12_coco": _detector((42.3, 64.2, 46.2), (38.6, 61.1, 41.3)),
    "mask_rcnn_fcvit_s24_coco": _detector((44.1, 65.4, 48.4), (39.9, 62.4, 42.7)),
    "semantic_fpn_fcvit_s12_ade20k": _segmentor(43.3),
    "semantic_fpn_fcvit_s24_ade20k": _segmentor(45.5),
}
PUBLISHED = {name: Published(RELEASED[name], metrics) for name, metrics in METRICS.items()}


# ------------------------------------------------------------------------------- writing


def leaves() -> list[Path]:
    """Every config that is an experiment, families and archs in order."""
    return sorted(
        path for path in (ROOT / "configs").glob("*/*.py") if path.parent.name != "_base_"
    )


def parse(config: Path) -> tuple[str, str, str]:
    """The key in METHODS of a config, its arch and its dataset, all from its name."""
    name = NAME.fullmatch(config.stem)
    if not name or name["data"] not in DATA:
        raise ValueError(f"{config}: a config is METHOD_fcvit_ARCH[_MORE]_DATA.py; see DATA")
    key = f"{config.parent.name}/{name['method'] or 'fcvit'}"
    if key not in METHODS:
        raise ValueError(f"{config}: add {key} to METHODS in tests/helpers/model_index.py")
    return key, name["arch"], name["data"]


def entry(config: Path, flops: int | None = None) -> dict:
    """A config's entry in its metafile; FLOPs are counted if they are not given."""
    cfg = Config.fromfile(config)
    key, arch, data = parse(config)
    method, (dataset, size) = METHODS[key], DATA[data]
    model = build(cfg)
    if flops is None:
        flops = multiply_adds(model, cfg.default_scope, size)
    if "max_epochs" in cfg.train_cfg:
        duration = {"Epochs": cfg.train_cfg.max_epochs}
    else:
        duration = {"Iterations": cfg.train_cfg.max_iters}
    published = PUBLISHED.get(config.stem)
    found: dict[str, Any] = {
        "Name": config.stem,
        "In Collection": method.name,
        "Config": str(config.relative_to(ROOT)),
        "Metadata": {
            "Training Data": dataset,
            **duration,
            "Architecture": [f"FCViT-{arch.capitalize()}", *method.parts],
            "Parameters": sum(parameter.numel() for parameter in model.parameters()),
            "FLOPs": flops,
            "Input Size": "x".join(map(str, size)),
        },
        "Paper": FCVIT,
    }
    if published:
        found["Results"] = [
            {"Task": task, "Dataset": dataset, "Metrics": metrics}
            for task, metrics in published.metrics.items()
        ]
        found["Weights"] = published.weights
    return found


def metafile(key: str, entries: list[dict]) -> dict:
    """A family's metafile: the method as a collection, and its configs."""
    method = METHODS[key]
    collection = {
        "Name": method.name,
        "Metadata": {
            "Training Data": sorted({entry["Metadata"]["Training Data"] for entry in entries}),
            "Training Techniques": ["AdamW", "Weight Decay"],
            "Architecture": ["FCViT", *method.parts],
        },
        "Paper": {"Title": method.title, "URL": ARXIV + method.arxiv},
        "README": "README.md",
        "Code": {"URL": "https://github.com/ma-xu/FCViT"},
    }
    return {"Collections": [collection], "Models": entries}


def metafile_path(key: str) -> Path:
    return ROOT / "configs" / f"{key}_metafile.yml"


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Write what is in several places several times."""
        return True


def as_text(content: dict) -> str:
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=100)


def files(flops: Callable[[Path], int | None] = lambda config: None) -> dict[Path, str]:
    """Every file of the index with what it must hold.

    Args:
        flops: gives what is known already of a config.
    """
    families: dict[str, list[dict]] = {}
    for config in leaves():
        families.setdefault(parse(config)[0], []).append(entry(config, flops(config)))
    found = {metafile_path(key): as_text(metafile(key, it)) for key, it in families.items()}
    imports = [str(path.relative_to(ROOT)) for path in found]
    return {ROOT / "model-index.yml": as_text({"Import": imports}), **found}


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
        print(path.relative_to(ROOT))
