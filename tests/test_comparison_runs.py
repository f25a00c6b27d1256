"""Finding runs, sorting them into columns and rows, and naming what is left out."""

import copy
import csv
import datetime
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import yaml

from hand_made import FASTFLOW, FASTFLOW_RUN, PATCH_CORE, stored, write_run
from patchcore.comparison.runs import find_runs
from patchcore.comparison.study import studies_of
from patchcore.metrics import RankedPairs
from patchcore.results import run_folder
from patchcore.results.run_folder import read_pixel_pairs, write_pixel_pairs, write_rows
from patchcore.types import PatchCoreError


def compared(root):
    """The studies below a folder, and name -> reason of what is in none."""
    runs, problems = find_runs(root)
    studies = studies_of(runs, problems)
    return studies, {problem.name: problem.reason for problem in problems}


def seeds_of(study):
    """Method name -> label of a row -> names of the runs behind it."""
    return {
        method.name: {study.labels[row]: [run.name for run in method.runs_of(row)] for row in study.rows}
        for method in study.methods
    }


def test_seeds_are_pooled_and_methods_named_by_their_configuration(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / "project" / f"ten{seed}", seed=seed)
        write_run(tmp_path / "other" / "project" / f"flow{seed}", seed=seed, config=FASTFLOW_RUN)
    write_run(tmp_path / "one", config={"sampler": {"name": "approx_greedy_coreset", "fraction": 0.01}})
    (study,), problems = compared(tmp_path)
    assert problems == {}
    assert seeds_of(study) == {
        "PatchCore efficientnet_lite0, 224 px, 1 %": {"plate": ["one"], "bracket": ["one"]},
        "FastFlow resnet18, 224 px": {
            label: ["other/project/flow0", "other/project/flow1"] for label in ("plate", "bracket")
        },
        "PatchCore efficientnet_lite0, 224 px, 10 %": {
            label: ["project/ten0", "project/ten1"] for label in ("plate", "bracket")
        },
    }


