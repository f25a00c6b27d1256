"""The settings that all methods share: of a run and of its images. No torch here, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from patchcore.settings import check, setting

WEIGHTS = ("pretrained", "random")
PRECISIONS = ("float32", "bfloat16")
CALIBRATIONS = ("none", "leave_one_out", "folds", "held_out")
DATASETS = ("mpdd", "mvtec")
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
        "How good images that the model has not learnt set its threshold: each left out in turn, folds with a model"
        " each, or those that --train_val_split holds out.",
        choices=CALIBRATIONS,
        shown="leave_one_out (PatchCore) or held_out where a model or scores are kept and it costs little",
    )
    calibration_folds: int = setting(5, "Models that are trained for --calibration folds.", at_least=2)
    false_rejects: float = setting(
        0.05, "Share of good parts that may be rejected; the threshold follows from it.", above=0, below=1
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
        for name in ("log_group", "log_project"):
            value = getattr(self, name)
            if not value or Path(value).name != value or value.startswith("."):
                raise ValueError(f"--{name} must be the name of a folder, got {value!r}")
        if len(set(self.gpu)) != len(self.gpu):
            raise ValueError(f"every --gpu once, got {' '.join(map(str, self.gpu))}")


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Which images are read and how they reach the network."""

    name: str = setting(argument=True, choices=DATASETS)
    path: Path = setting(argument=True)
    categories: tuple[str, ...] = setting(
        help="Category, a folder of DATA_PATH. Repeat for several.", flags=("--subdatasets", "-d")
    )
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
        if not self.categories:
            raise ValueError("at least one category is needed: -d NAME")
        repeated = sorted({name for name in self.categories if self.categories.count(name) > 1})
        if repeated:
            raise ValueError(f"every category once, got more of {', '.join(repeated)}")
        if self.imagesize > self.resize:
            raise ValueError(
                f"--imagesize {self.imagesize} must be at most --resize {self.resize}: the image is cut from the"
                " resized one"
            )
