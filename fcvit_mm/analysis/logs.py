"""Summarize and plot what trainings logged.

MMEngine writes a line of JSON for each logged iteration and each evaluation to
WORK_DIR/DATE/vis_data/scalars.json. A resumed training writes to another DATE: MMDetection's
analyze_logs and TensorBoard take it for another run, here they are joined.
"""

import json
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any

from ..utils.errors import ConfigError
from ..visualization.figures import make_panels, save_figure

# Metrics of an evaluation that are shown where none are chosen.
MAIN = re.compile(r"(mAP|mIoU|mAcc|aAcc|top1|top5)$")
LOG = "vis_data/scalars.json"
# of lines that share a panel and a color
STYLES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 4)), (0, (10, 2)), (0, (4, 4)))
Record = dict[str, float]


@dataclass
class Run:
    """One training, over all its resumptions.

    training, evaluations: records by iteration. problems: sentences on what could not be read.
    """

    name: str
    training: dict[int, Record] = field(default_factory=dict)
    evaluations: dict[int, Record] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def known_keys(self) -> dict[str, bool]:
        """Return all keys, losses first, and whether each is of evaluations alone.

        `time`, which both have, is that of an iteration.
        """
        trained = dict.fromkeys(key for record in self.training.values() for key in record)
        keys = dict.fromkeys(sorted(trained, key=lambda key: "loss" not in key), False)
        evaluated = (key for record in self.evaluations.values() for key in record)
        return keys | {key: True for key in evaluated if key not in keys}

    def series(self, key: str) -> list[tuple[int, float]]:
        """Return (iteration, value) of a key, in order."""
        records = self.evaluations if self.known_keys().get(key) else self.training
        return sorted((step, record[key]) for step, record in records.items() if key in record)


def read_run(path: Path) -> Run:
    """Read a work directory, or one scalars.json; a ConfigError if it has no records.

    What a resumed training did again replaces what was done before. Damaged lines, such as the last
    one of a killed training, are left out and listed in `problems`.
    """
    # folders are named for the date
    logs = [path] if path.is_file() else sorted(path.glob(f"*/{LOG}")) or sorted(path.glob(LOG))
    if not logs:
        what = "there is no log in it" if path.is_dir() else "there is no such work directory"
        raise ConfigError(
            f"{path}: {what}; give a directory that a training wrote to (--work-dir), or a "
            f"DATE/{LOG} in one"
        )
    run = Run(str(path))
    for log in logs:
        try:
            lines = log.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{log} can't be read: {error}") from error
        records = []
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                step = int(record.pop("step"))
                records.append((step, {key: float(value) for key, value in record.items()}))
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
                run.problems.append(f"{log}, line {number}: not a whole record, left out")
        _add(run, records)
    if not run.known_keys():
        why = "none of its lines is one" if run.problems else "the training may not have begun"
        raise ConfigError(f"{path}: the log has no records; {why}")
    return run


def _add(run: Run, records: list[tuple[int, Record]]) -> None:
    """Add the records of one log, each with its step.

    Only those of a training have a learning rate; where it counts epochs, so do its evaluations,
    whose iteration is that of the record before.
    """
    steps = [step for step, record in records if "lr" in record]
    for known in (run.training, run.evaluations) if steps else ():
        for step in [step for step in known if step >= steps[0]]:
            del known[step]
    counts_epochs = any("epoch" in record for _, record in records if "lr" in record)
    iteration = max(run.training, default=0)
    for step, record in records:
        if "lr" in record:
            iteration = step
            run.training[step] = record
        else:
            run.evaluations[iteration if counts_epochs else step] = record


def choose(runs: Sequence[Run], keys: Sequence[str] | None) -> list[str]:
    """Return the keys to show: those named, or losses, learning rate and `MAIN`, or else all.

    Raises:
        ConfigError: no run has one of them.
    """
    known = list(dict.fromkeys(key for run in runs for key in run.known_keys()))
    if keys is None:
        usual = [key for key in known if "loss" in key or key == "lr" or MAIN.search(key)]
        return usual or known
    for key in keys:
        if key not in known:
            nearest = "".join(get_close_matches(key, known, n=1, cutoff=0))
            raise ConfigError(
                f"--keys: no run has {key}; did you mean {nearest}? All are {', '.join(known)}"
            )
    return list(dict.fromkeys(keys))


def summary(run: Run, keys: Sequence[str]) -> dict[str, Any]:
    """Return iterations, epochs, seconds_per_iteration, memory_mb, not_finite, and values by key.

    The median of the seconds, the most memory; what a run did not log is left out. By key: last,
    None where it is not finite, and for an evaluation's best and best_iteration.
    """
    found: dict[str, Any] = {"iterations": max([*run.training, *run.evaluations])}
    for name, key, combine in (
        ("epochs", "epoch", lambda values: int(max(values))),
        ("seconds_per_iteration", "time", statistics.median),
        ("memory_mb", "memory", max),
    ):
        if values := [record[key] for record in run.training.values() if key in record]:
            found[name] = combine(values)
    found |= {"not_finite": 0, "keys": {}}
    for key in keys:
        series = run.series(key)
        finite = [(value, -step) for step, value in series if math.isfinite(value)]
        found["not_finite"] += len(series) - len(finite)
        if not series:
            continue
        last = series[-1][1]
        # JSON has no NaN
        entry: dict[str, Any] = {"last": last if math.isfinite(last) else None}
        if finite and run.known_keys()[key]:
            # the first of equals; all that OpenMMLab's evaluators give grows with quality
            best, step = max(finite)
            entry |= {"best": best, "best_iteration": -step}
        found["keys"][key] = entry
    return found


def plot(runs: Sequence[Run], keys: Sequence[str], path: Path) -> None:
    """Plot losses, learning rate and metrics of evaluations over iterations, one panel each.

    Each run has its color in all panels, each key of a panel its style; of a single run each key
    has a color.
    """
    evaluated = {key for run in runs for key, late in run.known_keys().items() if late}
    panels: dict[str, list[str]] = {}
    for key in keys:
        title = "loss" if "loss" in key else "learning rate" if key == "lr" else "other"
        if key in evaluated:
            # MMDetection gives shares of 1, MMSegmentation and MMPretrain percent
            percent = any(1 < value < math.inf for run in runs for _, value in run.series(key))
            title = "evaluation, percent" if percent else "evaluation"
        panels.setdefault(title, []).append(key)
    names = [Path(run.name).resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [run.name for run in runs]
    figure, grid = make_panels(1, len(panels), (5 * len(panels), 3.8))
    for axes, (title, wanted) in zip(grid[0], panels.items(), strict=True):
        for (i, key), (j, run) in product(enumerate(wanted), enumerate(runs)):
            if points := run.series(key):
                color, style = (j, i) if len(runs) > 1 else (i, 0)
                axes.plot(
                    *zip(*points, strict=True),
                    label=key if len(runs) == 1 else f"{key}, {names[j]}",
                    color=f"C{color % 10}", linestyle=STYLES[style % len(STYLES)],
                    linewidth=1.2 + style // len(STYLES),
                    marker="o" if key in evaluated or len(points) == 1 else "", markersize=3,
                )  # fmt: skip
        axes.set(xlabel="iteration", title=title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6.5, frameon=False, handlelength=4)
    save_figure(figure, path)
