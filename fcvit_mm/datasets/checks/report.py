"""Collect what is wrong with a dataset: errors and warnings, each with its place and remedy."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from ...utils.errors import ConfigError

SHOWN = 3  # examples of a problem in its sentence


class Problem(NamedTuple):
    """Say what is wrong at a file or key, and what to do; an error stops a training."""

    where: str
    what: str
    remedy: str
    example: str = ""
    is_error: bool = True


@dataclass
class Report:
    """Hold what was found in a dataset.

    name: its loader and place in the config. images, decoded, classes: how many. labeled: how
    many objects or pixels (the unit) are of a class and will be used. folders: of its images.
    """

    name: str
    images: int = 0
    decoded: int = 0
    classes: int = 0
    labeled: int = 0
    unit: str = ""
    folders: set[str] = field(default_factory=set)
    _found: dict[Problem, list[str]] = field(default_factory=dict)

    def add(self, problem: Problem) -> None:
        """Note a problem; those that differ in their example alone become one sentence."""
        examples = self._found.setdefault(problem._replace(example=""), [])
        if problem.example:
            examples.append(problem.example)

    def error(self, where: object, what: str, remedy: str, example: str = "") -> None:
        """Note what stops a training."""
        self.add(Problem(str(where), what, remedy, example))

    def warn(self, where: object, what: str, remedy: str, example: str = "") -> None:
        """Note what a training goes on with."""
        self.add(Problem(str(where), what, remedy, example, is_error=False))

    def _sentences(self, is_error: bool) -> list[str]:
        sentences = [
            f"{problem.where}: {problem.what}{': ' if examples else ''}{listed(examples)}; "
            f"{problem.remedy}"
            for problem, examples in self._found.items()
            if problem.is_error == is_error
        ]
        # names come from files of any origin: each sentence is to be one line that can be printed
        return [
            "".join(c if c.isprintable() else repr(c)[1:-1] for c in sentence)
            for sentence in sentences
        ]

    @property
    def errors(self) -> list[str]:
        """A sentence per error, with its first examples."""
        return self._sentences(True)

    @property
    def warnings(self) -> list[str]:
        """A sentence per warning."""
        return self._sentences(False)


def listed(words: Sequence[str], shown: int = SHOWN) -> str:
    """Join the first words by commas, and count the rest."""
    more = f" and {len(words) - shown} more" if len(words) > shown else ""
    return ", ".join(words[:shown]) + more


def print_reports(reports: Sequence[Report], console: Console) -> int:
    """Print a line per problem and a table of the datasets; return the number of errors."""
    for report in reports:
        for kind, sentences in (("error", report.errors), ("warning", report.warnings)):
            for sentence in sentences:
                print(f"{report.name}: {kind}: {sentence}")
    console.print(_summary(reports))
    return sum(len(report.errors) for report in reports)


def _summary(reports: Sequence[Report]) -> Table:
    """Tabulate what each dataset holds and how much is wrong with it, one row per dataset."""
    table = Table(box=box.SIMPLE)
    table.add_column("dataset")
    for column in ("images", "labeled", "classes", "errors", "warnings"):
        table.add_column(column, justify="right")
    for report in reports:
        labeled = f"{report.labeled:,} {report.unit}" if report.unit else ""
        numbers = report.classes, len(report.errors), len(report.warnings)
        table.add_row(report.name, f"{report.images:,}", labeled, *(f"{n:,}" for n in numbers))
    return table


def raise_errors(what: object, errors: int) -> None:
    """Raise a ConfigError that counts the errors that `print_reports` has printed, if any."""
    if errors:
        kinds = "kind of error" if errors == 1 else "kinds of errors"
        raise ConfigError(f"{what}: {errors} {kinds} in its data, listed above")
