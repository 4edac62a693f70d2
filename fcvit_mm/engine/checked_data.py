"""Keep a note of the datasets that have passed their check, so that it isn't repeated unchanged.

It lies next to torch's downloads, in TORCH_HOME or ~/.cache/torch: there users look for what may be
deleted, and all trainings of a machine share it, whatever their work_dir.
"""

import hashlib
import json
import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import PIL
import torch
from mmengine.config import Config

from .. import __version__
from ..datasets.checks import Report
from ..datasets.checks.heads import KEYS
from ..utils.config import iter_config_dicts, iter_leaf_datasets
from ..utils.files import write_json

# How many checks are remembered.
KEPT = 100


class CheckedData:
    """Find and note the check of a config's datasets.

    The note's key is a SHA-256 of all that the check reads in the config, of the versions it is
    done by, and of path, size and time of all files in the folders that the datasets name.
    """

    def __init__(self, cfg: Config, loaders: Sequence[str]) -> None:
        self.path = Path(torch.hub.get_dir()).parent / "fcvit_checked_data.json"
        datasets = [(cfg.get(loader) or {}).get("dataset") for loader in loaders]
        evaluators = [cfg.get(loader.replace("_dataloader", "_evaluator")) for loader in loaders]
        heads = [
            (path, *(node.get(key) for key in (*KEYS, "class_weight")))
            for path, node in iter_config_dicts(cfg.get("model") or {})
        ]
        versions = platform.python_version(), __version__, PIL.__version__
        read = [loaders, datasets, evaluators, heads, cfg.get("default_scope"), versions]
        self.folders: set[str] = set()
        self.key: str | None = None
        with suppress(OSError):  # a file that is gone again, or data elsewhere: they are checked
            for one in datasets:
                read += [self._files(leaf) for _, leaf in iter_leaf_datasets(one, "")]
            self.key = hashlib.sha256(repr(read).encode("utf-8", "surrogateescape")).hexdigest()

    def _files(self, dataset: dict) -> list[tuple[str, int, int]]:
        """Return path, size and time of a dataset's files, and remember their folders."""
        root, prefix = dataset.get("data_root") or "", dataset.get("data_prefix") or ""
        # MMPretrain's is a string
        names = [prefix] if isinstance(prefix, str) else [*prefix.values()]
        classes = (dataset.get("metainfo") or {}).get("classes")
        files = [classes] if isinstance(classes, str) else []
        if dataset.get("ann_file"):
            files.append(os.path.join(root, dataset["ann_file"]))
        for name in names:
            for folder, _, inside in os.walk(os.path.abspath(os.path.join(root, name))):
                self.folders.add(folder)
                files += [os.path.join(folder, one) for one in inside]
        held = [(os.path.abspath(file), os.stat(file)) for file in sorted(files)]
        return [(file, stat.st_size, stat.st_mtime_ns) for file, stat in held]

    def _read(self) -> dict[str | None, Any]:
        with suppress(OSError, ValueError):
            content = json.loads(self.path.read_text())
            if isinstance(content, dict):
                return content
        return {}

    def find(self) -> dict | None:
        """Return when the same was checked, and its warnings; None if it has not passed."""
        entry = self._read().get(self.key)
        return entry if isinstance(entry, dict) else None

    def add(self, reports: Sequence[Report]) -> None:
        """Note that a check has passed, unless it read files that the key doesn't know of."""
        read = {os.path.abspath(folder) for report in reports for folder in report.folders}
        if self.key is None or not read or not read <= self.folders:
            return
        warnings = [warning for report in reports for warning in report.warnings]
        entry = dict(checked=datetime.now().isoformat(" ", "seconds"), warnings=warnings)
        kept = [item for item in self._read().items() if item[0] != self.key][1 - KEPT :]
        with suppress(OSError):  # no place to write to: the check is repeated
            write_json(self.path, {**dict(kept), self.key: entry})
