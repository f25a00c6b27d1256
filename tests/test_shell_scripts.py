"""The study's shell scripts: which commands they call. A stand-in for the interpreter writes them down."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.name for path in ROOT.glob("sample_*.sh"))
TRAINING = [name for name in SCRIPTS if name.startswith("sample_training")]
EVALUATION = [name for name in SCRIPTS if name.startswith("sample_evaluation")]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


class Study:
    """Runs scripts with settings from the environment, and keeps the commands that they called."""

    def __init__(self, folder: Path) -> None:
        self.data, self.results = folder / "data set", folder / "all results"
        self.data.mkdir()
        self._calls = folder / "calls"
        self._python = folder / "python"
        write_down = f"for word; do echo \"$word\"; done >> '{self._calls}'\necho >> '{self._calls}'"
        self._python.write_text(f"#!/bin/sh\n{write_down}\n")
        self._python.chmod(0o755)

    def __call__(self, script: str, *arguments: object, **settings: str) -> subprocess.CompletedProcess[str]:
        self._calls.unlink(missing_ok=True)
        chosen = {"PYTHON": str(self._python), "RESULTS": str(self.results), "BACKBONE_SET": "offline", **settings}
        command = ["bash", str(ROOT / script), *map(str, arguments or (self.data,))]
        env = {"PATH": os.environ["PATH"], **chosen}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    @property
    def calls(self) -> list[list[str]]:
        """The words of each command, the interpreter's own name aside."""
        text = self._calls.read_text() if self._calls.exists() else ""
        return [call.split("\n") for call in text.strip("\n").split("\n\n") if call]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


def option(call: list[str], name: str) -> list[str]:
    return [call[i + 1] for i, word in enumerate(call) if word == name]


@pytest.mark.parametrize("script", TRAINING)
def test_training_goes_on_where_it_was(study, script):
    done = study(script, DATASETS="tubes metal_plate", GPUS="0 1", LOG_PROJECT="P")
    assert (done.returncode, done.stderr) == (0, "")
    method = "fastflow" if "fastflow" in script else "patchcore"
    assert len(study.calls) == (1 if method == "fastflow" else 4)
    for call in study.calls:
        assert call[0] == str(ROOT / "bin" / f"run_{method}.py")
        assert "--resume" in call
        assert option(call, "-d") == ["tubes", "metal_plate"]
        assert option(call, "--gpu") == ["0", "1"]
        assert option(call, "--log_project") == ["P"]
        assert call[-2:] == ["mpdd", str(study.data)]
        assert f"== {option(call, '--log_group')[0]}" in done.stdout
    assert len({tuple(option(call, "--log_group")) for call in study.calls}) == len(study.calls)


@pytest.mark.parametrize("script", EVALUATION)
def test_evaluation_takes_what_there_is(study, script):
    done = study(script)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no stored model in ")
    assert study.calls == []

    trainings = [name for name in TRAINING if ("fastflow" in name) == ("fastflow" in script)]
    assert study(trainings[0]).returncode == 0
    trained = study.calls[0]
    [group] = option(trained, "--log_group")
    (study.results / "MPDD" / group / "models").mkdir(parents=True)
    done = study(script, DATASETS="metal_plate tubes")
    assert done.returncode == 0
    [call] = study.calls
    assert "--resume" in call
    assert option(call, "--log_group") == [f"{group}_evaluation"]
    models = study.results / "MPDD" / group / "models"
    assert option(call, "-p") == [str(models / "mpdd_metal_plate"), str(models / "mpdd_tubes")]
    for name in ("--resize", "--imagesize", "--seed"):
        assert option(call, name) == option(trained, name)
    assert "no models in" in done.stdout, "the other groups are named"


@pytest.mark.parametrize(
    ("script", "variable", "stage"),
    [
        ("sample_training_mpdd.sh", "PATCH_CORE_OPTIONS", "patch_core"),
        ("sample_training_fastflow.sh", "FASTFLOW_OPTIONS", "fastflow"),
    ],
)
def test_more_options_reach_their_stage(study, script, variable, stage):
    study(script, **{variable: "--weights random"}, DATASET_OPTIONS="--num_workers 4")
    for call in study.calls:
        assert call.index(stage) < call.index("--weights") < call.index("dataset") < call.index("--num_workers")


def test_a_failing_command_ends_the_script(study):
    failing = study("sample_training_mpdd.sh", PYTHON="false")
    assert failing.returncode == 1
    assert failing.stdout.count("==") == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_wrong_use_exits_with_2(study, script):
    assert study(script, "--help").returncode == 0
    unknown_set = {"BACKBONE_SET": "x"}
    for arguments, settings in [(("",), {}), ((study.data, "more"), {}), (("nowhere",), {}), ((), unknown_set)]:
        done = study(script, *arguments, **settings)
        assert done.returncode == 2
        assert done.stderr
    assert study.calls == []
