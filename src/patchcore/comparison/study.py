"""Sorting runs into studies: one per test set, in it a column per method, a row per category, a seed per run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from patchcore.comparison.methods import Configuration, configuration, names_of, origin, repeated
from patchcore.comparison.runs import Problem, Run
from patchcore.types import PatchCoreError

AVERAGE = "Average"
Origin = tuple[object, ...]


@dataclass(frozen=True)
class Row:
    """A category on one set of test images: its name in `results.csv` and what the images are told by."""

    name: str
    test_set: str


@dataclass(frozen=True)
class Figure:
    """A number of the tables: the mean over seeds, its sample standard deviation (nan for one seed), how many seeds."""

    mean: float
    std: float
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """The figure of one value per seed; nan is left out."""
        known = [value for value in values if not math.isnan(value)]
        return cls(mean(known), statistics.stdev(known) if len(known) > 1 else math.nan, len(known))


@dataclass(frozen=True, kw_only=True)
class Method:
    """A column of the tables.

    `cells` holds the runs behind each row by their origin: a seed, or the stored models that were evaluated.
    """

    name: str
    cells: dict[Row, dict[Origin, Run]]

    @property
    def runs(self) -> list[Run]:
        """Every run behind the column, once."""
        return list({run.name: run for runs in self.cells.values() for run in runs.values()}.values())

    def runs_of(self, row: Row | None) -> list[Run]:
        """The runs behind a row, of all rows for None."""
        return self.runs if row is None else list(self.cells.get(row, {}).values())

    def figure(self, row: Row, column: str) -> Figure:
        """A column of `results.csv` for one row."""
        return Figure.of([run.rows[row.name].get(column, math.nan) for run in self.runs_of(row)])

    def average(self, rows: Sequence[Row], column: str) -> Figure:
        """The mean of the figures of all rows; nan where one is missing, since it would be the mean of others.

        Its standard deviation is that of the averages of the seeds that have every row.
        """
        value = math.fsum(self.figure(row, column).mean for row in rows) / len(rows)
        shared = set.intersection(*(set(self.cells.get(row, {})) for row in rows))
        per_seed = Figure.of(
            [mean([self.cells[row][seed].rows[row.name].get(column, math.nan) for row in rows]) for seed in shared]
        )
        return Figure(value, per_seed.std, per_seed.seeds)


@dataclass(frozen=True, kw_only=True)
class Study:
    """Methods that were tested on the same images, a line of the tables per row and one for the average over rows.

    `labels` names the rows for the reader. Rows of one category stand for different test images, and are then told
    apart in their labels and never averaged.
    """

    title: str
    labels: dict[Row, str]
    methods: tuple[Method, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        return tuple(self.labels)

    @property
    def has_conflict(self) -> bool:
        return len({row.name for row in self.rows}) < len(self.rows)

    @property
    def lines(self) -> tuple[Row | None, ...]:
        """The rows, and None for their average where there is one to speak of."""
        return self.rows if len(self.rows) == 1 or self.has_conflict else (*self.rows, None)

    def label(self, line: Row | None) -> str:
        return AVERAGE if line is None else self.labels[line]

    def figures(self, line: Row | None, column: str) -> dict[str, Figure]:
        """Method name -> its figure in a line."""
        return {
            method.name: method.average(self.rows, column) if line is None else method.figure(line, column)
            for method in self.methods
        }


def studies_of(runs: Sequence[Run], problems: list[Problem]) -> list[Study]:
    """Sort runs by their test images and configurations; runs that no table shows are added to `problems`.

    Runs belong to one study where they share test images or the folder of the data set, directly or through other runs.
    """
    usable: dict[str, tuple[Run, Configuration]] = {}
    for run in runs:
        try:
            usable[run.name] = run, configuration(run.config)
        except PatchCoreError as error:
            problems.append(Problem(name=run.name, reason=str(error)))
    groups = _connected({name: _tokens(run) for name, (run, _) in usable.items()})
    return [_study([usable[name] for name in group], problems) for group in groups]


def _tokens(run: Run) -> set[tuple[str, str]]:
    """What two runs share if they belong to one study."""
    dataset = run.config["dataset"]
    return set(run.test_sets.items()) | {(dataset["name"], dataset["path"])}


def _connected(tokens: dict[str, set]) -> list[list[str]]:
    """Names sorted into groups that are linked by common tokens."""
    groups: list[tuple[list[str], set]] = []
    for name, own in tokens.items():
        linked = [group for group in groups if group[1] & own]
        groups = [group for group in groups if group not in linked]
        members = [member for group in linked for member in group[0]]
        groups.append(([*members, name], own.union(*(group[1] for group in linked))))
    return [members for members, _ in groups]


def _study(found: Sequence[tuple[Run, Configuration]], problems: list[Problem]) -> Study:
    """One study of the runs that belong together.

    Of two runs with the same configuration, seed and test images the one whose folder is later by name counts. An
    evaluation of stored models is left out where it repeats a training run that is here, otherwise it is a column of
    its own.
    """
    trained = [run for run, settings in found if not settings.stored]
    homes = {run.folder.resolve().parts[-2:] for run in trained}
    trained_rows = {row for run in trained for row in _rows(run)}
    cells: dict[Configuration, dict[Row, dict[Origin, Run]]] = {}
    for run, settings in found:
        models = repeated(run.config)
        repeats = bool(models) and models <= homes
        for row in _rows(run):
            if not (repeats and row in trained_rows):
                cells.setdefault(settings, {}).setdefault(row, {})[origin(run.config)] = run
    used = {run.name for rows in cells.values() for seeds in rows.values() for run in seeds.values()}
    for run, _ in found:
        if run.name not in used:
            reason = "a run of the same configuration and seed, later by name, is in the tables"
            if repeated(run.config):
                reason = "an evaluation of stored models; the run that trained them is in the tables"
            problems.append(Problem(name=run.name, reason=reason))
    names = names_of(cells)
    methods = tuple(Method(name=names[settings], cells=rows) for settings, rows in cells.items())
    paths = list(dict.fromkeys(f"{run.config['dataset']['name']} {run.config['dataset']['path']}" for run, _ in found))
    return Study(title=", ".join(paths), labels=_labels(found), methods=methods)


def _rows(run: Run) -> list[Row]:
    return [Row(name, test_set) for name, test_set in run.test_sets.items()]


def _labels(found: Sequence[tuple[Run, Configuration]]) -> dict[Row, str]:
    """Names of the rows: the category, and the hash of its test images where one category has several."""
    labels: dict[Row, str] = {}
    for run, _ in found:
        for row in _rows(run):
            labels[row] = row.name.removeprefix(f"{run.config['dataset']['name']}_")
    names = [row.name for row in labels]
    return {
        row: f"{label} (test images {row.test_set})" if names.count(row.name) > 1 else label
        for row, label in labels.items()
    }


def mean(values: Sequence[float]) -> float:
    """The mean; nan of nothing."""
    return math.fsum(values) / len(values) if values else math.nan
