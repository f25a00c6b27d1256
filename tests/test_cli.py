"""The command line as a user meets it: help, errors in one line, and every option having its effect."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from commands import LITE0, load_and_evaluate_fastflow, patchcore_args, run_patchcore
from patchcore import __version__
from patchcore.cli.compare import compare_results
from patchcore.cli.predict import predict
from patchcore.cli.synthetic import make_synthetic_mpdd
from patchcore.results.tables import read_results

pytestmark = pytest.mark.usefixtures("one_thread")
BIN = Path(__file__).resolve().parents[1] / "bin"
RANDOM = (*LITE0, "--weights", "random")
SMALL = ("--resize", "96", "--imagesize", "96")
PLATE = (*SMALL, "-d", "metal_plate")


@pytest.fixture
def run(shell, parts, tmp_path):
    """Run PatchCore with random weights on the small synthetic set, into tmp_path; returns the end and the folder."""

    def start(*, data=parts, **stages):
        stages = {"patch_core": RANDOM, "dataset": PLATE, **stages}
        ended = shell(run_patchcore, *patchcore_args(tmp_path, data, **stages))
        folders = sorted((tmp_path / "project").glob("*"), key=lambda path: path.stat().st_mtime_ns)
        return ended, folders[-1] if folders else None

    return start


def scores_of(folder, row="mpdd_metal_plate"):
    with (folder / "anomaly_scores" / f"{row}.csv").open() as file:
        return list(csv.DictReader(file))


def raw_scores_of(folder):
    return np.array([float(entry["raw_score"]) for entry in scores_of(folder)])


def row_of(folder):
    return read_results(folder / "results.csv")["mpdd_metal_plate"]


@pytest.mark.parametrize("script", sorted(path.name for path in BIN.glob("*.py")))
def test_help_answers_in_half_a_second(script):
    command = [sys.executable, BIN / script, "--help"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    seconds = []
    for _ in range(3):  # processor time, and the least counts: a busy machine is not the script's fault
        begin = processor_seconds()
        ended = subprocess.run(command, capture_output=True, text=True, env=environment)
        seconds.append(processor_seconds() - begin)
        assert ended.returncode == 0
        assert "Usage:" in ended.stdout
    assert min(seconds) < 0.5


@pytest.mark.parametrize(
    "command", [run_patchcore, load_and_evaluate_fastflow, compare_results, make_synthetic_mpdd, predict]
)
def test_every_command_tells_its_version(shell, command):
    assert shell(command, "--version").out == f"patchcore, version {__version__}\n"


def processor_seconds():
    """What the processes took that this one started and waited for."""
    spent = os.times()
    return spent.children_user + spent.children_system


@pytest.mark.parametrize("arguments", [("--help",), ("patch_core", "--help"), ("dataset", "--help")])
def test_help_imports_neither_torch_nor_timm(arguments):
    command = [sys.executable, "-X", "importtime", BIN / "run_patchcore.py", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert "click" in imported
    assert not {"torch", "timm", "faiss"} & imported


def test_a_run_leaves_what_the_readme_names(run):
    ended, folder = run(
        run=("--save_patchcore_model", "--save_segmentation_images", "--save_anomaly_scores", "--log_group", "all"),
        dataset=(*SMALL, "-d", "metal_plate", "-d", "bracket_white"),
    )
    assert ended.code == 0, ended.err
    assert folder.name == "all"
    assert {path.name for path in folder.iterdir()} == {
        "results.csv",
        "defect_types.csv",
        "models",
        "segmentation_images",
        "anomaly_scores",
        "config.yaml",
        "run.log",
    }
    header, *rows = (folder / "results.csv").read_text().splitlines()
    assert header.startswith("Row Names,instance_auroc,full_pixel_auroc,anomaly_pixel_auroc,")
    assert [row.split(",")[0] for row in rows] == ["mpdd_metal_plate", "mpdd_bracket_white", "Mean"]
    model = folder / "models" / "mpdd_metal_plate"
    files = {"nnscorer_search_index.faiss", "origins.npy", "training_images.zip", "model.json"}
    assert {path.name for path in model.iterdir()} == files
    pictures = [path.name for path in (folder / "segmentation_images" / "mpdd_metal_plate").iterdir()]
    entries = scores_of(folder)
    expected = {
        f"metal_plate_test_{entry['defect_type']}_{Path(entry['path']).stem}"
        f"_score{float(entry['normalised_score']):.3f}.png"
        for entry in entries
    }
    assert set(pictures) == expected
    assert len(entries) == 3 + 4 * 2
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    assert settings["settings"]["sampler"] == "approx_greedy_coreset"
    assert settings["settings"]["fraction"] == 0.1
    assert settings["environment"]["torch"]
    assert "trained in" in (folder / "run.log").read_text()
    assert "mpdd_metal_plate" in ended.out
    assert str(folder / "segmentation_images") in ended.out


def test_every_kind_of_defect_has_its_row(run):
    """A kind's image AUROC is that of its images against all good ones, which the scores give independently."""
    from sklearn.metrics import roc_auc_score

    _, folder = run(run=("--save_anomaly_scores",), dataset=(*PLATE, "--train_val_split", "0.5"))
    entries = scores_of(folder)
    with (folder / "defect_types.csv").open() as file:
        rows = {row["defect_type"]: row for row in csv.DictReader(file)}
    assert set(rows) == {entry["defect_type"] for entry in entries} - {"good"}
    for defect, row in rows.items():
        compared = [entry for entry in entries if entry["defect_type"] in ("good", defect)]
        expected = roc_auc_score([int(e["label"]) for e in compared], [float(e["raw_score"]) for e in compared])
        assert row["Row Names"] == "mpdd_metal_plate"
        assert int(row["images"]) == 2
        assert float(row["instance_auroc"]) == pytest.approx(expected)
        caught = [entry["rejected"] == "1" for entry in entries if entry["defect_type"] == defect]
        assert float(row["defects_caught"]) == np.mean(caught)


