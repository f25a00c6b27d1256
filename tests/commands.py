"""Running the scripts' commands inside the test process."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from patchcore.cli.commands import evaluation_command, training_command
from patchcore.methods import METHODS

run_patchcore = training_command(METHODS["patchcore"])
load_and_evaluate_patchcore = evaluation_command(METHODS["patchcore"])
run_fastflow = training_command(METHODS["fastflow"])
load_and_evaluate_fastflow = evaluation_command(METHODS["fastflow"])

LITE0 = ("-b", "efficientnet_lite0", "-le", "blocks.2", "-le", "blocks.4")


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, standard output and standard error."""

    code: int
    out: str
    err: str


class Shell:
    """Runs click commands as their scripts do and tells how they ended."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, command: click.Command, *args: object) -> Ended:
        self._capsys.readouterr()
        try:
            command.main([str(arg) for arg in args], prog_name="script")
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = self._capsys.readouterr()
        return Ended(code, captured.out, captured.err)


def score_lines(path: Path, *, verdicts: bool = True) -> list[dict[str, str]]:
    """The lines of a scores CSV as text, with or without what a calibration says."""
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    left_out = () if verdicts else ("decision_value", "rejected", "p_value")
    return [{name: cell for name, cell in line.items() if name not in left_out} for line in lines]


def patchcore_args(
    results: Path,
    data: Path,
    *,
    run: tuple = (),
    patch_core: tuple = LITE0,
    sampler: tuple = ("-p", "0.1", "approx_greedy_coreset"),
    dataset: tuple = ("-d", "metal_plate"),
    name: str = "mpdd",
) -> list[object]:
    """The arguments of run_patchcore.py, each stage with its own."""
    return [*run, results, "patch_core", *patch_core, "sampler", *sampler, "dataset", *dataset, name, data]
