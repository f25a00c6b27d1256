"""The report as its script writes it: files, numbers, references, errors."""

import csv
import json
import math
import shutil
from pathlib import Path
from statistics import mean, stdev

import pytest

from commands import LITE0, load_and_evaluate_patchcore, patchcore_args, run_fastflow, run_patchcore
from hand_made import BANK, FLOW, FLOW_RUN, write_run
from patchcore.calibration import clopper_pearson
from patchcore.cli.compare import compare_results
from patchcore.results.columns import METRICS
from patchcore.results.tables import read_defect_types, read_results

PUBLISHED = Path(__file__).resolve().parents[1] / "configs" / "published_mpdd.json"
TABLES = {"runs", "recommendations", "costs", "defect_types", "thresholds", "further_metrics", "differences"} | {
    *list(METRICS)[:3]
}


@pytest.fixture
def compare(shell, tmp_path):
    """Compare what lies in `results`; returns how it ended and a reader of the tables."""

    def start(*options):
        ended = shell(compare_results, tmp_path / "results", "--output", tmp_path / "report", *options)

        def table(name):
            with (tmp_path / "report" / "tables" / f"{name}.csv").open(newline="") as file:
                return list(csv.DictReader(file))

        return ended, table

    return start


@pytest.fixture
def two_methods(tmp_path):
    """Two methods over two seeds; returns the folder of results."""
    for seed in (0, 1):
        write_run(tmp_path / "results" / f"ten{seed}", seed=seed)
        write_run(tmp_path / "results" / f"flow{seed}", seed=seed, quality=1, config=FLOW_RUN)
    return tmp_path / "results"


def test_the_report_has_its_files(two_methods, compare, tmp_path):
    ended, _ = compare()
    assert ended.code == 0, ended.err
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"report.md", "report.html", "tables"}
    assert {path.stem for path in (tmp_path / "report" / "tables").iterdir()} == TABLES
    assert str(tmp_path / "report" / "report.html") in ended.out
    assert "image AUROC" in ended.out
    assert "best classification" in ended.out


def test_every_number_comes_from_the_files_that_the_table_names(two_methods, compare):
    _, table = compare()
    for metric in list(METRICS)[:3]:
        rows = table(metric)
        assert len(rows) == 2 * 3  # methods times categories and average
        for row in rows:
            files = [read_results(two_methods / source) for source in row["sources"].split("; ")]
            names = ["Mean"] if row["category"] == "Average" else [f"mpdd_{row['category']}"]
            values = [file[name][metric] for file in files for name in names]
            assert float(row["mean"]) == pytest.approx(mean(values), abs=1e-12)
            assert float(row["std"]) == pytest.approx(stdev(values), abs=1e-12)
            assert int(row["seeds"]) == 2


def test_costs_defect_types_and_thresholds_come_from_the_runs(two_methods, compare):
    _, table = compare()
    costs = {row["method"]: row for row in table("costs")}
    assert float(costs[FLOW]["fit_seconds"]) == 1.0
    assert float(costs[FLOW]["search_ms_per_image"]) == 4.0
    rust = [
        read_defect_types(two_methods / run / "defect_types.csv")["mpdd_plate"]["rust"]["instance_auroc"]
        for run in ("ten0", "ten1")
    ]
    (found,) = [
        row
        for row in table("defect_types")
        if (row["category"], row["defect_type"], row["method"]) == ("plate", "rust", BANK)
    ]
    assert float(found["instance_auroc"]) == pytest.approx(mean(rust))
    assert found["sources"] == "ten0/defect_types.csv; ten1/defect_types.csv"
    for row in table("thresholds"):
        numbers = read_results(two_methods / row["sources"])[f"mpdd_{row['category']}"]
        assert float(row["defects_caught"]) == numbers["defects_caught"]
        count, of = int(row["caught"].split()[0]), int(row["caught"].split()[2].rstrip(","))
        low, high = clopper_pearson(count, of)
        assert (of, count / of) == (numbers["defective_images"], numbers["defects_caught"])
        assert row["caught"].endswith(f"[{low:.0%} to {high:.0%}]".replace("%", " %"))
    seeds = [row["seed"] for row in table("thresholds") if (row["category"], row["method"]) == ("plate", BANK)]
    assert seeds == ["0", "1"]


