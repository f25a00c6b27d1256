"""Published results to lay beside the measured ones; the format is described in docs/comparison.md."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from patchcore.comparison.study import Method, Row, Study, mean
from patchcore.results.run_folder import METRICS
from patchcore.types import PatchCoreError


@dataclass(frozen=True, kw_only=True)
class PublishedMethod:
    """The printed results of a method.

    Attributes:
        name: as printed.
        log_group: the folder of its runs, `*` and `?` standing for any characters; a run's number (GROUP_0) is ignored.
        values: metric -> category -> value in [0, 1].
        note: what a reader should know of these numbers.
    """

    name: str
    log_group: str
    values: dict[str, dict[str, float]]
    note: str

    def matches(self, method: Method) -> bool:
        """Whether all runs of a method lie in folders of this name."""
        groups = [run.config["run"]["log_group"] for run in method.runs]
        return all(fnmatchcase(group, self.log_group) for group in groups)

    def value(self, study: Study, line: Row | None, metric: str) -> float:
        """The printed value of a line, for the average that of its rows; nan where one is not printed."""
        printed = self.values.get(metric, {})
        if line is None:
            return mean([printed.get(study.labels[row], math.nan) for row in study.rows])
        return printed.get(study.labels[line], math.nan)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A file of published results."""

    source: str
    methods: tuple[PublishedMethod, ...] = ()

    def of(self, method: Method) -> PublishedMethod | None:
        """The published method that a column reproduces."""
        return next((one for one in self.methods if one.matches(method)), None)

    def unmatched(self, methods: Sequence[Method]) -> list[PublishedMethod]:
        """The published methods that no column reproduces."""
        return [one for one in self.methods if not any(self.of(method) is one for method in methods)]


def read_published(path: Path) -> Published:
    """Read published results.

    Raises:
        PatchCoreError: the file is missing or not in the format; what is wrong is named.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PatchCoreError(f"{path}: cannot read published results: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("methods"), dict):
        raise PatchCoreError(f'{path}: expected {{"source": ..., "methods": {{NAME: ...}}}}')
    methods = tuple(_method(path, name, entry) for name, entry in content["methods"].items())
    return Published(source=str(content.get("source", path.name)), methods=methods)


def _method(path: Path, name: str, entry: object) -> PublishedMethod:
    if not isinstance(entry, dict) or not isinstance(entry.get("log_group"), str):
        raise PatchCoreError(f"{path}: {name}: expected an object with the log_group of its runs")
    values = {metric: entry[metric] for metric, _ in METRICS if metric in entry}
    for metric, categories in values.items():
        if not isinstance(categories, dict):
            raise PatchCoreError(f"{path}: {name}: expected {metric} to hold a value per category")
        for category, value in categories.items():
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise PatchCoreError(f"{path}: {name}, {metric}, {category}: expected 0 to 1, got {value!r}")
    return PublishedMethod(name=name, log_group=entry["log_group"], values=values, note=str(entry.get("note", "")))
