"""What a training wrote down, of one run or several: tables and plots.

MMEngine writes a line of JSON for each logged iteration and each evaluation to
WORK_DIR/DATE/vis_data/scalars.json; a resumed training writes to another DATE.
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

from rich.table import Column, Table

from ..utils.errors import ConfigError
from ..visualization.figures import make_panels, save_figure

# Figures of an evaluation that are shown where none are chosen.
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
        """(iteration, value) of a key, in order."""
        records = self.evaluations if key in self.evaluated_keys() else self.training
        return sorted((step, record[key]) for step, record in records.items() if key in record)

    def trained_keys(self) -> list[str]:
        """Keys of the training, losses first."""
        keys = dict.fromkeys(key for record in self.training.values() for key in record)
        return sorted(keys, key=lambda key: "loss" not in key)

    def evaluated_keys(self) -> list[str]:
        """Keys of the evaluations alone: both are timed, and an iteration's time is wanted."""
        trained = self.trained_keys()
        keys = dict.fromkeys(key for record in self.evaluations.values() for key in record)
        return [key for key in keys if key not in trained]

    def all_keys(self) -> list[str]:
        """All keys that have values, losses first."""
        return self.trained_keys() + self.evaluated_keys()


# --------------------------------------------------------------------------------- reading


def find_logs(path: Path) -> list[Path]:
    """The logs of a work directory, oldest first; of a scalars.json itself.

    Raises:
        ConfigError: there is none.
    """
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
    one of a killed training, are left out and told of in `problems`.

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
    """Add the records of one log, each with its step. Only those of a training have a learning
    rate; where it counts epochs, so do its evaluations, whose iteration is that of the record
    before."""
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


# --------------------------------------------------------------------------- tables and plots


def choose(runs: Sequence[Run], keys: Sequence[str] | None) -> list[str]:
    """The keys to show: those that are named, or all losses, the learning rate and `MAIN`; all
    there are where none of these is.

    Raises:
        ConfigError: no run has one of them.
    """
    known = list(dict.fromkeys(key for run in runs for key in run.all_keys()))
    if keys is None:
        usual = [key for key in known if "loss" in key or key == "lr" or MAIN.search(key)]
        return usual or known
    for key in keys:
        if key not in known:
            nearest = get_close_matches(key, known, n=1, cutoff=0)
            raise ConfigError(
                f"--keys: no run has {key}; the nearest name is {''.join(nearest)}, all are "
                f"{', '.join(known)}"
            )
    return list(dict.fromkeys(keys))


def summary(run: Run, keys: Sequence[str]) -> dict[str, Any]:
    """Figures of a run.

    Returns:
        iterations; epochs, where they are counted; seconds_per_iteration, the median; memory_mb,
        the most, where a GPU was used; not_finite, how many logged values of the chosen keys are;
        and by key: last, None where it is not finite, and for an evaluation's best and
        best_iteration.
    """
    training = list(run.training.values())
    found: dict[str, Any] = {"iterations": max([*run.training, *run.evaluations])}
    if epochs := [int(record["epoch"]) for record in training if "epoch" in record]:
        found["epochs"] = max(epochs)
    if times := [record["time"] for record in training if "time" in record]:
        found["seconds_per_iteration"] = statistics.median(times)
    if memory := [record["memory"] for record in training if "memory" in record]:
        found["memory_mb"] = max(memory)
    found["not_finite"] = 0
    found["keys"] = {}
    for key in keys:
        series = run.series(key)
        found["not_finite"] += sum(not math.isfinite(value) for _, value in series)
        if not series:
            continue
        # JSON has no NaN
        entry: dict[str, Any] = {"last": series[-1][1] if math.isfinite(series[-1][1]) else None}
        finite = [(value, -step) for step, value in series if math.isfinite(value)]
        if finite and key in run.evaluated_keys():
            # the first of equals; all that OpenMMLab's evaluators give grows with quality
            best, step = max(finite)
            entry |= {"best": best, "best_iteration": -step}
        found["keys"][key] = entry
    return found


def table(runs: Sequence[Run], keys: Sequence[str]) -> Table:
    """A column a run."""
    found = [summary(run, keys) for run in runs]
    # names often differ in their ends alone
    result = Table("", *(Column(run.name, overflow="fold") for run in runs))
    rows = {"iterations": "d", "epochs": "d", "seconds_per_iteration": ".3f", "memory_mb": ".0f"}
    for name, form in rows.items():
        if any(name in figures for figures in found):
            cells = [format(f[name], form) if name in f else "" for f in found]
            result.add_row(name.replace("_", " "), *cells)
    for key in keys:
        cells = []
        for figures in found:
            entry = figures["keys"].get(key)
            if entry is None:
                cells.append("")
                continue
            cell = "not finite" if entry["last"] is None else f"{entry['last']:.4g}"
            if "best" in entry:
                cell += f" (best {entry['best']:.4g} at {entry['best_iteration']})"
            cells.append(cell)
        result.add_row(key, *cells)
    return result


def plot(runs: Sequence[Run], keys: Sequence[str], path: Path) -> None:
    """Plot losses, learning rate and figures of evaluations over iterations, a panel each."""
    evaluated = {key for run in runs for key in run.evaluated_keys()}
    series = {(key, run.name): run.series(key) for key in keys for run in runs}

    def panel(key: str) -> str:
        if key in evaluated:
            # MMDetection gives shares of 1, MMSegmentation and MMPretrain percent
            values = [value for run in runs for _, value in series[key, run.name]]
            best = max(filter(math.isfinite, values), default=0)
            return "evaluation" if best <= 1 else "evaluation, percent"
        return "loss" if "loss" in key else "learning rate" if key == "lr" else "other"

    panels: dict[str, list[str]] = {}
    for key in keys:
        panels.setdefault(panel(key), []).append(key)
    names = [Path(run.name).resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [run.name for run in runs]
    figure, grid = make_panels(1, len(panels), (5 * len(panels), 3.8))
    for axes, (title, wanted) in zip(grid[0], panels.items(), strict=True):
        for i, key in enumerate(wanted):
            for j, run in enumerate(runs):
                points = series[key, run.name]
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