def test_a_threshold_of_an_older_run_states_no_rate_and_is_left_out(tmp_path, compare):
    write_run(tmp_path / "results" / "older", costs={"stated_false_rejects": float("nan")})
    ended, _ = compare()
    assert ended.code == 0, ended.err
    assert "thresholds" not in {path.stem for path in (tmp_path / "report" / "tables").iterdir()}
    assert "no threshold: the model was not calibrated" in (tmp_path / "report" / "report.html").read_text()


def test_markdown_terminal_and_page_show_the_same_numbers(two_methods, compare, tmp_path):
    ended, table = compare()
    markdown, page = ((tmp_path / "report" / name).read_text() for name in ("report.md", "report.html"))
    for row in table("instance_auroc"):
        shown = f"{float(row['mean']):.3f} ± {float(row['std']):.3f}"
        assert shown in ended.out
        assert shown in markdown
        assert shown in page


def test_the_same_runs_give_the_same_report(two_methods, compare, tmp_path):
    compare()
    before = {path: path.read_bytes() for path in (tmp_path / "report").rglob("*.*")}
    compare()
    assert {path: path.read_bytes() for path in (tmp_path / "report").rglob("*.*")} == before


def test_studies_may_have_other_stages(tmp_path, compare):
    write_run(tmp_path / "results" / "a", costs={"flow_ms_per_image": 1.5})
    write_run(tmp_path / "results" / "b", data="elsewhere", fingerprint="b2", costs={"embedding_ms_per_image": 2.5})
    ended, table = compare()
    assert ended.code == 0, ended.err
    found = [(row["test_set"], row["flow_ms_per_image"], row["embedding_ms_per_image"]) for row in table("costs")]
    assert found == [("mpdd data", "1.5", ""), ("mpdd elsewhere", "", "2.5")]


def test_tables_of_others_stay(two_methods, compare, tmp_path):
    (tmp_path / "report" / "tables").mkdir(parents=True)
    (tmp_path / "report" / "tables" / "mine.csv").write_text("mine")
    assert compare()[0].code == 0
    assert (tmp_path / "report" / "tables" / "mine.csv").read_text() == "mine"


def test_one_training_each_is_said(two_methods, compare, tmp_path):
    said = "one training of each category, or of some; what another seed changes is not in their intervals."
    compare()
    assert said not in (tmp_path / "report" / "report.md").read_text()
    shutil.rmtree(tmp_path / "results" / "flow1")
    compare()
    assert f"{FLOW}: {said}" in (tmp_path / "report" / "report.md").read_text()
    write_run(two_methods / "flow1", seed=1, categories=("plate",), config=FLOW_RUN)
    compare()
    assert f"{FLOW}: {said}" in (tmp_path / "report" / "report.md").read_text()


def test_tables_of_an_earlier_report_do_not_stay(two_methods, compare, tmp_path):
    compare()
    for run in two_methods.iterdir():
        (run / "defect_types.csv").unlink()
    compare()
    assert not (tmp_path / "report" / "tables" / "defect_types.csv").exists()


def test_a_table_that_cannot_be_removed_is_one_line_and_the_new_ones_are_there(two_methods, compare, tmp_path):
    in_the_way = tmp_path / "report" / "tables" / "published.csv"
    in_the_way.mkdir(parents=True)
    ended, table = compare()
    assert ended.code == 1
    assert ended.err.startswith(f"error: cannot remove {in_the_way} of an earlier report: ")
    assert len(ended.err.splitlines()) == 1
    assert table("differences")
    assert (tmp_path / "report" / "report.html").exists()


def reference(path, **methods):
    path.write_text(json.dumps({"source": "a paper", "methods": methods}))
    return path


