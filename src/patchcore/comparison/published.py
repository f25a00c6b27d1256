"""Published results to lay beside the measured ones; the format is described in docs/comparison.md."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from patchcore.comparison.runs import Row
from patchcore.comparison.study import Contender, Study, mean_or_nan
from patchcore.results.columns import METRICS
from patchcore.types import PatchCoreError


@dataclass(frozen=True, kw_only=True)
class PublishedMethod:
    """The printed results of a method.

    Attributes:
        name: as printed.
        source: where they were printed.
        log_group: the folder of its runs, `*` and `?` standing for any characters; a run's number (GROUP_0) is ignored.
        values: metric -> category -> value in [0, 1].
        note: what a reader should know of these numbers.
    """

    name: str
    source: str
    log_group: str
    values: dict[str, dict[str, float]]
    note: str

    def matches(self, contender: Contender) -> bool:
        """Whether all runs of a contender lie in folders of this name."""
        return all(fnmatchcase(run.config["run"]["log_group"], self.log_group) for run in contender.runs)

    def value(self, study: Study, line: Row | None, metric: str) -> float:
        """The printed value of a line, for the average that of its rows; nan where one is not printed."""
        printed = self.values.get(metric, {})
        rows = study.rows if line is None else [line]
        return mean_or_nan([printed.get(study.labels[row], math.nan) for row in rows])


def find_published(published: list[PublishedMethod], contender: Contender) -> PublishedMethod | None:
    """The published method that a contender reproduces."""
    return next((one for one in published if one.matches(contender)), None)


def read_published(path: Path) -> list[PublishedMethod]:
    """Read published results.

    Raises:
        PatchCoreError: the file is missing or not in the format; what is wrong is named.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PatchCoreError(f"{path}: cannot read published results: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("methods"), dict):
        raise PatchCoreError(f'{path}: expected {{"source": ..., "methods": {{NAME: ...}}}}')
    source = str(content.get("source", path.name))
    return [_read_method(path, source, name, entry) for name, entry in content["methods"].items()]


def _read_method(path: Path, source: str, name: str, entry: object) -> PublishedMethod:
    if not isinstance(entry, dict) or not isinstance(entry.get("log_group"), str):
        raise PatchCoreError(f"{path}: {name}: expected an object with the log_group of its runs")
    values = {metric: entry[metric] for metric in METRICS if metric in entry}
    for metric, categories in values.items():
        if not isinstance(categories, dict):
            raise PatchCoreError(f"{path}: {name}: expected {metric} to hold a value per category")
        for category, value in categories.items():
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise PatchCoreError(f"{path}: {name}, {metric}, {category}: expected 0 to 1, got {value!r}")
    note = str(entry.get("note", ""))
    return PublishedMethod(name=name, source=source, log_group=entry["log_group"], values=values, note=note)
