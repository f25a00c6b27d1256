"""The script: its options reach the data set, and it fails in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from patchcore.synthetic.generate import generate

SCRIPT = Path(__file__).parents[1] / "bin" / "make_synthetic_mpdd.py"


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def run_script(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_the_script_writes_what_its_options_say(tmp_path: Path) -> None:
    options = ("--num_train", 2, "--num_test_good", 1, "--num_per_defect", 1, "--size", 72, "--seed", 5)
    done = run_script(tmp_path / "cli", "-d", "bracket_white", "-d", "metal_plate", *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert "bracket_white: 2 good for training, 1 good for testing, 1 each with" in done.stdout
    settings = {"num_train": 2, "num_test_good": 1, "num_per_defect": 1, "size": 72, "seed": 5}
    generate(tmp_path / "api", categories=["metal_plate", "bracket_white"], **settings)
    assert files(tmp_path / "cli") == files(tmp_path / "api")


def test_the_script_says_in_one_line_why_it_failed(tmp_path: Path) -> None:
    (tmp_path / "metal_plate").mkdir()
    (tmp_path / "metal_plate" / "mine.txt").write_text("")
    done = run_script(tmp_path, "-d", "metal_plate")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "metal_plate") in done.stderr


@pytest.mark.parametrize("arguments", [("-d", "tubes"), ("--size", 10), ("-d", "metal_plate", "-d", "metal_plate")])
def test_wrong_usage_of_the_script_exits_with_2(tmp_path: Path, arguments: tuple[object, ...]) -> None:
    done = run_script(tmp_path / "out", *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