def test_published_values_stand_beside_the_runs_of_their_group(two_methods, compare, tmp_path):
    file = reference(
        tmp_path / "published.json",
        Printed={"log_group": "ten?", "instance_auroc": {"plate": 0.9, "bracket": 0.8}},
        Other={"log_group": "elsewhere", "instance_auroc": {"plate": 0.7}},
    )
    ended, table = compare("--reference", file)
    assert ended.code == 0, ended.err
    found = {row["category"]: row for row in table("instance_auroc") if row["method"] == BANK}
    for category, printed in (("plate", 0.9), ("bracket", 0.8), ("Average", 0.85)):
        assert float(found[category]["published"]) == pytest.approx(printed)
        gap = float(found[category]["mean"]) - printed
        assert float(found[category]["difference_to_published"]) == pytest.approx(gap)
        assert f"published {printed:.3f}, {gap:+.3f}" in ended.out
    assert {row["published"] for row in table("instance_auroc") if row["method"] == FLOW} == {"nan"}
    assert {(row["method"], row["category"], row["published"]) for row in table("published")} == {
        ("Other", "plate", "0.7"),
        ("Other", "bracket", "nan"),
        ("Other", "Average", "nan"),
    }


def test_the_studys_numbers_ship_with_the_tool(compare, tmp_path):
    group = "MPDD_IM224_WR50_L2-3_P01_D1024-1024_PS-3_AN-1_S0"
    write_run(tmp_path / "results" / f"{group}_0", categories=("metal_plate", "bracket_white"))
    config = tmp_path / "results" / f"{group}_0" / "config.yaml"
    config.write_text(config.read_text().replace(f"{group}_0", group))  # the folder of a second run of the group
    ended, table = compare("--reference", PUBLISHED)
    assert ended.code == 0, ended.err
    printed = {row["category"]: float(row["published"]) for row in table("full_pixel_auroc")}
    assert printed == {"metal_plate": 0.986, "bracket_white": 0.998, "Average": pytest.approx(0.992)}
    assert len({row["method"] for row in table("published")}) == 4


WRONG_REFERENCES = {
    "no file": None,
    "no JSON": "{",
    "deep": "[" * 100_000,
    "no methods": '{"source": "x"}',
    "no group": '{"methods": {"A": {"instance_auroc": {"plate": 0.5}}}}',
    "percent": '{"methods": {"A": {"log_group": "g", "instance_auroc": {"plate": 98.6}}}}',
    "no categories": '{"methods": {"A": {"log_group": "g", "instance_auroc": 0.5}}}',
}


@pytest.mark.parametrize("name", WRONG_REFERENCES)
def test_a_wrong_reference_is_one_line_and_writes_nothing(two_methods, compare, tmp_path, name):
    if WRONG_REFERENCES[name] is not None:
        (tmp_path / "published.json").write_text(WRONG_REFERENCES[name])
    ended, _ = compare("--reference", tmp_path / "published.json")
    assert ended.code == 1
    assert ended.err.startswith(f"error: {tmp_path / 'published.json'}: ")
    assert len(ended.err.splitlines()) == 1
    assert not (tmp_path / "report").exists()


def test_what_is_left_out_is_said_everywhere(two_methods, compare, tmp_path):
    write_run(two_methods / "cut", seed=2)
    (two_methods / "cut" / "results.csv").unlink()
    ended, _ = compare()
    assert ended.code == 0
    for text in (ended.out, *((tmp_path / "report" / name).read_text() for name in ("report.md", "report.html"))):
        assert "unfinished: no results.csv, missing mpdd_plate, mpdd_bracket" in text


def test_without_scores_there_are_tables_but_no_best(tmp_path, compare):
    write_run(tmp_path / "results" / "a", quality=9, scores=False)
    write_run(tmp_path / "results" / "b", quality=0, scores=False, config=FLOW_RUN)
    ended, table = compare()
    assert ended.code == 0, ended.err
    assert {row["verdict"] for row in table("instance_auroc")} == {"unclear"}
    assert not (tmp_path / "report" / "tables" / "differences.csv").exists()
    assert "--save_anomaly_scores" in ended.out