def test_names_say_what_differs_where_the_short_ones_agree(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", config={"patch_core": {**PATCH_CORE, "num_nn": 3}})
    write_run(tmp_path / "c", config={"patch_core": {**PATCH_CORE, "backbones": ["x", "x", "y"]}})
    write_run(tmp_path / "d", config={"sampler": {"name": "identity", "fraction": 1.0}})
    (study,), _ = compared(tmp_path)
    assert [method.name for method in study.methods] == [
        "PatchCore efficientnet_lite0, 224 px, 10 %, num_nn=1",
        "PatchCore efficientnet_lite0, 224 px, 10 %, num_nn=3",
        "PatchCore 2 × x + y, 224 px, 10 %",
        "PatchCore efficientnet_lite0, 224 px, all patches",
    ]


def test_where_a_method_computes_is_no_setting_of_its_own(tmp_path):
    write_run(tmp_path / "cpu")
    write_run(tmp_path / "gpu", seed=1, config={"patch_core": {**PATCH_CORE, "faiss_on_gpu": True}})
    (study,), _ = compared(tmp_path)
    assert len(study.methods) == 1


def test_a_repeated_seed_counts_once_and_the_later_run_stands(tmp_path):
    for name in ("run", "run_2", "run_10"):
        write_run(tmp_path / name)
    (study,), problems = compared(tmp_path)
    assert seeds_of(study)["PatchCore efficientnet_lite0, 224 px, 10 %"]["plate"] == ["run_10"]
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
    write_run(tmp_path / "again", seed=5, config=stored("wherever/project/trained/models"))
    (study,), problems = compared(tmp_path)
    assert list(seeds_of(study).values()) == [{"plate": ["project/trained"], "bracket": ["project/trained"]}]
    assert "evaluation of stored models" in problems["again"]


def test_an_evaluation_that_scores_otherwise_is_a_method_of_its_own(tmp_path):
    write_run(tmp_path / "project" / "trained")
    config = stored("wherever/project/trained/models")
    config["patch_core_loader"]["num_nn"] = 3
    write_run(tmp_path / "again", config=config)
    (study,), problems = compared(tmp_path)
    assert [method.name.endswith("stored") for method in study.methods] == [True, False]
    assert problems == {}


def test_an_evaluation_without_its_training_run_is_a_column_of_its_own(tmp_path):
    for seed, models in ((0, "first"), (1, "first"), (2, "second")):
        write_run(tmp_path / f"evaluation{seed}", seed=seed, config=stored(models))
    (study,), problems = compared(tmp_path)
    runs = ["evaluation1", "evaluation2"]  # the models of `first` were evaluated twice: one origin
    assert seeds_of(study) == {"PatchCore efficientnet_lite0, 224 px, 10 %, stored": {"plate": runs, "bracket": runs}}
    assert problems.keys() == {"evaluation0"}


def test_settings_by_category_are_one_method_and_others_another(tmp_path):
    def by_category(epochs):
        flow = {**FASTFLOW, "class_specific": True}
        return {**FASTFLOW_RUN, "fastflow": flow, "fastflow_by_category": {"plate": {"epochs": epochs}}}

    write_run(tmp_path / "a0", config=by_category(20))
    write_run(tmp_path / "a1", seed=1, config=by_category(20))
    write_run(tmp_path / "b", config=by_category(30))
    (study,), _ = compared(tmp_path)
    assert sorted(len(method.runs) for method in study.methods) == [1, 2]
    names = [method.name for method in study.methods]
    assert all(name.startswith("FastFlow resnet18, 224 px, class-specific, by_category=") for name in names)
    assert len(set(names)) == 2


def test_runs_on_other_data_are_another_study(tmp_path):
    write_run(tmp_path / "real", data="real", fingerprint="real")
    write_run(tmp_path / "drawn", data="drawn", fingerprint="drawn")
    studies, _ = compared(tmp_path)
    assert [study.title for study in studies] == ["mpdd drawn", "mpdd real"]
    assert [[run.name for method in study.methods for run in method.runs] for study in studies] == [["drawn"], ["real"]]


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
    write_run(tmp_path / "part", categories=("plate",), config=FASTFLOW_RUN)
    (study,), _ = compared(tmp_path)
    figures = study.figures(None, "instance_auroc")
    whole = study.methods[1].name
    assert figures[study.methods[0].name].mean != figures[study.methods[0].name].mean  # nan
    per_row = [study.figures(row, "instance_auroc")[whole].mean for row in study.rows]
    assert figures[whole].mean == pytest.approx(sum(per_row) / 2)


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
    "config is no YAML": (replaced("config.yaml", "command: by hand", "command: ["), "config.yaml: damaged"),
    "other method": (replaced("config.yaml", "patch_core:", "unheard_of:"), "no known method"),
    "setting is missing": (replaced("config.yaml", "imagesize:", "image:"), "dataset has no imagesize"),
    "test images unknown": (replaced("config.yaml", "fingerprint:", "print:"), "what the test images were"),
    "backbone is missing": (replaced("config.yaml", "backbones:", "bones:"), "PatchCore has no backbone"),
    "section of text": (
        replaced("config.yaml", "environment:", "environment: x\nwas:"),
        "environment has no processor",
    ),
    "seed of a list": (replaced("config.yaml", "seed: 1", "seed: [1]"), "run seed is [1]"),
    "no categories": (replaced("config.yaml", "  categories:\n  - plate\n  - bracket\n", "  categories:\n"), "is None"),
    "number for a category": (replaced("config.yaml", "- plate", "- 7"), "dataset categories are [7,"),
    "test set of a list": (replaced("config.yaml", "test_set:", "test_set: [1]\nwas:"), "test_set is [1]"),
    "method without settings": (replaced("config.yaml", "patch_core:", "patch_core:\nwas:"), "patch_core is None"),
    "fingerprint of a list": (replaced("config.yaml", "fingerprint: mpdd_plate-a1", "fingerprint: [1]"), "test images"),
    "backbone of a number": (replaced("config.yaml", "- efficientnet_lite0", "- 7"), "PatchCore has no backbone"),
    "fraction of text": (replaced("config.yaml", "fraction: 0.1", "fraction: few"), "the sampler is {"),
    "a date": (replaced("config.yaml", "num_nn: 1", "num_nn: 2020-02-02"), "config.yaml: damaged"),
    "cut results": (cut("results.csv", 700), "results.csv: damaged"),
    "results without mean": (replaced("results.csv", "Mean,", "Average,"), "no row Mean"),
    "results with text": (replaced("results.csv", ",0.5,", ",half,"), "results.csv: damaged results"),
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


def test_an_evaluation_with_a_damaged_model_is_named(tmp_path):
    write_run(tmp_path / "good")
    write_run(tmp_path / "bad", config=stored("elsewhere"))
    path = tmp_path / "bad" / "config.yaml"
    path.write_text(path.read_text().replace("folder: elsewhere/plate", "place: elsewhere/plate"))
    _, problems = compared(tmp_path)
    assert "damaged: the model of plate is" in problems["bad"]


def test_an_evaluation_without_models_is_named(tmp_path):
    write_run(tmp_path / "bad", config={**stored("elsewhere"), "models": None})
    studies, problems = compared(tmp_path)
    assert studies == []
    assert "patch_core_loader without models" in problems["bad"]


def places(content, above=()):
    """The keys that lead to every value of nested mappings and lists."""
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        yield (*above, key)
        if isinstance(value, dict | list):
            yield from places(value, (*above, key))


@pytest.mark.parametrize("config", [{}, FASTFLOW_RUN, stored("elsewhere")], ids=["PatchCore", "FastFlow", "stored"])
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
        write_rows(folder / SCORES, rows)

    return damage


DAMAGED = {
    "cut scores": (SCORES, cut(SCORES, 300), "line"),
    "missing image": (SCORES, lambda folder: drop_last_line(folder / SCORES), "19 images, expected 20"),
    "a line too long": (SCORES, replaced(SCORES, "plate/test/good/000.png,", "plate/test/good/000.png,,"), "line 2"),
    "infinite score": (SCORES, with_first("normalised_score", "inf"), "not finite"),
    "score of text": (SCORES, with_first("normalised_score", "high"), "normalised_score is 'high', expected a number"),
    "unknown label": (SCORES, with_first("label", "maybe"), "label is 'maybe', expected 0 or 1"),
    "other images": (SCORES, replaced(SCORES, "plate/test/good/000.png", "plate/test/good/100.png"), "other images"),
    "renamed column": (SCORES, replaced(SCORES, "normalised_score", "score"), "no column normalised_score"),
    "pairs of other images": (PAIRS, pairs_of(11, 20), "pairs of (11, 20) images, expected (12, 20)"),
    "cut pairs": ("anomaly_scores/mpdd_plate_pixels.npz", cut("anomaly_scores/mpdd_plate_pixels.npz", 99), "damaged"),
    "cut defect types": ("defect_types.csv", cut("defect_types.csv", 120), "defect_types.csv: damaged"),
}


def drop_last_line(path):
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))


