"""The one loop: for each category fit, predict, measure, report, store. Knows no method by name."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from patchcore.category_run import Category, CategoryRun, Job, scan
from patchcore.config import CALIBRATION_FOLDS, DatasetConfig, RunConfig
from patchcore.datasets.loader import VIEWS
from patchcore.methods.detector import Detector
from patchcore.provenance import check_resumable, describe_run, fingerprint
from patchcore.results.columns import MEAN
from patchcore.results.config_file import read_config, write_yaml
from patchcore.results.run_folder import RunFolder
from patchcore.results.tables import read_defect_types, read_results, write_defect_types, write_results
from patchcore.system.devices import available_bytes
from patchcore.system.files import remove_unless
from patchcore.system.memory import format_bytes
from patchcore.types import PatchCoreError

log = logging.getLogger(__name__)


@dataclass
class Summary:
    """How a run ended.

    Attributes:
        rows: the results by row name.
        failures: the reason by category that failed.
        highest: row name -> the picture with the highest score, of the categories that this process ran.
    """

    folder: RunFolder
    rows: dict[str, dict[str, float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    highest: dict[str, Path] = field(default_factory=dict)


def run_experiment(run: RunConfig, dataset: DatasetConfig, job: Job, *, command: str) -> Summary:
    """Run a method on every category and write what the run leaves.

    All categories are looked at before anything is written. A category that fails is named and leaves the others
    alone; a run in which none succeeds and none can be resumed leaves nothing.

    Raises:
        PatchCoreError: a category's folder is not as it must be, the results folder cannot be written, or the run to
            resume had other settings.
    """
    categories = [scan(dataset, name, run.seed, training=not job.models) for name in dataset.categories]
    _refuse_folds(run, categories, job)
    test_set = {category.row: fingerprint(category.test, dataset.root) for category in categories}
    content = describe_run(run, dataset, job.method, job.configs, job.models, test_set, command)
    new = [path for path in (run.results_path / run.log_project, run.results_path) if not path.exists()]
    folder = RunFolder.newest(run.results_path, run.log_project, run.log_group) if run.resume else None
    resumed = folder is not None
    if folder:
        check_resumable(folder, content)
        content["id"] = read_config(folder.config)["id"]
        summary = Summary(folder, read_results(folder.results) if folder.results.exists() else {})
        summary.rows.pop(MEAN, None)
        defect_types = read_defect_types(folder.defect_types) if folder.defect_types.exists() else {}
    else:
        folder = RunFolder.create(run.results_path, run.log_project, run.log_group)
        summary, defect_types = Summary(folder), {}

    def worth_keeping() -> bool:
        return bool(summary.rows) or folder.trainings.exists()

    # Only what this process made may go again: a folder that is resumed holds the work of another.
    guard = nullcontext() if resumed else remove_unless([folder.path, *new], worth_keeping)
    with guard, _log_to(folder.log):
        if not folder.config.exists():
            write_yaml(folder.config, content)
        unfinished = [category for category in categories if category.row not in summary.rows]
        # A network that cannot be had ends the run here, rather than every category in turn.
        fresh = {category.name: job.fresh(category.name, dataset) for category in unfinished}
        if unfinished and not job.models:
            _announce_memory(fresh, dataset, unfinished)
        fresh.clear()
        for category in categories:
            if category.row in summary.rows:
                log.info("%s: finished before, skipped", category.name)
                continue
            try:
                for leftover in (folder.models / category.row, folder.overlays / category.row):
                    shutil.rmtree(leftover, ignore_errors=True)
                done = CategoryRun(run, dataset, job, category, folder, run_id=content["id"]).run()
            except KeyboardInterrupt:
                finished = ", ".join(summary.rows) or "none"
                goes_on = "; --resume goes on from here" if resumed or worth_keeping() else ""
                log.error("interrupted in %s; finished: %s%s", category.name, finished, goes_on)
                raise
            except Exception as error:  # whatever it is, it must not lose the other categories
                log.debug("category %s failed", category.name, exc_info=True)
                summary.failures[category.name] = describe_error(error)
                log.error("%s: %s", category.name, summary.failures[category.name])
                continue
            if done.defect_types:
                defect_types.pop(category.row, None)
                defect_types[category.row] = done.defect_types
                write_defect_types(folder.defect_types, defect_types)
            if done.highest:
                summary.highest[category.row] = done.highest
            summary.rows[category.row] = done.row
            write_results(folder.results, summary.rows)
    return summary


def _refuse_folds(run: RunConfig, categories: Sequence[Category], job: Job) -> None:
    """Raise a PatchCoreError if a category has fewer training images than there are folds."""
    folds = run.calibration_folds or CALIBRATION_FOLDS
    for category in [] if job.models or run.calibration != "folds" else categories:
        if len(category.train) < folds:
            raise PatchCoreError(
                f"--calibration folds: {category.name} has {len(category.train)} training images for {folds} folds:"
                " lower --calibration_folds"
            )


def describe_error(error: BaseException) -> str:
    """An error in one line: its own words if it is ours, with its type if it is not."""
    text = " ".join(str(error).split())
    return text if isinstance(error, PatchCoreError) else f"{type(error).__name__}: {text}"


def _announce_memory(detectors: Mapping[str, Detector], dataset: DatasetConfig, categories: Sequence[Category]) -> None:
    """Say what training on the largest category takes, and warn where that is more than there is."""
    counts = {category.name: len(category.train) * (VIEWS if dataset.augment else 1) for category in categories}
    largest = max(counts, key=lambda name: counts[name])
    for device, expected in detectors[largest].expected_bytes(counts[largest]).items():
        free = available_bytes(device)
        place = "host memory" if device.type == "cpu" else f"memory on {device}"
        sizes = f"{format_bytes(expected)} of {place}, {format_bytes(free)} are free"
        needs = f"{counts[largest]} training images take about {sizes}"
        if expected > free:
            log.warning("%s: expect the run to swap or end; fewer images or a smaller --imagesize take less", needs)
        else:
            log.info(needs)


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Write the package's log to a file as well, in more detail than the terminal shows."""
    package = logging.getLogger("patchcore")
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        handler.close()