def test_one_method_is_compared_with_nothing(tmp_path, compare):
    write_run(tmp_path / "results" / "a", categories=("plate",))
    ended, table = compare()
    assert ended.code == 0, ended.err
    assert [row["verdict"] for row in table("instance_auroc")] == ["alone"]
    assert "★" not in ended.out


def test_undefined_metrics_are_dashes(tmp_path, compare):
    write_run(tmp_path / "results" / "a", costs={"full_pixel_auroc": math.nan})
    ended, table = compare()
    assert ended.code == 0, ended.err
    assert {row["mean"] for row in table("full_pixel_auroc")} == {"nan"}
    assert "–" in ended.out


def test_a_folder_without_runs_and_a_missing_one_are_errors(tmp_path, compare):
    ended, _ = compare()
    assert (ended.code, ended.err.splitlines()) == (
        1,
        [f"error: no folder {tmp_path / 'results'}: expected results there"],
    )
    (tmp_path / "results").mkdir()
    ended, _ = compare()
    assert (ended.code, ended.err.splitlines()) == (1, [f"error: no finished run in {tmp_path / 'results'}"])


def test_usage_errors_and_help_are_those_of_the_other_scripts(shell):
    ended = shell(compare_results, "--outptu", "x")
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
    assert "--output" in shell(compare_results, "--help").out


def test_debug_shows_the_traceback(shell, tmp_path):
    assert "Traceback" in shell(compare_results, tmp_path / "nowhere", "--debug").err


@pytest.mark.usefixtures("one_thread")
def test_what_real_runs_leave_is_compared(shell, parts, tmp_path, compare):
    """Both methods, an evaluation that repeats a training, and one that scores otherwise."""
    keep = ("--save_segmentation_images", "--save_anomaly_scores", "--log_group")
    size = ("--resize", 96, "--imagesize", 64, "--train_val_split", 0.5, "-d", "metal_plate")
    network = (*LITE0, "--weights", "random")
    run = ("--save_patchcore_model", *keep, "bank")
    train = patchcore_args(tmp_path / "results", parts, run=run, patch_core=network, dataset=size)
    flow = ("fastflow", "-b", "efficientnet_lite0", "--weights", "random", "--epochs", 1, "--steps", 1)
    commands = [
        (run_patchcore, *train),
        (run_fastflow, *keep, "flow", tmp_path / "results", *flow, "dataset", *size, "mpdd", parts),
    ]
    model = tmp_path / "results" / "project" / "bank" / "models" / "mpdd_metal_plate"
    for group, options in (("again", ()), ("otherwise", ("--anomaly_scorer_num_nn", 2))):
        loader = ("patch_core_loader", *options, "-p", model, "dataset", "-d", "metal_plate", "mpdd", parts)
        commands.append((load_and_evaluate_patchcore, *keep, group, tmp_path / "results", *loader))
    for command in commands:
        ended = shell(*command)
        assert ended.code == 0, ended.err
    ended, table = compare()
    assert ended.code == 0, ended.err
    assert {row["run"]: row["kept"] for row in table("runs")} == dict.fromkeys(
        ("project/bank", "project/flow", "project/otherwise"), "scores, pictures"
    )
    said = "project/again: an evaluation of stored models; the run that trained them is in the tables"
    assert ended.out.partition("Not in the tables:\n")[2].strip().splitlines()[0] == said
    stored = {row["run"] for row in table("runs") if row["method"].endswith(", stored")}
    assert stored == {"project/otherwise"}
    assert {row["method"].split()[0] for row in table("runs")} == {"PatchCore", "FastFlow"}
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count('class="case"') == 3 + 4  # of the three good and the more than four defective images
    assert page.count("<img") == page.count('class="case"') * (2 + 3)
