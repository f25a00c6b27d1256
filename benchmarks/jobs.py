"""Whole runs as processes: the main job on metal_plate, and a bank as large as the largest of MPDD."""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks.inputs import CATEGORY, Inputs
from benchmarks.measure import Report, Table, at_least, at_most
from benchmarks.processes import BIN, Ended, run_python
from benchmarks.report import mib, seconds
from patchcore.results.tables import read_results
from patchcore.synthetic.generate import generate

# The original implementation's run of the main job on metal_plate, as quoted in the task; not measured here.
QUOTED_SECONDS, QUOTED_MIB = 46.0, 1.7e9 / 2**20
LITE0 = ("-b", "efficientnet_lite0", "-le", "blocks.2", "-le", "blocks.4")
GEOMETRY = ("--resize", 256, "--imagesize", 224)
LARGE_IMAGES, LARGE_RESIZE, LARGE_SIZE, LARGE_GRID = 289, 366, 320, 40
QUICK_IMAGES = 3


def main_job(inputs: Inputs, data: Path, group: str) -> Ended:
    """The main job of the README: train, evaluate, save the model, draw overlays, write the scores."""
    return run_python(
        [
            BIN / "run_patchcore.py",
            *("--save_patchcore_model", "--save_segmentation_images", "--save_anomaly_scores"),
            *("--log_group", group, inputs.settings.scratch / "results"),
            *("patch_core", *LITE0, *_on_gpu(inputs)),
            *("sampler", "-p", 0.1, "approx_greedy_coreset"),
            *("dataset", *GEOMETRY, "-d", CATEGORY, "mpdd", data),
        ],
        cuda=inputs.settings.device.type == "cuda",
    )


def _on_gpu(inputs: Inputs) -> tuple[str, ...]:
    return ("--faiss_on_gpu",) if inputs.settings.device.type == "cuda" else ()


def large_bank(inputs: Inputs) -> tuple[int, Ended]:
    """A bank from 289 images of 320 px, 10 % kept; the number of patches that it is chosen from, and the run."""
    images = QUICK_IMAGES if inputs.settings.quick else LARGE_IMAGES
    data = inputs.settings.scratch / "large"
    generate(data, categories=[CATEGORY], num_train=images, num_test_good=1, num_per_defect=1, size=LARGE_RESIZE)
    ended = run_python(
        [
            BIN / "run_patchcore.py",
            *("--log_group", "large", inputs.settings.scratch / "results"),
            *("patch_core", *LITE0, *_on_gpu(inputs)),
            *("sampler", "-p", 0.1, "approx_greedy_coreset"),
            *("dataset", "--resize", LARGE_RESIZE, "--imagesize", LARGE_SIZE, "-d", CATEGORY, "mpdd", data),
        ],
        cuda=inputs.settings.device.type == "cuda",
    )
    return images * LARGE_GRID**2, ended


def stage_rows(results: Path, whole: float) -> list[tuple[str, str, str]]:
    """The seconds of every stage of a run, and what is left of the whole."""
    row = read_results(results)[f"mpdd_{CATEGORY}"]
    spent = {}
    for stage in ("decode", "backbone", "embedding", "coreset", "search", "maps"):
        testing = row.get(f"{stage}_ms_per_image", 0.0) * row["test_images"] / 1e3
        spent[stage] = row.get(f"fit_{stage}_seconds", 0.0), testing
    rows = [(stage, *(seconds(value) if value else "-" for value in values)) for stage, values in spent.items()]
    fit, test = row["fit_seconds"], row["ms_per_image"] * row["test_images"] / 1e3
    rows.append(("all of it, the bank's preparation included", seconds(fit), seconds(test)))
    rest = "before and after: start-up, masks, metrics, pictures, files"
    return [*rows, (rest, seconds(whole - fit - test), "")]


def run(inputs: Inputs) -> Report:
    """Measure both; the main job several times, the first of which warms the system's file cache."""
    settings = inputs.settings
    data = inputs.data_folder
    runs = [main_job(inputs, data, f"job{number}") for number in range(1 if settings.quick else 4)]
    median = statistics.median(run.seconds for run in runs)
    patches, large = large_bank(inputs)
    what = "real images" if settings.data is not None else "drawn images"
    rows = [
        ("main job on metal_plate, the original (quoted)", seconds(QUOTED_SECONDS), mib(QUOTED_MIB)),
        *(
            (f"main job on metal_plate ({what}), ours, run {number}", seconds(one.seconds), mib(one.peak_mib))
            for number, one in enumerate(runs, 1)
        ),
        (f"bank of 10 % of {patches:,} patches, whole run", seconds(large.seconds), mib(large.peak_mib)),
    ]
    table = Table(title="Whole runs as processes", header=("run", "time", "peak memory"), rows=rows)
    last = f"job{len(runs) - 1}"
    shares = Table(
        title="Where the time of the main job's last run goes",
        header=("", "training", "test"),
        rows=stage_rows(settings.scratch / "results" / "project" / last / "results.csv", runs[-1].seconds),
    )
    if settings.quick:
        return Report(tables=[table, shares])
    ratio = QUOTED_SECONDS / median
    return Report(
        tables=[table, shares],
        targets=[
            at_least("main job on metal_plate, median, against the quoted 46 s", 5, ratio),
            at_least("main job on metal_plate, then", 6, ratio),
            at_most(f"bank for {patches:,} patches, peak memory", 6, large.peak_mib / 1024, " GiB"),
        ],
    )
