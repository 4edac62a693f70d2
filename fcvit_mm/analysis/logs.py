"""Read what trainings wrote down, of one run or several, as tables and plots.

MMEngine writes a line of JSON for each logged iteration and each evaluation to
WORK_DIR/DATE/vis_data/scalars.json; a resumed training writes to another DATE. In TensorBoard each
resumption would be a run of its own; here they are joined.
"""

import json
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..utils.errors import ConfigError
from ..visualization.figures import make_panels, save_figure

# Metrics of an evaluation that are shown where none are chosen.
MAIN = re.compile(r"(mAP|mIoU|mAcc|aAcc|top1|top5)$")
LOG = "vis_data/scalars.json"
# of lines that share a panel and a color
STYLES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 4)))
Record = dict[str, float]


@dataclass
class Run:
    """One training, over all its resumptions.

    training: records by iteration. evaluations: records by the iteration after which they were
    made. problems: sentences on what could not be read.
    """

    name: str
    training: dict[int, Record] = field(default_factory=dict)
    evaluations: dict[int, Record] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def series(self, key: str) -> list[tuple[int, float]]:
        """Return (iteration, value) of a key, in order."""
        records = self.evaluations if key in self.evaluated_keys() else self.training
        return sorted((step, record[key]) for step, record in records.items() if key in record)

    def trained_keys(self) -> list[str]:
        """Return the keys of the training, losses first."""
        keys = dict.fromkeys(key for record in self.training.values() for key in record)
        return sorted(keys, key=lambda key: "loss" not in key)

    def evaluated_keys(self) -> list[str]:
        """Return the keys of the evaluations alone; `time`, which both have, is an iteration's."""
        trained = self.trained_keys()
        keys = dict.fromkeys(key for record in self.evaluations.values() for key in record)
        return [key for key in keys if key not in trained]

    def all_keys(self) -> list[str]:
        """Return all keys that have values, losses first."""
        return self.trained_keys() + self.evaluated_keys()


def find_logs(path: Path) -> list[Path]:
    """Return the logs of a work directory, oldest first; a ConfigError if there is none."""
    if path.is_file():
        return [path]
    # their folders are named for the date
    logs = sorted(path.glob(f"*/{LOG}")) or sorted(path.glob(LOG))
    if not logs:
        what = "there is no log in it" if path.is_dir() else "there is no such work directory"
        raise ConfigError(
            f"{path}: {what}; give a directory that a training wrote to (--work-dir), or a "
            f"DATE/{LOG} in one"
        )
    return logs


def read_run(path: Path) -> Run:
    """Read a work directory, or one scalars.json.

    What a resumed training did again replaces what was done before. Damaged lines, such as the last
    one of a killed training, are left out and listed in `problems`.

    Raises:
        ConfigError: there is no log, or no record in it.
    """
    run = Run(str(path))
    for log in find_logs(path):
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
    if not run.all_keys():
        why = "none of its lines is one" if run.problems else "the training may not have begun"
        raise ConfigError(f"{path}: the log has no records; {why}")
    return run


def _add(run: Run, records: list[tuple[int, Record]]) -> None:
    """Add the records of one log, each with its step.

    Only those of a training have a learning rate; where it counts epochs, so do its evaluations,
    whose iteration is that of the record before.
    """
    training = [(step, record) for step, record in records if "lr" in record]
    counts_epochs = any("epoch" in record for _, record in training)
    if training:
        first, _ = training[0]
        run.training = {step: r for step, r in run.training.items() if step < first}
        run.evaluations = {step: r for step, r in run.evaluations.items() if step < first}
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
    known = list(dict.fromkeys(key for run in runs for key in run.all_keys()))
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
    """Summarize a run.

    Returns:
        iterations; epochs, where they are counted; seconds_per_iteration, the median; memory_mb,
        the most, where a GPU was used; not_finite, how many logged values of the chosen keys are;
        and by key: last, None where it is not finite, and for an evaluation's best and
        best_iteration.
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
        if finite and key in run.evaluated_keys():
            # the first of equals; all that OpenMMLab's evaluators give grows with quality
            best, step = max(finite)
            entry |= {"best": best, "best_iteration": -step}
        found["keys"][key] = entry
    return found


def plot(runs: Sequence[Run], keys: Sequence[str], path: Path) -> None:
    """Plot losses, learning rate and metrics of evaluations over iterations, one panel each."""
    evaluated = {key for run in runs for key in run.evaluated_keys()}
    panels: dict[str, list[str]] = {}
    for key in keys:
        panels.setdefault(_panel(key, runs, key in evaluated), []).append(key)
    names = [Path(run.name).resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [run.name for run in runs]
    figure, grid = make_panels(1, len(panels), (5 * len(panels), 3.8))
    for axes, (title, wanted) in zip(grid[0], panels.items(), strict=True):
        lines = [(i, key, j, run) for i, key in enumerate(wanted) for j, run in enumerate(runs)]
        for i, key, j, run in lines:
            points = run.series(key)
            if not points:
                continue
            # there are more colors than styles: they go to keys or runs, whichever are more
            color, style = (i, j) if len(wanted) > len(runs) else (j, i)
            axes.plot(
                *zip(*points, strict=True),
                label=key if len(runs) == 1 else f"{key}, {names[j]}",
                color=f"C{color % 10}", linestyle=STYLES[style % len(STYLES)], linewidth=1.2,
                marker="o" if key in evaluated or len(points) == 1 else "", markersize=3,
            )  # fmt: skip
        axes.set(xlabel="iteration", title=title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6.5, frameon=False)
    save_figure(figure, path)


def _panel(key: str, runs: Sequence[Run], evaluated: bool) -> str:
    """Return the title of a key's panel."""
    if evaluated:
        # MMDetection gives shares of 1, MMSegmentation and MMPretrain percent
        values = [value for run in runs for _, value in run.series(key)]
        best = max(filter(math.isfinite, values), default=0)
        return "evaluation" if best <= 1 else "evaluation, percent"
    return "loss" if "loss" in key else "learning rate" if key == "lr" else "other"
