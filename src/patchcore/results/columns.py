"""The names of columns and rows in the tables of a run."""

from __future__ import annotations

ROW_NAMES = "Row Names"
MEAN = "Mean"  # the last row of results.csv

IMAGE_AUROC = "instance_auroc"
PIXEL_AUROC = "full_pixel_auroc"
DEFECTIVE_PIXEL_AUROC = "anomaly_pixel_auroc"
METRICS = {  # column -> heading; the first three are the study's
    IMAGE_AUROC: "image AUROC",
    PIXEL_AUROC: "pixel AUROC",
    DEFECTIVE_PIXEL_AUROC: "pixel AUROC defective",
    "image_ap": "image AP",
    "image_f1max": "image F1max",
    "pixel_ap": "pixel AP",
    "pixel_f1max": "pixel F1max",
    "aupro": "AUPRO",
}

THRESHOLD = "threshold"
DEFECTS_CAUGHT = "defects_caught"
FALSE_REJECTS = "false_rejects"
STATED_RATE = "stated_false_rejects"  # that the threshold allows
SHARES = (*METRICS, DEFECTS_CAUGHT, FALSE_REJECTS, STATED_RATE)  # in [0, 1], or nan

FIT_SECONDS = "fit_seconds"
MS_PER_IMAGE = "ms_per_image"
BANK_MIB = "bank_mib"
MODEL_MIB = "model_mib"
PEAK_HOST_MIB = "peak_host_mib"
PEAK_GPU_MIB = "peak_gpu_mib"
COSTS = {  # column -> heading
    FIT_SECONDS: "training, s",
    MS_PER_IMAGE: "per image, ms",
    PEAK_HOST_MIB: "host memory, MiB",
    PEAK_GPU_MIB: "GPU memory, MiB",
    BANK_MIB: "bank, MiB",
    MODEL_MIB: "model on disk, MiB",
}
CACHED_SHARE = "cached_share"
TRAIN_IMAGES = "train_images"
TEST_IMAGES = "test_images"
DEFECTIVE_IMAGES = "defective_images"  # of them

NOTHING_TO_MEASURE = "no test images: nothing to measure"  # what is said of a row with no TEST_IMAGES

DEFECT_TYPE = "defect_type"
IMAGES = "images"


def fit_stage_seconds(stage: str) -> str:
    """The column of the seconds that a stage took of the training."""
    return f"fit_{stage}_seconds"


def stage_ms_per_image(stage: str) -> str:
    """The column of the milliseconds per test image that a stage took."""
    return f"{stage}_{MS_PER_IMAGE}"


def stage_of(column: str) -> str | None:
    """The stage whose `stage_ms_per_image` this is; None for any other column."""
    stage = column.removesuffix(f"_{MS_PER_IMAGE}")
    return None if stage == column else stage
