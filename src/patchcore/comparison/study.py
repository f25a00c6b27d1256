"""Sorting runs into studies: one per test set, in it a contender per configuration, a row per category."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from patchcore.comparison.runs import Origin, Problems, Row, Run
from patchcore.results.columns import CACHED_SHARE

AVERAGE = "Average"

# Everything that decides what a run computes, its seed aside: (name, value as JSON), by name. Runs that agree in it are
# seeds of one another.
Configuration = tuple[tuple[str, str], ...]
_GEOMETRY_AND_TRAINING = ("resize", "imagesize", "train_val_split", "augment", "reduced_decoding")


@dataclass(frozen=True)
class SeedMean:
    """A mean over seeds, its sample standard deviation (nan for one seed), and how many seeds."""

    mean: float
    std: float
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> SeedMean:
        """The mean of one value per seed; nan is left out."""
        known = [value for value in values if not math.isnan(value)]
        return cls(mean_or_nan(known), statistics.stdev(known) if len(known) > 1 else math.nan, len(known))


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A configuration that is compared with others, and its runs.

    `runs_by_row` holds the runs behind each row by their origin: a seed, or the stored models that were evaluated.
    """

    name: str
    runs_by_row: dict[Row, dict[Origin, Run]]

    @property
    def runs(self) -> list[Run]:
        """Every run of the contender, once."""
        return list(dict.fromkeys(run for runs in self.runs_by_row.values() for run in runs.values()))

    def runs_of(self, row: Row | None) -> list[Run]:
        """The runs behind a row, of all rows for None."""
        return self.runs if row is None else list(self.runs_by_row.get(row, {}).values())

    def mean(self, rows: Sequence[Row], column: str) -> SeedMean:
        """The mean of a column of `results.csv` over rows; nan where one is missing, since it would be that of others.

        Its standard deviation is that of the averages of the seeds that have every row.
        """
        by_row = [
            {origin: run.rows[row.name].get(column, math.nan) for origin, run in self.runs_by_row.get(row, {}).items()}
            for row in rows
        ]
        shared = set.intersection(*map(set, by_row))
        per_seed = SeedMean.of([mean_or_nan([values[origin] for values in by_row]) for origin in shared])
        value = mean_or_nan([SeedMean.of(list(values.values())).mean for values in by_row])
        return SeedMean(value, per_seed.std, per_seed.seeds)

    def costs(self, rows: Sequence[Row], column: str) -> list[float]:
        """A cost, averaged over rows, of every run that measured it in all of them."""
        values = [
            mean_or_nan([run.rows[row.name].get(column, math.nan) for row in rows])
            for run in self.runs
            if all(run in self.runs_of(row) for row in rows)
        ]
        return [value for value in values if not math.isnan(value)]


@dataclass(frozen=True, kw_only=True)
class Study:
    """Contenders that were tested on the same images, a line of the tables per row and one for the average over rows.

    `labels` names the rows for the reader. Rows of one category stand for different test images, and are then told
    apart in their labels and never averaged.
    """

    title: str
    labels: dict[Row, str]
    contenders: tuple[Contender, ...]

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

    def means(self, line: Row | None, column: str) -> dict[str, SeedMean]:
        """Name of every contender -> its mean in a line."""
        rows = self.rows if line is None else [line]
        return {contender.name: contender.mean(rows, column) for contender in self.contenders}

    def first_scored(self, row: Row, *, with_overlays: bool = False) -> dict[str, Run]:
        """Name of a contender -> its first run that kept the scores of a row, and its pictures if wanted."""
        kept: dict[str, Run] = {}
        for contender in self.contenders:
            for run in contender.runs_of(row):
                if row.name in run.scores and (run.has_overlays(row.name) or not with_overlays):
                    kept.setdefault(contender.name, run)
        return kept

    @property
    def common_rows(self) -> list[Row]:
        """The rows that every contender has, so that their costs are those of the same work."""
        return [row for row in self.rows if all(contender.runs_of(row) for contender in self.contenders)]

    @property
    def hardware(self) -> list[str]:
        """What the runs were measured on, each once."""
        return sorted({run.hardware for contender in self.contenders for run in contender.runs})

    @property
    def cached_runs(self) -> list[str]:
        """The runs that took features from a cache, so that their times are not those of a whole run."""
        runs = dict.fromkeys(run for contender in self.contenders for run in contender.runs)
        return [run.name for run in runs if any(row.get(CACHED_SHARE, 0) > 0 for row in run.rows.values())]


