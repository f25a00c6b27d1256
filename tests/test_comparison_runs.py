"""Finding runs, sorting them into columns and rows, and naming what is left out."""

import copy
import csv
import datetime
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from hand_made import BANK, BANK_SETTINGS, FLOW, FLOW_RUN, stored, write_run
from patchcore.comparison.runs import find_runs
from patchcore.comparison.study import studies_of
from patchcore.metrics import RankedPairs
from patchcore.results import run_folder
from patchcore.results.config_file import read_config, write_yaml
from patchcore.results.scores import write_pixel_pairs
from patchcore.results.tables import write_csv
from patchcore.types import PatchCoreError


def compared(root):
    """The studies below a folder, and name -> reason of what is in none."""
    runs, problems = find_runs(root)
    studies = studies_of(runs, problems)
    return studies, problems


def seeds_of(study):
    """Name of a contender -> label of a row -> names of the runs behind it."""
    return {
        one.name: {study.labels[row]: [run.name for run in one.runs_of(row)] for row in study.rows}
        for one in study.contenders
    }


def test_seeds_are_pooled_and_contenders_named_as_their_runs_say(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / "project" / f"ten{seed}", seed=seed)
        write_run(tmp_path / "other" / "project" / f"flow{seed}", seed=seed, config=FLOW_RUN)
    method = {"name": "bank", "title": "Bank", "short_name": "Bank net, 1 %"}
    write_run(tmp_path / "one", config={"method": method, "settings": {**BANK_SETTINGS, "fraction": 0.01}})
    (study,), problems = compared(tmp_path)
    assert problems == {}
    assert seeds_of(study) == {
        "Bank net, 1 %": {"plate": ["one"], "bracket": ["one"]},
        FLOW: {label: ["other/project/flow0", "other/project/flow1"] for label in ("plate", "bracket")},
        BANK: {label: ["project/ten0", "project/ten1"] for label in ("plate", "bracket")},
    }