def test_the_test_set_is_told_by_names_and_sizes(run, own_parts):
    def fingerprint():
        return yaml.safe_load((run(data=own_parts)[1] / "config.yaml").read_text())["test_set"]["mpdd_metal_plate"]

    before = fingerprint()
    assert before["images"] == 11
    assert fingerprint() == before
    with (own_parts / "metal_plate" / "test" / "good" / "000.png").open("ab") as file:
        file.write(b"\0")
    assert fingerprint()["fingerprint"] != before["fingerprint"]


def test_nothing_more_is_saved_than_asked_for(run):
    _, folder = run()
    assert {path.name for path in folder.iterdir()} == {"results.csv", "defect_types.csv", "config.yaml", "run.log"}


def test_without_cuda_one_line_says_so(run, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    ended, _ = run(run=("--gpu", "0"))
    assert ended.code == 0
    assert ended.err.splitlines()[0] == "--gpu 0: no CUDA device here, running on the CPU"


def test_groups_and_projects_name_the_folders_and_are_never_overwritten(run, tmp_path):
    for _ in range(3):
        run(run=("--log_group", "g", "--log_project", "p"))
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["g", "g_0", "g_1"]


def test_the_seed_decides_and_repeats(run):
    first, second, third = (
        raw_scores_of(run(run=("--seed", seed, "--save_anomaly_scores"), sampler=("-p", "0.02", "random"))[1])
        for seed in (1, 1, 2)
    )
    assert (first == second).all()
    assert (first != third).any()


# Each row: a setting of a stage, and what it must change in the results against the run without it.
EFFECTS = {
    "layers": ({"patch_core": ("-b", "efficientnet_lite0", "-le", "blocks.2", "--weights", "random")}, "scores"),
    "pretrain": ({"patch_core": (*RANDOM, "--pretrain_embed_dimension", "64")}, "scores"),
    "target": ({"patch_core": (*RANDOM, "--target_embed_dimension", "64")}, "bank_mib"),
    "patchsize": ({"patch_core": (*RANDOM, "--patchsize", "5")}, "scores"),
    "num_nn": ({"patch_core": (*RANDOM, "--anomaly_scorer_num_nn", "4")}, "scores"),
    "precision": ({"patch_core": (*RANDOM, "--precision", "bfloat16")}, "scores"),
    "seeded backbone": ({"patch_core": ("-b", "efficientnet_lite0.seed-3", *RANDOM[2:])}, "scores"),
    "percentage": ({"sampler": ("-p", "0.5", "approx_greedy_coreset")}, "bank_patches"),
    "identity": ({"sampler": ("identity",)}, "bank_patches"),
    "random": ({"sampler": ("-p", "0.1", "random")}, "scores"),
    "greedy": ({"sampler": ("-p", "0.1", "greedy_coreset")}, "scores"),
    "resize": ({"dataset": ("--resize", "128", "--imagesize", "96", "-d", "metal_plate")}, "scores"),
    "imagesize": ({"dataset": ("--resize", "96", "--imagesize", "64", "-d", "metal_plate")}, "bank_patches"),
    "augment": ({"dataset": (*PLATE, "--augment")}, "bank_patches"),
    "split": ({"dataset": (*PLATE, "--train_val_split", "0.5")}, "train_images"),
}


@pytest.mark.parametrize("name", EFFECTS)
def test_options_have_an_effect(run, name):
    stages, changed = EFFECTS[name]
    _, before = run(run=("--save_anomaly_scores",))
    ended, after = run(run=("--save_anomaly_scores", "--log_group", "changed"), **stages)
    assert ended.code == 0, ended.err
    if changed == "scores":
        assert not np.allclose(raw_scores_of(before), raw_scores_of(after), rtol=1e-3)
    else:
        assert row_of(before)[changed] != row_of(after)[changed]


def test_more_neighbours_never_lower_a_score(run):
    _, one = run(run=("--save_anomaly_scores",))
    _, four = run(
        run=("--save_anomaly_scores", "--log_group", "four"), patch_core=(*RANDOM, "--anomaly_scorer_num_nn", 4)
    )
    assert (raw_scores_of(four) >= raw_scores_of(one)).all()


def test_augmentation_remembers_eight_views(run):
    _, plain = run(sampler=("identity",))
    _, augmented = run(run=("--log_group", "augmented"), sampler=("identity",), dataset=(*PLATE, "--augment"))
    assert row_of(augmented)["bank_patches"] == 8 * row_of(plain)["bank_patches"]


def test_held_out_images_set_a_threshold(run):
    _, without = run(run=("--save_anomaly_scores", "--calibration", "none"))
    assert {entry["rejected"] for entry in scores_of(without)} == {""}
    _, folder = run(run=("--save_anomaly_scores", "--log_group", "split"), dataset=(*PLATE, "--train_val_split", "0.5"))
    threshold, entries = row_of(folder)["threshold"], scores_of(folder)
    assert [entry["rejected"] == "1" for entry in entries] == [
        float(entry["raw_score"]) > threshold for entry in entries
    ]
    assert [entry["decision_value"] for entry in entries] == [entry["raw_score"] for entry in entries]
    caught = [entry["rejected"] == "1" for entry in entries if entry["label"] == "1"]
    assert row_of(folder)["defects_caught"] == pytest.approx(np.mean(caught))


def test_more_folds_than_images_are_refused_before_anything_is_written(run):
    ended, folder = run(run=("--calibration", "folds", "--calibration_folds", "40"))
    assert ended.code == 1
    assert "metal_plate has 6 training images for 40 folds: lower --calibration_folds" in ended.err
    assert folder is None


@pytest.mark.parametrize("setting", [("--batch_size", "1"), ("--num_workers", "0"), ("--num_workers", "3")])
def test_batches_and_workers_do_not_change_scores(run, setting):
    _, before = run(run=("--save_anomaly_scores",))
    _, after = run(run=("--save_anomaly_scores", "--log_group", "changed"), dataset=(*PLATE, *setting))
    np.testing.assert_allclose(raw_scores_of(before), raw_scores_of(after), rtol=1e-4)


def test_batch_size_and_workers_reach_the_loader(run, monkeypatch):
    from patchcore import category_run

    seen = []
    real = category_run.PrefetchLoader

    def spy(*, batch_size, num_workers, **settings):
        seen.append((batch_size, num_workers))
        return real(batch_size=batch_size, num_workers=num_workers, **settings)

    monkeypatch.setattr(category_run, "PrefetchLoader", spy)
    run(dataset=(*PLATE, "--batch_size", "3", "--num_workers", "1"))
    assert set(seen) == {(3, 1)}


def test_faiss_workers_reach_faiss(run):
    faiss = pytest.importorskip("faiss")
    before = faiss.omp_get_max_threads()
    try:
        run(patch_core=(*RANDOM, "--faiss_num_workers", "1"))
        assert faiss.omp_get_max_threads() == 1
    finally:
        faiss.omp_set_num_threads(before)


WRONG = {
    "option": ({"patch_core": (*RANDOM, "--patchsiz", "3")}, 2, "--patchsize"),
    "sampler": ({"sampler": ("approx_greedy",)}, 2, "'approx_greedy_coreset', 'greedy_coreset', 'identity', 'random'"),
    "share": ({"sampler": ("-p", "0", "identity")}, 2, "0"),
    "data set": ({"name": "mppd"}, 2, "'mpdd', 'mvtec'"),
    "category": ({"dataset": (*SMALL, "-d", "metal_plat")}, 1, "did you mean 'metal_plate'?"),
    "repeated category": ({"dataset": (*PLATE, "-d", "metal_plate")}, 2, "every category once"),
    "backbone": ({"patch_core": ("-b", "wideresnet5", "-le", "layer2")}, 1, "wideresnet50"),
    "layer": ({"patch_core": ("-b", "efficientnet_lite0", "-le", "block.2", "--weights", "random")}, 1, "blocks.2"),
    "crop": ({"dataset": ("--resize", "64", "--imagesize", "96", "-d", "metal_plate")}, 2, "--imagesize 96"),
    "neighbours": ({"patch_core": (*RANDOM, "--anomaly_scorer_num_nn", "4000")}, 1, "asks for more neighbours"),
    "group": ({"run": ("--log_group", "a/b")}, 2, "--log_group"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_answered_in_one_line_and_leaves_nothing(run, tmp_path, name):
    stages, code, text = WRONG[name]
    ended, _ = run(**stages)
    assert ended.code == code, ended.err
    assert any(text in line for line in ended.err.splitlines())
    assert "Traceback" not in ended.err
    assert "trained in" not in ended.err
    assert not list(tmp_path.rglob("*.csv"))
    assert not [path for path in tmp_path.rglob("*") if path.is_dir() and path.parent.name == "project"]


def test_a_mask_of_another_size_is_told_before_training(shell, parts, tmp_path):
    shutil.copytree(parts / "metal_plate", tmp_path / "parts" / "metal_plate")
    mask = next((tmp_path / "parts" / "metal_plate" / "ground_truth").glob("*/*.png"))
    Image.new("L", (95, 96)).save(mask)
    ended = shell(run_patchcore, *patchcore_args(tmp_path / "out", tmp_path / "parts", dataset=PLATE))
    assert ended.code == 1
    assert f"the mask {mask} is 95x96" in ended.err
    assert "trained in" not in ended.err


# The original's options that never had an effect: at its defaults, and at another value.
WITHOUT_EFFECT = {
    "preprocessing": (("--preprocessing", "mean"), ("--preprocessing", "conv")),
    "aggregation": (("--aggregation", "mean"), ("--aggregation", "mlp")),
    "patchscore": (("--patchscore", "max"), ("--patchscore", "mean")),
    "patchoverlap": (("--patchoverlap", "0"), ("--patchoverlap", "0.5")),
    "patchsize_aggregate": ((), ("--patchsize_aggregate", "3")),
    "pa": ((), ("-pa", "3", "-pa", "5")),
}


def test_options_without_effect_run_at_their_defaults(run):
    defaults = [part for default, _ in WITHOUT_EFFECT.values() for part in default]
    _, before = run(run=("--save_anomaly_scores",))
    ended, after = run(run=("--save_anomaly_scores", "--log_group", "again"), patch_core=(*RANDOM, *defaults))
    assert ended.code == 0, ended.err
    assert (raw_scores_of(before) == raw_scores_of(after)).all()


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_options_without_effect_are_refused_elsewhere(run, name):
    _, other = WITHOUT_EFFECT[name]
    ended, folder = run(patch_core=(*RANDOM, *other))
    assert ended.code == 2
    text = " ".join(ended.err.split())
    assert other[-1] in text
    assert "this option never had an effect in the original and is not implemented; leave it out" in text
    assert folder is None


def test_options_without_effect_are_not_in_the_help(shell, tmp_path):
    ended = shell(run_patchcore, tmp_path, "patch_core", "--help")
    assert ended.code == 0
    assert "--patchsize" in ended.out
    for name in ("preprocessing", "aggregation", "patchscore", "patchoverlap", "patchsize_aggregate"):
        assert name not in ended.out


def test_a_missing_stage_is_named(shell, tmp_path):
    ended = shell(run_patchcore, tmp_path, "sampler", "identity")
    assert ended.code == 2
    assert "expected the stage patch_core once, got it 0 times" in ended.err


@pytest.fixture
def own_parts(parts, tmp_path):
    """A copy of the small set that a test may damage."""
    return shutil.copytree(parts, tmp_path / "own parts")


def test_missing_data_path(run, tmp_path):
    ended, folder = run(data=tmp_path / "nowhere")
    assert ended.code == 1
    assert f"no folder {tmp_path / 'nowhere'}" in ended.err
    assert folder is None


def test_empty_training_folder(run, own_parts):
    for path in (own_parts / "metal_plate" / "train" / "good").iterdir():
        path.unlink()
    ended, folder = run(data=own_parts)
    assert ended.code == 1
    assert f"no image in {own_parts / 'metal_plate' / 'train' / 'good'}" in ended.err
    assert folder is None


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_corrupt_image_is_named_and_loses_only_its_category(run, own_parts, split):
    path = own_parts / "metal_plate" / split / "good" / "001.png"
    path.write_bytes(path.read_bytes()[:200])
    ended, folder = run(
        run=("--save_patchcore_model", "--save_segmentation_images", "--save_anomaly_scores"),
        data=own_parts,
        dataset=(*SMALL, "-d", "metal_plate", "-d", "bracket_white"),
    )
    assert ended.code == 1
    assert str(path) in ended.err
    assert "1 of 2 categories failed: metal_plate" in ended.err
    assert set(read_results(folder / "results.csv")) == {"mpdd_bracket_white", "Mean"}
    assert [path.name for path in (folder / "models").iterdir()] == ["mpdd_bracket_white"]
    assert not list(folder.rglob(".*"))


def test_a_run_in_which_every_category_fails_leaves_nothing(run, own_parts):
    (own_parts / "metal_plate" / "train" / "good" / "000.png").write_bytes(b"")
    ended, folder = run(data=own_parts)
    assert ended.code == 1
    assert folder is None


def test_parts_without_masks_get_image_metrics_and_overlays(run, own_parts):
    shutil.rmtree(own_parts / "metal_plate" / "ground_truth")
    ended, folder = run(data=own_parts, run=("--save_segmentation_images",))
    assert ended.code == 0
    assert "no ground-truth masks" in ended.err
    row = row_of(folder)
    assert 0 <= row["instance_auroc"] <= 1
    assert np.isnan([row["full_pixel_auroc"], row["anomaly_pixel_auroc"], row["aupro"]]).all()
    assert len(list((folder / "segmentation_images" / "mpdd_metal_plate").iterdir())) == 11


def test_one_good_image_each_and_only_good_test_images(run, tmp_path):
    for split in ("train", "test"):
        folder = tmp_path / "tiny" / "part" / split / "good"
        folder.mkdir(parents=True)
        Image.new("L", (100, 80), 128).save(folder / "a b.jpg")
    ended, folder = run(data=tmp_path / "tiny", dataset=("--resize", "64", "--imagesize", "64", "-d", "part"))
    assert ended.code == 0, ended.err
    assert "all test images are good" in ended.err
    assert np.isnan(read_results(folder / "results.csv")["Mean"]["instance_auroc"])


def test_identity_says_that_a_share_has_no_effect(run):
    ended, folder = run(sampler=("-p", "0.1", "identity"))
    assert "sampler identity keeps every patch: -p has no effect" in ended.err
    settings = yaml.safe_load((folder / "config.yaml").read_text())["settings"]
    assert (settings["sampler"], settings["fraction"]) == ("identity", 1.0)
    ended, _ = run(sampler=("identity",))
    assert "has no effect" not in ended.err


def test_a_folder_of_weights_is_refused_where_none_are_read_but_not_if_the_environment_names_it(run, monkeypatch):
    ended, folder = run(patch_core=(*RANDOM, "--weights_dir", "x"))
    assert ended.code == 2
    assert "--weights_dir has no effect with --weights random" in ended.err
    assert folder is None
    monkeypatch.setenv("PATCHCORE_WEIGHTS", "x")
    ended, _ = run()
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("where", ["option", "environment"])
def test_weights_are_looked_for_in_weights_dir(run, tmp_path, monkeypatch, where):
    path = tmp_path / "weights" / "tf_efficientnet_lite0.in1k.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"none")
    option = ("--weights_dir", path.parent) if where == "option" else ()
    if where == "environment":
        monkeypatch.setenv("PATCHCORE_WEIGHTS", str(path.parent))
    ended, folder = run(patch_core=(*LITE0, *option))
    assert ended.code == 1
    assert ended.err.splitlines()[-1].startswith(f"error: {path}: not the weights")
    assert folder is None


@pytest.mark.parametrize("stage", ["patch_core", "sampler", "dataset"])
def test_stages_show_their_help(shell, stage):
    ended = shell(run_patchcore, stage, "--help")
    assert ended.code == 0
    assert f"RESULTS_PATH {stage}" in ended.out


def test_the_help_lists_the_backbones(shell):
    from patchcore.backbones.registry import BACKBONES

    shown = " ".join(shell(run_patchcore, "patch_core", "--help").out.split())
    assert all(name in shown.replace("- ", "-") for name in BACKBONES)


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        (
            {"patch_core": (*RANDOM, "--imagesize", "64")},
            "--imagesize is an option of the stage dataset: put it behind",
        ),
        ({"dataset": (*PLATE, "--patchsize", "3")}, "--patchsize is an option of the stage patch_core: put it behind"),
        ({"run": ("-p", "0.1")}, "-p is an option of the stage sampler: put it behind that word"),
        ({"dataset": (*PLATE, "--seed", "3")}, "--seed is an option of the run: put it in front of the results folder"),
        ({"dataset": (*PLATE, "--sed", "3")}, "No such option"),
    ],
)
def test_an_option_behind_the_wrong_stage_is_sent_to_its_own(run, stages, said):
    ended, _ = run(**stages)
    assert ended.code == 2
    assert said in ended.err
    assert len(ended.err.splitlines()) == 1


def test_usage_errors_are_one_line(run):
    ended, _ = run(patch_core=(*RANDOM, "--patchsiz", "3"))
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert len(ended.err.splitlines()) == 1


def test_an_interruption_ends_with_130_and_keeps_what_is_finished(run, monkeypatch, tmp_path):
    from patchcore.category_run import CategoryRun

    real = CategoryRun.run

    def interrupted(self):
        if self.category.name == "bracket_white":
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(CategoryRun, "run", interrupted)
    ended, folder = run(dataset=(*SMALL, "-d", "metal_plate", "-d", "bracket_white"))
    assert ended.code == 130
    assert "interrupted in bracket_white; finished: mpdd_metal_plate; --resume goes on from here" in ended.err
    assert "interrupted in bracket_white" in (folder / "run.log").read_text()
    assert set(read_results(folder / "results.csv")) == {"mpdd_metal_plate", "Mean"}
    ended, _ = run(run=("--log_project", "first"), dataset=(*SMALL, "-d", "bracket_white"))
    assert ended.code == 130
    assert not (tmp_path / "first").exists()


def test_a_resumed_run_does_what_is_missing(run, monkeypatch, tmp_path):
    from patchcore.category_run import CategoryRun

    real = CategoryRun._write_overlays

    def killed(self, *args):
        real(self, *args)
        if "bracket" in self.category.name:
            raise KeyboardInterrupt

    dataset = (*SMALL, "-d", "metal_plate", "-d", "bracket_white")
    saving = ("--save_segmentation_images", "--save_patchcore_model")
    with monkeypatch.context() as patch:
        patch.setattr(CategoryRun, "_write_overlays", killed)
        ended, folder = run(run=saving, dataset=dataset)
    assert ended.code == 130
    assert (folder / "segmentation_images" / "mpdd_bracket_white").is_dir()  # in the way of the next
    before = (folder / "models" / "mpdd_metal_plate" / "model.json").stat().st_mtime_ns
    ended, folder = run(run=(*saving, "--resume"), dataset=dataset)
    assert ended.code == 0, ended.err
    assert list(read_results(folder / "results.csv")) == ["mpdd_metal_plate", "mpdd_bracket_white", "Mean"]
    assert (folder / "models" / "mpdd_metal_plate" / "model.json").stat().st_mtime_ns == before
    assert len(list((tmp_path / "project").iterdir())) == 1
    defect_types = (folder / "defect_types.csv").read_text()
    assert "mpdd_metal_plate" in defect_types
    assert "mpdd_bracket_white" in defect_types


def test_resume_takes_the_newest_run_and_refuses_other_settings(run):
    run()
    _, newest = run()
    (newest / "results.csv").unlink()
    ended, _ = run(run=("--resume",))
    assert ended.code == 0, ended.err
    assert (newest / "results.csv").exists()
    ended, _ = run(  # what changes no result may be otherwise
        run=("--resume", "--gpu", "1"),
        patch_core=(*RANDOM, "--faiss_num_workers", "1"),
        dataset=(*PLATE, "--num_workers", "1"),
    )
    assert ended.code == 0, ended.err
    assert "finished before, skipped" in ended.err
    ended, _ = run(run=("--resume",), patch_core=(*RANDOM, "--patchsize", "5"))
    assert ended.code == 1
    assert f"--resume: {newest} was begun with settings patchsize 3, now it is 5" in ended.err
    ended, _ = run(run=("--resume",), sampler=("-p", "0.2", "random"))
    assert ended.code == 1
    assert "settings sampler 'approx_greedy_coreset', now it is 'random'" in ended.err
    ended, _ = run(run=("--resume",), dataset=("--resize", "128", "--imagesize", "96", "-d", "metal_plate"))
    assert ended.code == 1
    assert "dataset resize 96, now it is 128" in ended.err
    (newest / "config.yaml").write_text("{")
    ended, _ = run(run=("--resume",))
    assert ended.code == 1
    assert f"{newest / 'config.yaml'}: cannot read the settings" in ended.err


def test_the_command_in_config_yaml_repeats_the_run(run, tmp_path):
    _, folder = run(run=("--save_anomaly_scores",))
    lines = (folder / "config.yaml").read_text().splitlines()
    assert lines[0].startswith("command: ")
    assert lines[1].startswith("id: ")  # one line, to be pasted


def test_debug_shows_the_traceback(run):
    ended, _ = run(run=("--debug",), dataset=(*SMALL, "-d", "nothing"))
    assert "Traceback" in ended.err


def test_results_appear_after_every_category(run, monkeypatch):
    from patchcore import experiment

    seen = []
    real = experiment.write_results
    monkeypatch.setattr(experiment, "write_results", lambda path, rows: (seen.append(list(rows)), real(path, rows)))
    run(dataset=(*SMALL, "-d", "metal_plate", "-d", "bracket_white"))
    assert seen == [["mpdd_metal_plate"], ["mpdd_metal_plate", "mpdd_bracket_white"]]
