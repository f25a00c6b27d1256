"""The folder of a run: how it is made and found, and where every file in it lies."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from patchcore.results.config_file import read_yaml
from patchcore.types import PatchCoreError

_CONFIG, _RESULTS, _LOG = "config.yaml", "results.csv", "run.log"  # any of them marks the folder of a run


class RunFolder:
    """RESULTS/PROJECT/GROUP, and where everything lies in it; a `row` is the name of a category in the results.

    Attributes:
        config, results, defect_types, log: the files by what they hold.
        trainings: what trainings record, a folder per row.
        models: the stored models, a folder per row.
        overlays: the pictures of the test images, a folder per row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / _CONFIG
        self.results = path / _RESULTS
        self.defect_types = path / "defect_types.csv"
        self.log = path / _LOG
        self.trainings = path / "training"
        self.models = path / "models"
        self.overlays = path / "segmentation_images"

    @classmethod
    def create(cls, results_path: Path, project: str, group: str) -> RunFolder:
        """Make RESULTS/PROJECT/GROUP, or GROUP_0, GROUP_1 ... where that exists; never one that was there.

        Raises:
            PatchCoreError: the system refused.
        """
        parent = results_path / project
        try:
            parent.mkdir(parents=True, exist_ok=True)
            for folder in _candidates(parent, group):
                with suppress(FileExistsError):
                    folder.mkdir()
                    return cls(folder)
        except OSError as error:
            raise PatchCoreError(f"cannot make the results folder {parent / group}: {error.strerror}") from error
        raise AssertionError("there is no end of numbers")

    @classmethod
    def newest(cls, results_path: Path, project: str, group: str) -> RunFolder | None:
        """The run of a group that `create` made last; None where there is none yet.

        A folder GROUP_0 may also be the first of a group of that name, and then is none of GROUP.
        """
        folders = itertools.takewhile(Path.is_dir, _candidates(results_path / project, group))
        runs = [run for run in map(cls, folders) if _log_group(run) in (group, None)]
        return runs[-1] if runs else None

    def overlay(self, row: str, image: str, normalised_score: float) -> Path:
        """The picture of a test image, named after it and its score.

        Args:
            row: the category in the results.
            image: the path of the image, relative to the data set's folder.
            normalised_score: its score in [0, 1] over the test set.
        """
        *folders, name = image.split("/")
        stem = "_".join([*folders, PurePosixPath(name).stem])
        return self.overlays / row / f"{stem}_score{normalised_score:.3f}.png"

    def suspects(self, row: str) -> Path:
        """The table of the suspicious training images, where there are any."""
        return self.path / "suspects" / f"{row}.csv"

    def suspects_picture(self, row: str) -> Path:
        return self.path / "suspects" / f"{row}.png"

    def scores(self, row: str) -> Path:
        return self.path / "anomaly_scores" / f"{row}.csv"

    def score_histogram(self, row: str) -> Path:
        return self.path / "anomaly_scores" / f"{row}.png"

    def pixel_pairs(self, row: str) -> Path:
        return self.path / "anomaly_scores" / f"{row}_pixels.npz"


def find_run_folders(root: Path) -> list[tuple[str, RunFolder]]:
    """Every run in and below a folder with its path from there, in the order of these names, numbers by value."""
    found = {path.parent for name in (_CONFIG, _RESULTS, _LOG) for path in root.rglob(name)}
    named = [(root.resolve().name if path == root else path.relative_to(root).as_posix(), path) for path in found]
    return [(name, RunFolder(path)) for name, path in sorted(named, key=lambda one: _natural(one[0]))]


def _candidates(parent: Path, group: str) -> Iterator[Path]:
    yield parent / group
    yield from (parent / f"{group}_{number}" for number in itertools.count())


def _log_group(run: RunFolder) -> str | None:
    """The name of the group that a run was started with; None where that cannot be read."""
    try:
        section = read_yaml(run.config).get("run")
    except PatchCoreError:
        return None
    return section.get("log_group") if isinstance(section, dict) else None


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorting key by which `run_2` comes before `run_10`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
