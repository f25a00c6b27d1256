"""The settings that all methods share: of a run and of its images. No torch here, so that `--help` is quick."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

from patchcore.settings import check, setting

WEIGHTS = ("pretrained", "random")
PRECISIONS = ("float32", "bfloat16")
CALIBRATIONS = ("none", "leave_one_out", "folds", "held_out")
OWN_PARTS = "folder"  # the layout of --good, --bad and --masks; the others have a folder per category
DATASETS = ("mpdd", "mvtec", OWN_PARTS)
# Folder names that say what the images are, not of which part.
_SAY_NO_PART = ("good", "ok", "normal", "bad", "defective", "defects", "train", "training", "test", "image", "images")
CALIBRATION_FOLDS = 5
FALSE_REJECTS = 0.05
WEIGHTS_VARIABLE = "PATCHCORE_WEIGHTS"  # the environment variable that names a folder with weight files
FEATURE_CACHE_GIB = 20.0


def weights_setting() -> str:
    """The setting `weights` of a method with a backbone."""
    return setting("pretrained", "random tries out the structure without a download.", choices=WEIGHTS)


def weights_dir_setting() -> Path | None:
    """The setting `weights_dir` of a method with a backbone."""
    return setting(
        None,
        "Folder with weight files, where they cannot be downloaded.",
        variable=WEIGHTS_VARIABLE,
        decides=False,
        on_load=True,
    )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run goes, on what it runs, and what it leaves beside `results.csv`."""

    results_path: Path = setting(argument=True, decides=False)
    gpu: tuple[int, ...] = setting(
        (0,),
        "CUDA device; without CUDA the run takes the CPU and says so. Repeat to spread an ensemble.",
        at_least=0,
        decides=False,
    )
    seed: int = setting(0, "Source of all random choices.", at_least=0)
    log_group: str = setting("group", "Folder of this run.")
    log_project: str = setting("project", "Folder of its group of runs.")
    save_model: bool = setting(False, "Store the model of every category.")
    save_segmentation_images: bool = setting(False, "Write image, mask and heat map of every test image.")
    save_anomaly_scores: bool = setting(False, "Write the score of every test image.")
    calibration: str | None = setting(
        None,
        "Which good images set the threshold: leave_one_out, every training image without its own patches (PatchCore);"
        " folds, those of each fold by a model of the other folds; held_out, those that --train_val_split holds out;"
        " none, so that there are no verdicts.",
        choices=CALIBRATIONS,
        shown="held_out with --train_val_split below 1, else leave_one_out where something is kept and it costs little",
    )
    calibration_folds: int | None = setting(
        None, "Models that are trained for --calibration folds.", at_least=2, shown=str(CALIBRATION_FOLDS)
    )
    false_rejects: float = setting(
        FALSE_REJECTS, "Share of good parts that may be rejected; the threshold follows from it.", above=0, below=1
    )
    resume: bool = setting(
        False,
        "Go on with the newest run of this group: what is finished is kept. Starts one where there is none.",
        decides=False,
    )
    feature_cache: Path | None = setting(
        None,
        "Folder to keep feature maps in, so that later runs on the same images need no backbone pass.",
        decides=False,
    )
    feature_cache_gib: float | None = setting(
        None,
        "Size of that folder; what was used longest ago is deleted.",
        above=0,
        shown=f"{FEATURE_CACHE_GIB:g}",
        decides=False,
    )

    def __post_init__(self) -> None:
        check(self)
        if self.feature_cache_gib is not None and self.feature_cache is None:
            raise ValueError("--feature_cache_gib has no effect without --feature_cache")
        if self.calibration_folds is not None and self.calibration != "folds":
            raise ValueError("--calibration_folds has no effect without --calibration folds")
        if self.calibration == "none" and self.false_rejects != FALSE_REJECTS:
            raise ValueError("--false_rejects has no effect with --calibration none")
        for name in ("log_group", "log_project"):
            value = getattr(self, name)
            if not value or Path(value).name != value or value.startswith("."):
                raise ValueError(f"--{name} must be the name of a folder, got {value!r}")
        if len(set(self.gpu)) != len(self.gpu):
            raise ValueError(f"every --gpu once, got {' '.join(map(str, self.gpu))}")


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Which images are read and how they reach the network.

    `path` holds a folder per category. With `folder` the images lie in `good` and `bad`, which become absolute, links
    followed, and `path` is the folder around `bad`, or around `good` where that is all; it need not be given.
    """

    name: str = setting(argument=True, choices=DATASETS)
    path: Path | None = setting(None, argument=True)
    categories: tuple[str, ...] = setting(
        (),
        "Category, a folder of DATA_PATH. Repeat for several. With folder it names the parts, instead of the folder"
        " that they lie in.",
        flags=("--subdatasets", "-d"),
    )
    good: Path | None = setting(None, "With folder: good images to learn from, directly in it.")
    bad: Path | None = setting(
        None, "With folder: defective images to test on, directly in it or in a folder per kind of defect."
    )
    masks: Path | None = setting(None, "With folder: the masks of --bad, in the same folders, paired by name.")
    resize: int = setting(help="Shorter side after resizing.", at_least=1)
    imagesize: int = setting(help="Side of the centre crop.", at_least=1)
    batch_size: int = setting(8, "Images at a time.", at_least=1)
    num_workers: int = setting(8, "Threads that read images.", at_least=0, decides=False)
    train_val_split: float = setting(
        1.0, "Share of the training images to train on; the others set the threshold.", above=0, at_most=1
    )
    augment: bool = setting(False, "Train on the flips and right-angle turns of every image as well.")
    reduced_decoding: bool = setting(
        False,
        "Decode JPEG files at the smallest scale of at least twice --resize: faster for large ones, almost the same"
        " pixels.",
    )

    def __post_init__(self) -> None:
        check(self)
        for name in ("good", "bad", "masks"):
            if folder := getattr(self, name):
                object.__setattr__(self, name, folder.resolve())
        tested = self.bad or self.good
        root = tested.parent if self.name == OWN_PARTS and tested else None
        check_layout(
            name=self.name,
            path=self.path if self.path != root else None,
            categories=self.categories,
            good=self.good,
            bad=self.bad,
            masks=self.masks,
        )
        object.__setattr__(self, "path", root or self.path)
        if self.imagesize > self.resize:
            raise ValueError(
                f"--imagesize {self.imagesize} must be at most --resize {self.resize}: the image is cut from the"
                " resized one"
            )

    @property
    def root(self) -> Path:
        """The folder that the names of test images are relative to: in fingerprints, tables and files of pictures."""
        assert self.path is not None  # as `__post_init__` saw
        return self.path


def check_layout(
    *,
    name: str,
    path: Path | None,
    categories: Sequence[str],
    good: Path | None,
    bad: Path | None,
    masks: Path | None,
) -> None:
    """See that a layout has what it needs and nothing that it does not read; the arguments are `DatasetConfig`'s.

    Raises:
        ValueError: names the option.
    """
    own = {option: folder for option, folder in (("good", good), ("bad", bad), ("masks", masks)) if folder}
    repeated = sorted({category for category in categories if categories.count(category) > 1})
    if repeated:
        raise ValueError(f"every category once, got more of {', '.join(repeated)}")
    if name != OWN_PARTS:
        if own:
            raise ValueError(f"--{next(iter(own))} has no effect with {name}, only with {OWN_PARTS}")
        if path is None:
            raise ValueError(f"{name} needs DATA_PATH, the folder that holds a folder per category")
        if not categories:
            raise ValueError("at least one category is needed: -d NAME")
        return
    if path is not None:
        raise ValueError(f"DATA_PATH {path} has no effect with {OWN_PARTS}: --good and --bad say where the images are")
    if masks and not bad:
        raise ValueError("--masks has no effect without --bad, whose masks they are")
    if not own:
        raise ValueError(f"{OWN_PARTS} needs --good FOLDER to learn from, or --bad FOLDER to test on")
    if len(categories) != 1:
        raise ValueError(f"{OWN_PARTS} is one category: -d NAME once, got {len(categories)}")
    if Path(categories[0]).name != categories[0] or categories[0].startswith("."):
        raise ValueError(f"-d must be the name of a folder, got {categories[0]!r}")
    for (outer, folder), (inner, other) in permutations(own.items(), 2):
        if other.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"--{inner} {other} lies in --{outer} {folder}: put them apart")


def category_of(folder: Path) -> str:
    """The name of the parts in a folder: its own or the nearest above that says more than what the images are.

    photos/brackets/good -> brackets

    Raises:
        ValueError: there is no such name.
    """
    folder = Path(os.path.normpath(folder.absolute()))  # links are not followed: their names are the user's
    for name in (folder.name, *(above.name for above in folder.parents)):
        if name and name.lower() not in _SAY_NO_PART and not name.startswith("."):
            return name
    raise ValueError(f"no folder on the way to {folder} names the parts: give a name, -d NAME")
