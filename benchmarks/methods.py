"""FastFlow beside PatchCore: training and inference of both on the same images, as their runs' results.csv says."""

from __future__ import annotations

import csv
from pathlib import Path
from statistics import median

from benchmarks.inputs import CATEGORY, Inputs
from benchmarks.jobs import GEOMETRY, LITE0
from benchmarks.measure import Report, Table, at_least
from benchmarks.processes import BIN, run_python
from benchmarks.report import mib, seconds
from patchcore.methods.fastflow.record import LOG_FILE
from patchcore.results.tables import read_results

EPOCHS, QUICK_EPOCHS, GPU_EPOCHS = 5, 1, 20


def results_of(inputs: Inputs, script: str, group: str, stages: tuple[object, ...]) -> dict[str, float]:
    """The row of a run on the inputs' data set."""
    results = inputs.settings.scratch / "methods"
    run_python(
        [
            BIN / script,
            *("--log_group", group, results, *stages),
            *("dataset", *GEOMETRY, "-d", CATEGORY, "mpdd", inputs.data_folder),
        ],
        cuda=inputs.settings.device.type == "cuda",
    )
    return read_results(results / "project" / group / "results.csv")[f"mpdd_{CATEGORY}"]


def epoch_rate(run: Path) -> float:
    """Images per second of an epoch by the clock on the wall, the median over the epochs of a FastFlow run."""
    with (run / "training" / f"mpdd_{CATEGORY}" / LOG_FILE).open() as file:
        return median(float(row["images_per_second"]) for row in csv.DictReader(file))


def table_row(name: str, row: dict[str, float], passes: int) -> tuple[str, ...]:
    """Rates and times of a run in which every training image was seen `passes` times."""
    seen, inference = row["train_images"] * passes, row["ms_per_image"] - row["decode_ms_per_image"]
    return (
        name,
        seconds(row["fit_seconds"]),
        f"{seen / row['fit_seconds']:,.0f} images/s",
        seconds(row["ms_per_image"] / 1e3),
        f"{1e3 / row['ms_per_image']:,.0f} images/s",
        seconds(inference / 1e3),
        mib(row["peak_gpu_mib"] or row["peak_host_mib"]),
    )


def run(inputs: Inputs) -> Report:
    """Run both with EfficientNet-Lite0; on CUDA FastFlow with ResNet18 as well, which the task sets a rate for."""
    settings = inputs.settings
    on_gpu = settings.device.type == "cuda"
    search = ("--faiss_on_gpu",) if on_gpu else ()
    patch_core = ("patch_core", *LITE0, *search, "sampler", "-p", 0.1, "approx_greedy_coreset")
    rows = [table_row("PatchCore", results_of(inputs, "run_patchcore.py", "patchcore", patch_core), 1)]
    epochs = QUICK_EPOCHS if settings.quick else GPU_EPOCHS if on_gpu else EPOCHS
    flow = ("fastflow", "-b", "efficientnet_lite0", "--epochs", epochs)
    found = results_of(inputs, "run_fastflow.py", "fastflow", flow)
    rows.append(table_row(f"FastFlow, {epochs} epochs", found, epochs))
    targets = []
    if on_gpu and not settings.quick:
        flow = ("fastflow", "-b", "resnet18", "--weights", "random", "--epochs", epochs)
        found = results_of(inputs, "run_fastflow.py", "fastflow_resnet18", flow)
        rows.append(table_row(f"FastFlow on ResNet18, {epochs} epochs", found, epochs))
        rate = epoch_rate(settings.scratch / "methods" / "project" / "fastflow_resnet18")
        targets.append(at_least("FastFlow's training on ResNet18, an epoch", 3000, rate, " images/s"))
    header = ("", "training", "training rate", "test image", "test rate", "without decoding", "peak memory")
    title = "Both methods on the same images, EfficientNet-Lite0, 224 px, from files to maps"
    return Report(tables=[Table(title=title, header=header, rows=rows)], targets=targets)
