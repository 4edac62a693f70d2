"""Checkpoints that would run code, and everything that reads a checkpoint."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import CheckpointLoader, load_checkpoint

from fcvit_mm import FCViT, read_checkpoint


class Payload:
    """Unpickles by running a command that leaves a file behind."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def hostile(path: Path, mark: Path, protocol: int | None, function=os.system) -> Path:
    content = {"state_dict": {"w": torch.zeros(1)}, "meta": Payload(function, f"touch {mark}")}
    if protocol is None:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


READERS: dict[str, Callable[[Any], object]] = {
    "ours": read_checkpoint,
    "init_cfg": lambda path: FCViT(
        "tiny", init_cfg=dict(type="Pretrained", checkpoint=str(path))
    ).init_weights(),
    "mmengine": lambda path: CheckpointLoader.load_checkpoint(str(path)),
    "load_from": lambda path: load_checkpoint(torch.nn.Linear(1, 1), str(path)),
}
