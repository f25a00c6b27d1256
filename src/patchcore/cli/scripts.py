"""What the scripts of bin/ and the console commands of the same names run."""

from __future__ import annotations

from functools import partial
from typing import NoReturn

from patchcore.cli.commands import evaluation_command, training_command
from patchcore.cli.errors import run_as_process
from patchcore.methods import METHODS


def _train(method: str) -> NoReturn:
    run_as_process(training_command(METHODS[method]))


def _evaluate(method: str) -> NoReturn:
    run_as_process(evaluation_command(METHODS[method]))


run_patchcore, run_fastflow = partial(_train, "patchcore"), partial(_train, "fastflow")
load_and_evaluate_patchcore = partial(_evaluate, "patchcore")
load_and_evaluate_fastflow = partial(_evaluate, "fastflow")


def compare_results() -> NoReturn:
    """Compare the runs in a results folder."""
    from patchcore.cli.compare import compare_results

    run_as_process(compare_results)


def export_onnx() -> NoReturn:
    """Write a stored model as an ONNX graph."""
    from patchcore.cli.export import export_onnx

    run_as_process(export_onnx)


def make_synthetic_mpdd() -> NoReturn:
    """Write a small synthetic data set in MPDD's layout."""
    from patchcore.cli.synthetic import make_synthetic_mpdd

    run_as_process(make_synthetic_mpdd)


def predict() -> NoReturn:
    """Judge new images with a stored model."""
    from patchcore.cli.predict import predict

    run_as_process(predict)


def calibrate() -> NoReturn:
    """Calibrate a stored model with images of good parts."""
    from patchcore.cli.calibrate import calibrate

    run_as_process(calibrate)


def update_patchcore() -> NoReturn:
    """Add images of good parts to a stored PatchCore model."""
    from patchcore.cli.update import update_patchcore

    run_as_process(update_patchcore)