def test_no_damage_to_the_pixel_pairs_stops_the_report(tmp_path):
    """Whatever byte is hit, the pairs are read as they were or named as damaged."""
    path = write_run(tmp_path / "run") / PAIRS
    content = path.read_bytes()
    intact = 0
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
        with suppress(PatchCoreError):
            read_pixel_pairs(path)
            intact += 1
    assert intact < len(content) / 2


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named_and_left_out_but_its_run_stays(tmp_path, name):
    file, damage, said = DAMAGED[name]
    write_run(tmp_path / "good")
    damage(write_run(tmp_path / "hurt", seed=1))
    (study,), problems = compared(tmp_path)
    assert list(seeds_of(study).values()) == [{"plate": ["good", "hurt"], "bracket": ["good", "hurt"]}]
    assert said in problems.pop(f"hurt/{file}")
    assert problems == {}
    run = next(run for run in study.methods[0].runs if run.name == "hurt")
    kept = {"csv": run.scores, "npz": run.pixel_pairs}.get(file.rpartition(".")[2]) if "/" in file else run.defect_types
    assert "mpdd_plate" not in kept


def test_models_of_different_configurations_are_no_method(tmp_path):
    config = stored("models")
    config["models"]["plate"]["config"] = {**PATCH_CORE, "num_nn": 7}
    write_run(tmp_path / "mixed", config=config)
    studies, problems = compared(tmp_path)
    assert studies == []
    assert "different configurations" in problems["mixed"]


def test_a_run_may_be_the_folder_itself(tmp_path):
    run = write_run(tmp_path / "alone")
    (study,), _ = compared(run)
    assert [one.name for one in study.methods[0].runs] == ["alone"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(PatchCoreError, match="no folder"):
        find_runs(tmp_path / "nowhere")


def test_files_are_utf_8_whatever_the_system_prefers(tmp_path):
    """Python itself points out every file that is opened in the encoding of the system."""
    lines = (
        "import pathlib, sys, warnings",
        "from hand_made import write_run",
        "from patchcore.comparison import report, write",
        "from patchcore.results.run_folder import read_rows, read_yaml",
        "warnings.simplefilter('error', EncodingWarning)",
        "root = pathlib.Path(sys.argv[1])",
        "run = write_run(root / 'results' / 'Prüfung', categories=('größe',))",
        "write.write_report(report.make_report(root / 'results', None), root / 'report')",
        "assert read_yaml(run / 'config.yaml')['dataset']['categories'] == ['größe']",
        "assert read_rows(run / 'defect_types.csv')[0]['Row Names'] == 'mpdd_größe'",
    )
    command = [sys.executable, "-X", "warn_default_encoding", "-c", "\n".join(lines), str(tmp_path)]
    paths = os.pathsep.join((str(Path(__file__).parent), str(Path(run_folder.__file__).parents[2])))
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