def studies_of(runs: Sequence[Run], problems: Problems) -> list[Study]:
    """Sort runs by their test images and configurations; runs that no table shows are added to `problems`.

    Runs belong to one study where they share test images or the folder of the data set, directly or through other runs.
    """
    groups: list[tuple[list[Run], set[object]]] = []  # runs, and what they share
    for run in runs:
        dataset = run.config["dataset"]
        own = {*run.tested, (dataset["name"], dataset["path"])}
        linked = [group for group in groups if group[1] & own]
        groups = [group for group in groups if not group[1] & own]
        members = [*(member for group in linked for member in group[0]), run]
        groups.append((members, own.union(*(group[1] for group in linked))))
    return [_study(members, problems) for members, _ in groups]


def _study(runs: Sequence[Run], problems: Problems) -> Study:
    """One study of the runs that belong together.

    Of two runs with the same configuration, seed and test images the one whose folder is later by name counts. An
    evaluation of stored models is left out where it repeats a training run that is here, otherwise it is a contender of
    its own.
    """
    trained = [run for run in runs if not run.models]
    trained_ids = {run.config["id"] for run in trained}
    trained_rows = {row for run in trained for row in run.tested}
    repeating = {run for run in runs if _repeats(run, trained_ids)}
    found: dict[Configuration, dict[Row, dict[Origin, Run]]] = {}
    short_names: dict[Configuration, str] = {}
    for run in runs:
        configuration = _configuration_of(run.config)
        for row in run.tested:
            if not (run in repeating and row in trained_rows):
                found.setdefault(configuration, {}).setdefault(row, {})[run.origin] = run
                short_names.setdefault(configuration, run.config["method"]["short_name"])
    names = _names_of(short_names)
    contenders = tuple(Contender(name=names[one], runs_by_row=rows) for one, rows in found.items())
    used = {run for contender in contenders for run in contender.runs}
    for run in runs:
        if run not in used:
            problems[run.name] = "a run of the same configuration and seed, later by name, is in the tables"
            if run in repeating:
                problems[run.name] = "an evaluation of stored models; the run that trained them is in the tables"
            elif run.models:
                problems[run.name] = "an evaluation of the same stored models, later by name, is in the tables"
    paths = dict.fromkeys(f"{run.config['dataset']['name']} {run.config['dataset']['path']}" for run in runs)
    return Study(title=", ".join(paths), labels=_labels(runs), contenders=contenders)


def _repeats(run: Run, trained: set[str]) -> bool:
    """Whether a run evaluated models of the training runs with these ids, with the settings they were trained with."""
    own = bool(run.models) and not run.config.get("overrides")
    models = run.config.get("models", {})
    return own and all(
        model["run"] in trained and model.get("category") == category for category, model in models.items()
    )


def _configuration_of(config: Mapping[str, Any]) -> Configuration:
    """The configuration that a `config.yaml` tells."""
    settings = {
        **config["settings"],
        **{name: config["dataset"].get(name) for name in _GEOMETRY_AND_TRAINING},
        "method": config["method"]["name"],
        "short_name": config["method"]["short_name"],
        "stored": "models" in config,
    }
    splits = {model["train_val_split"] for model in config.get("models", {}).values() if "train_val_split" in model}
    if splits:  # an evaluation holds nothing out, but its models were trained on a share of the images
        settings["train_val_split"] = splits.pop() if len(splits) == 1 else sorted(splits)
    if by_category := config.get("settings_by_category"):
        text = json.dumps(by_category, sort_keys=True)
        settings["by_category"] = hashlib.sha256(text.encode()).hexdigest()[:6]
    return tuple(sorted((name, json.dumps(value, sort_keys=True)) for name, value in settings.items()))


def _names_of(short_names: Mapping[Configuration, str]) -> dict[Configuration, str]:
    """A name for each configuration; where short names agree, the settings that differ are added."""
    names = {}
    for one, short in short_names.items():
        alike = [dict(other) for other, name in short_names.items() if name == short]
        settings = dict(one)
        differing = [name for name in sorted(set().union(*alike)) if len({each.get(name) for each in alike}) > 1]
        added = [f"{name}={settings[name]}".replace('"', "") for name in differing if name in settings]
        names[one] = ", ".join([short, *added])
    return names


def _labels(runs: Sequence[Run]) -> dict[Row, str]:
    """Names of the rows: the category, and the hash of its test images where one category has several."""
    labels: dict[Row, str] = {}
    for run in runs:
        for row in run.tested:
            labels[row] = row.name.removeprefix(f"{run.config['dataset']['name']}_")
    names = [row.name for row in labels]
    return {
        row: f"{label} (test images {row.test_set})" if names.count(row.name) > 1 else label
        for row, label in labels.items()
    }


def mean_or_nan(values: Sequence[float]) -> float:
    """The mean; nan of nothing."""
    return math.fsum(values) / len(values) if values else math.nan