def test_names_say_what_differs_where_the_short_ones_agree(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", config={"settings": {**BANK_SETTINGS, "num_nn": 3, "extra": "x"}})
    write_run(tmp_path / "c", config=FLOW_RUN)
    (study,), _ = compared(tmp_path)
    assert [one.name for one in study.contenders] == [f"{BANK}, num_nn=1", f"{BANK}, extra=x, num_nn=3", FLOW]


@pytest.mark.parametrize(
    "change",
    [
        {"imagesize": 96},
        {"resize": 300},
        {"train_val_split": 0.5},
        {"augment": True},
        {"reduced_decoding": True},
    ],
)
def test_geometry_and_training_images_are_settings(tmp_path, change):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", seed=1)
    path = tmp_path / "b" / "config.yaml"
    config = read_config(path)
    write_yaml(path, {**config, "dataset": {**config["dataset"], **change}})
    (study,), _ = compared(tmp_path)
    ((name, value),) = change.items()
    assert f"{BANK}, {name}={str(value).lower()}" in {one.name for one in study.contenders}


def test_where_a_method_computes_is_no_setting_of_its_own(tmp_path):
    write_run(tmp_path / "cpu")
    write_run(tmp_path / "gpu", seed=1, config={"execution": {"on_gpu": True}})
    (study,), _ = compared(tmp_path)
    assert len(study.contenders) == 1


def test_methods_of_the_same_settings_and_name_are_told_apart(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", config={"method": {"name": "other", "title": "Bank", "short_name": BANK}})
    (study,), _ = compared(tmp_path)
    assert [one.name for one in study.contenders] == [f"{BANK}, method=bank", f"{BANK}, method=other"]


def test_stored_models_trained_on_other_shares_are_columns_of_their_own(tmp_path):
    for share in (0.5, 1.0):
        config = stored(folder=f"elsewhere {share}")
        models = {name: {**model, "train_val_split": share} for name, model in config["models"].items()}
        write_run(tmp_path / f"share {share}", config={**config, "models": models})
    (study,), _ = compared(tmp_path)
    assert [one.name for one in study.contenders] == [
        f"{BANK}, stored, train_val_split={share}" for share in (0.5, 1.0)
    ]


def test_a_run_without_test_images_is_named_and_left_out(tmp_path):
    tested = {"all tested": (), "one tested": ("mpdd_bracket",), "none tested": ("mpdd_bracket", "mpdd_plate")}
    for seed, (name, untested) in enumerate(tested.items()):
        folder = write_run(tmp_path / name, seed=seed)
        config = read_config(folder / "config.yaml")
        for row in untested:
            config["test_set"][row] = {"images": 0, "fingerprint": "of none"}
        write_yaml(folder / "config.yaml", config)
    (study,), problems = compared(tmp_path)
    assert seeds_of(study) == {BANK: {"plate": ["all tested", "one tested"], "bracket": ["all tested"]}}
    reason = "no test images: nothing to compare"
    assert problems == {"none tested": reason, "one tested, mpdd_bracket": reason}


def test_a_repeated_seed_counts_once_and_the_later_run_stands(tmp_path):
    for name in ("run", "run_2", "run_10"):
        write_run(tmp_path / name)
    (study,), problems = compared(tmp_path)
    assert seeds_of(study)[BANK]["plate"] == ["run_10"]
    assert problems.keys() == {"run", "run_2"}
    assert all("a run of the same configuration and seed, later by name" in reason for reason in problems.values())


def test_runs_of_single_categories_make_up_one_column(tmp_path):
    write_run(tmp_path / "a", categories=("plate",))
    write_run(tmp_path / "b", categories=("bracket",))
    (study,), problems = compared(tmp_path)
    assert list(seeds_of(study).values()) == [{"plate": ["a"], "bracket": ["b"]}]
    assert problems == {}


def test_an_evaluation_is_no_further_seed_of_the_run_whose_model_it_loads(tmp_path):
    write_run(tmp_path / "project" / "trained")
    write_run(tmp_path / "again", seed=5, config=stored("id of trained"))
    (study,), problems = compared(tmp_path)
    assert list(seeds_of(study).values()) == [{"plate": ["project/trained"], "bracket": ["project/trained"]}]
    assert "evaluation of stored models" in problems["again"]


def test_an_evaluation_that_scores_otherwise_is_a_contender_of_its_own(tmp_path):
    write_run(tmp_path / "project" / "trained")
    write_run(tmp_path / "again", config=stored("id of trained", num_nn=3))
    (study,), problems = compared(tmp_path)
    assert [one.name.endswith("stored") for one in study.contenders] == [True, False]
    assert problems == {}


@pytest.mark.parametrize("run", [None, "id of another"])
def test_an_evaluation_of_other_models_is_a_contender_of_its_own(tmp_path, run):
    write_run(tmp_path / "project" / "trained")
    write_run(tmp_path / "again", config=stored(run, "project/trained/models"))
    (study,), problems = compared(tmp_path)
    assert {one.name for one in study.contenders} == {BANK, f"{BANK}, stored"}
    assert problems == {}


def test_an_evaluation_without_its_training_run_is_a_contender_of_its_own(tmp_path):
    for seed, run in ((0, "first"), (1, "first"), (2, "second")):
        write_run(tmp_path / f"evaluation{seed}", seed=seed, config=stored(run))
    (study,), problems = compared(tmp_path)
    runs = ["evaluation1", "evaluation2"]  # the models of `first` were evaluated twice: one origin
    assert seeds_of(study) == {f"{BANK}, stored": {"plate": runs, "bracket": runs}}
    assert problems == {"evaluation0": "an evaluation of the same stored models, later by name, is in the tables"}


def test_an_evaluation_of_models_of_different_configurations_is_no_column(tmp_path):
    write_run(tmp_path / "trained")
    method = {"name": "bank", "title": "Bank", "short_name": ""}
    write_run(tmp_path / "mixed", config={**stored("id of another"), "method": method})
    (study,), problems = compared(tmp_path)
    assert [one.name for one in study.contenders] == [BANK]
    assert problems == {"mixed": "an evaluation of stored models of different configurations"}


def test_models_of_unknown_runs_are_told_apart_by_their_folders(tmp_path):
    for number, folder in enumerate(("x", "y")):
        write_run(tmp_path / f"evaluation{number}", config=stored(None, folder))
    (study,), problems = compared(tmp_path)
    assert seeds_of(study)[f"{BANK}, stored"]["plate"] == ["evaluation0", "evaluation1"]
    assert problems == {}


def test_settings_by_category_are_one_contender_and_others_another(tmp_path):
    def by_category(epochs):
        return {**FLOW_RUN, "settings_by_category": {"plate": {"epochs": epochs}}}

    write_run(tmp_path / "a0", config=by_category(20))
    write_run(tmp_path / "a1", seed=1, config=by_category(20))
    write_run(tmp_path / "b", config=by_category(30))
    (study,), _ = compared(tmp_path)
    assert sorted(len(one.runs) for one in study.contenders) == [1, 2]
    names = {one.name for one in study.contenders}
    assert all(name.startswith(f"{FLOW}, by_category=") for name in names)
    assert len(names) == 2


def test_runs_on_other_data_are_another_study(tmp_path):
    write_run(tmp_path / "real", data="real", fingerprint="real")
    write_run(tmp_path / "drawn", data="drawn", fingerprint="drawn")
    studies, _ = compared(tmp_path)
    assert [study.title for study in studies] == ["mpdd drawn", "mpdd real"]
    assert [[run.name for one in study.contenders for run in one.runs] for study in studies] == [["drawn"], ["real"]]


def test_the_same_images_elsewhere_are_the_same_study(tmp_path):
    write_run(tmp_path / "here", data="/here")
    write_run(tmp_path / "there", data="/there", seed=1)
    (study,), _ = compared(tmp_path)
    assert study.title == "mpdd /here, mpdd /there"


def test_changed_test_images_get_a_row_of_their_own_and_no_average(tmp_path):
    write_run(tmp_path / "before")
    write_run(tmp_path / "after", seed=1, fingerprint="b2")
    (study,), _ = compared(tmp_path)
    (rows,) = seeds_of(study).values()
    assert rows == {
        "plate (test images mpdd_plate-b2)": ["after"],
        "bracket (test images mpdd_bracket-b2)": ["after"],
        "plate (test images mpdd_plate-a1)": ["before"],
        "bracket (test images mpdd_bracket-a1)": ["before"],
    }
    assert None not in study.lines


def test_the_average_needs_every_category(tmp_path):
    write_run(tmp_path / "whole")
    write_run(tmp_path / "part", categories=("plate",), config=FLOW_RUN)
    (study,), _ = compared(tmp_path)
    means = study.means(None, "instance_auroc")
    part, whole = (one.name for one in study.contenders)
    assert math.isnan(means[part].mean)
    per_row = [study.means(row, "instance_auroc")[whole].mean for row in study.rows]
    assert means[whole].mean == pytest.approx(sum(per_row) / 2)


def without_a_category(folder):
    lines = (folder / "results.csv").read_text().splitlines()
    (folder / "results.csv").write_text("\n".join(line for line in lines if "bracket" not in line))


def replaced(file, old, new):
    def damage(folder):
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new))

    return damage


def cut(file, size):
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:size])


# What happens to a run, and what must be said of it; the run is left out.
UNUSABLE = {
    "no results": (
        lambda folder: (folder / "results.csv").unlink(),
        "unfinished: no results.csv, missing mpdd_plate",
    ),
    "a category is missing": (without_a_category, "unfinished: missing mpdd_bracket"),
    "no config": (lambda folder: (folder / "config.yaml").unlink(), "unfinished: no config.yaml"),
    "cut config": (cut("config.yaml", 60), "config.yaml: "),
    "an earlier version": (replaced("config.yaml", "method:", "patch_core:"), "was it made by an earlier version?"),
    "test images unknown": (
        replaced("config.yaml", "fingerprint:", "print:"),
        "test_set mpdd_plate has no fingerprint",
    ),
    "cut results": (cut("results.csv", 700), "results.csv: damaged"),
    "results without mean": (replaced("results.csv", "Mean,", "Average,"), "no row Mean"),
    "results with text": (replaced("results.csv", ",0.5,", ",half,"), "results.csv: damaged"),
    "results beyond 1": (replaced("results.csv", ",0.5,", ",1.5,"), "is 1.5, expected 0 to 1"),
    "results without AUPRO": (replaced("results.csv", "aupro", "oprua"), "no column aupro"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_run_is_named_and_left_out(tmp_path, name):
    damage, said = UNUSABLE[name]
    write_run(tmp_path / "good")
    damage(write_run(tmp_path / "bad", seed=1))
    (tmp_path / "bad" / "run.log").touch()
    (study,), problems = compared(tmp_path)
    assert list(seeds_of(study).values()) == [{"plate": ["good"], "bracket": ["good"]}]
    assert said in problems.pop("bad")
    assert problems == {}


def places(content, above=()):
    """The keys that lead to every value of nested mappings and lists."""
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        yield (*above, key)
        if isinstance(value, dict | list):
            yield from places(value, (*above, key))


@pytest.mark.parametrize(
    "config", [{"settings_by_category": {"plate": {"epochs": 2}}}, stored("first")], ids=["trained", "stored"]
)
def test_no_value_in_the_configuration_stops_the_report(tmp_path, config):
    """Whatever stands where, the run is in a table or named."""
    path = write_run(tmp_path / "odd", config=config, scores=False) / "config.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    for *above, last in places(content):
        for value in (None, 1, "x", [], [[1]], {"a": 1}, {1: [2]}, datetime.date(2020, 2, 2)):
            odd = copy.deepcopy(content)
            inner = odd
            for key in above:
                inner = inner[key]
            inner[last] = value
            path.write_text(yaml.safe_dump(odd), encoding="utf-8")
            studies, problems = compared(tmp_path)
            assert bool(studies) != ("odd" in problems)


SCORES = "anomaly_scores/mpdd_plate.csv"
PAIRS = "anomaly_scores/mpdd_plate_pixels.npz"


def pairs_of(defective, images):
    pairs = RankedPairs(won=np.ones((defective, images)), positives=np.ones(defective), negatives=np.ones(images))
    return lambda folder: write_pixel_pairs(folder / PAIRS, pairs)


def with_first(column, value):
    """Write another value into a column of the first image."""

    def damage(folder):
        with (folder / SCORES).open(newline="") as file:
            rows = list(csv.DictReader(file))
        rows[0][column] = value
        write_csv(folder / SCORES, list(rows[0]), [row.values() for row in rows])

    return damage


DAMAGED = {
    "cut scores": (SCORES, cut(SCORES, 200), "line"),
    "missing image": (SCORES, lambda folder: drop_last_line(folder / SCORES), "19 images, expected 20"),
    "a line too long": (SCORES, replaced(SCORES, "plate/test/good/000.png,", "plate/test/good/000.png,,"), "line 2"),
    "infinite score": (SCORES, with_first("normalised_score", "inf"), "not finite"),
    "score of text": (SCORES, with_first("normalised_score", "high"), "normalised_score is 'high', expected a number"),
    "unknown label": (SCORES, with_first("label", "maybe"), "label is 'maybe', expected 0 or 1"),
    "other images": (SCORES, replaced(SCORES, "plate/test/good/000.png", "plate/test/good/100.png"), "other images"),
    "renamed column": (SCORES, replaced(SCORES, "normalised_score", "score"), "no column normalised_score"),
    "pairs of other images": (
        PAIRS,
        pairs_of(11, 20),
        "won is float32 of shape (11, 20), expected float32 of shape (12, 20)",
    ),
    "cut pairs": ("anomaly_scores/mpdd_plate_pixels.npz", cut("anomaly_scores/mpdd_plate_pixels.npz", 99), "damaged"),
    "cut defect types": ("defect_types.csv", cut("defect_types.csv", 120), "defect_types.csv: damaged"),
}


def drop_last_line(path):
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named_and_left_out_but_its_run_stays(tmp_path, name):
    file, damage, said = DAMAGED[name]
    write_run(tmp_path / "good")
    damage(write_run(tmp_path / "hurt", seed=1))
    (study,), problems = compared(tmp_path)
    assert list(seeds_of(study).values()) == [{"plate": ["good", "hurt"], "bracket": ["good", "hurt"]}]
    assert said in problems.pop(f"hurt/{file}")
    assert problems == {}
    run = next(run for run in study.contenders[0].runs if run.name == "hurt")
    kept = {"csv": run.scores, "npz": run.pixel_pairs}.get(file.rpartition(".")[2]) if "/" in file else run.defect_types
    assert "mpdd_plate" not in kept


def test_a_run_may_be_the_folder_itself(tmp_path):
    run = write_run(tmp_path / "alone")
    (study,), _ = compared(run)
    assert [one.name for one in study.contenders[0].runs] == ["alone"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(PatchCoreError, match="no folder"):
        find_runs(tmp_path / "nowhere")


def test_files_are_utf_8_whatever_the_system_prefers(tmp_path):
    """Python itself points out every file that is opened in the encoding of the system."""
    lines = (
        "import pathlib, sys, warnings",
        "from hand_made import write_run",
        "from patchcore.comparison import report, write",
        "from patchcore.results.config_file import read_config",
        "from patchcore.results.run_folder import RunFolder",
        "from patchcore.results.tables import read_defect_types",
        "warnings.simplefilter('error', EncodingWarning)",
        "root = pathlib.Path(sys.argv[1])",
        "run = RunFolder(write_run(root / 'results' / 'Prüfung', categories=('größe',)))",
        "write.write_report(report.make_report(root / 'results', None), root / 'report')",
        "assert read_config(run.config)['dataset']['categories'] == ['größe']",
        "assert list(read_defect_types(run.defect_types)) == ['mpdd_größe']",
    )
    command = [sys.executable, "-X", "warn_default_encoding", "-c", "\n".join(lines), str(tmp_path)]
    paths = os.pathsep.join((str(Path(__file__).parent), str(Path(run_folder.__file__).parents[2])))
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
