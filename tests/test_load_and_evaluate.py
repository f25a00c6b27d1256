"""Stored models evaluated: the numbers of the run that stored them, and refusals of what contradicts them."""

import json
import shutil

import pytest
import yaml

import older_formats
from commands import LITE0, load_and_evaluate_patchcore, patchcore_args, run_patchcore, score_lines
from patchcore.backbones.build import load_backbone
from patchcore.results.tables import read_results

pytestmark = pytest.mark.usefixtures("one_thread")

RANDOM = (*LITE0, "--weights", "random")
SMALL = ("--resize", "96", "--imagesize", "64")
BOTH = ("-d", "metal_plate", "-d", "bracket_white")
ROWS = ("mpdd_metal_plate", "mpdd_bracket_white")
COSTS = (
    "train_images",
    "seconds",
    "ms_per_image",
    "peak_",
    "model_mib",
)  # columns that differ from run to run, or are of training

# An ensemble of three networks, each with its own layers.
ENSEMBLE = (
    *("-b", "efficientnet_lite0", "-b", "efficientnet_lite0.seed-1", "-b", "efficientnet_lite0.seed-2"),
    *("-le", "0.blocks.2", "-le", "0.blocks.4", "-le", "1.blocks.2", "-le", "2.blocks.1", "-le", "2.blocks.3"),
    *("--weights", "random", "--target_embed_dimension", "96"),
)


@pytest.fixture
def train(shell, parts, tmp_path):
    """Run PatchCore on both categories, store its models, and return the run's folder."""

    def start(*run, patch_core=RANDOM, dataset=SMALL, group="stored"):
        run = ("--save_patchcore_model", "--save_anomaly_scores", "--log_group", group, *run)
        args = patchcore_args(tmp_path, parts, run=run, patch_core=patch_core, dataset=(*dataset, *BOTH))
        ended = shell(run_patchcore, *args)
        assert ended.code == 0, ended.err
        return tmp_path / "project" / group

    return start


@pytest.fixture
def stored(session_run, tmp_path):
    """A copy of a plain run's folder, to be damaged."""
    return shutil.copytree(session_run, tmp_path / "stored run")


@pytest.fixture(scope="module")
def session_run(parts, tmp_path_factory):
    """The folder of a plain run with models: read it, do not write to it."""
    root = tmp_path_factory.mktemp("run")
    run = ("--save_patchcore_model", "--save_anomaly_scores", "--log_group", "stored")
    args = patchcore_args(root, parts, run=run, patch_core=RANDOM, dataset=(*SMALL, *BOTH))
    with pytest.raises(SystemExit) as ended:
        run_patchcore.main([str(arg) for arg in args])
    assert ended.value.code == 0
    return root / "project" / "stored"


@pytest.fixture
def evaluate(shell, parts, tmp_path):
    """Evaluate models on the small synthetic set; returns the end and the folder, None where there is none."""

    def start(*models, run=(), loader=(), dataset=BOTH, data=parts, name="mpdd"):
        paths = [item for model in models for item in ("-p", model)]
        group = ("--save_anomaly_scores", "--log_group", "evaluated")
        stages = ["patch_core_loader", *paths, *loader, "dataset", *dataset, name, data]
        ended = shell(load_and_evaluate_patchcore, *group, *run, tmp_path, *stages)
        folder = tmp_path / "project" / "evaluated"
        return ended, folder if folder.is_dir() else None

    return start


def each(run):
    """The model folders of a run, in the order of BOTH."""
    return [run / "models" / row for row in ROWS]


def scores_of(folder, row, **how):
    return score_lines(folder / "anomaly_scores" / f"{row}.csv", **how)


def metrics_of(folder, verdicts=True):
    left_out = COSTS if verdicts else (*COSTS, "threshold", "defects_caught", "false_rejects")
    return {
        row: {name: value for name, value in columns.items() if not any(part in name for part in left_out)}
        for row, columns in read_results(folder / "results.csv").items()
    }


def assert_same_numbers(run, evaluation, verdicts=True):
    """`verdicts` is False where the model that was evaluated has no calibration."""
    for row in ROWS:
        assert scores_of(evaluation, row, verdicts=verdicts) == scores_of(run, row, verdicts=verdicts)
        assert bool(scores_of(evaluation, row)[0]["p_value"]) == verdicts
    expected, found = metrics_of(run, verdicts), metrics_of(evaluation, verdicts)
    assert list(found) == [*ROWS, "Mean"]
    for row in expected:
        assert str(found[row]) == str(expected[row])  # as text, where nan equals nan


# The same numbers


@pytest.mark.parametrize(
    "patch_core",
    [RANDOM, (*RANDOM, "--anomaly_scorer_num_nn", "3", "--patchsize", "5"), ENSEMBLE],
    ids=["one", "k3p5", "ensemble"],
)
def test_the_numbers_are_those_of_the_run_to_the_last_digit(train, evaluate, patch_core):
    run = train(patch_core=patch_core)
    ended, evaluation = evaluate(*each(run), dataset=(*SMALL, *BOTH))
    assert ended.code == 0, ended.err
    assert_same_numbers(run, evaluation)


def test_geometry_comes_from_the_model_and_no_image_is_held_out(train, evaluate):
    run = train("--seed", 7, dataset=(*SMALL, "--train_val_split", "0.5"))
    ended, evaluation = evaluate(*each(run))
    assert ended.code == 0, ended.err
    assert_same_numbers(run, evaluation)
    assert "threshold" in read_results(evaluation / "results.csv")["mpdd_metal_plate"]
    settings = yaml.safe_load((evaluation / "config.yaml").read_text())
    assert [settings["dataset"][name] for name in ("resize", "imagesize")] == [96, 64]
    assert [settings["models"]["metal_plate"][name] for name in ("seed", "train_val_split")] == [7, 0.5]


def test_an_evaluation_reads_test_images_only(session_run, evaluate, parts, tmp_path):
    tested = shutil.copytree(parts, tmp_path / "tested", ignore=shutil.ignore_patterns("train"))
    ended, evaluation = evaluate(*each(session_run), data=tested)
    assert ended.code == 0, ended.err
    assert_same_numbers(session_run, evaluation)
    assert "metal_plate: 11 test images" in ended.err
    for category in BOTH[1::2]:
        shutil.rmtree(tested / category / "test")
        (tested / category / "test").mkdir()
        shutil.copy(next((parts / category / "test" / "good").iterdir()), tested / category / "test")
    ended, folder = evaluate(*each(session_run), data=tested, run=("--log_group", "none"))
    assert (ended.code, folder) == (1, evaluation)
    message = f"error: metal_plate: no test images with a label in {tested}: nothing to evaluate"
    assert ended.err.splitlines()[-1] == message


def test_an_evaluation_leaves_what_a_run_leaves_but_models(session_run, evaluate):
    ended, evaluation = evaluate(*each(session_run), run=("--save_segmentation_images",))
    assert ended.code == 0, ended.err
    assert {path.name for path in evaluation.iterdir()} == {
        "results.csv",
        "segmentation_images",
        "anomaly_scores",
        "config.yaml",
        "run.log",
        "defect_types.csv",
    }
    assert len(list((evaluation / "segmentation_images" / "mpdd_metal_plate").iterdir())) == 11
    settings = yaml.safe_load((evaluation / "config.yaml").read_text())
    models = settings["models"]
    assert [models[name]["folder"] for name in BOTH[1::2]] == list(map(str, each(session_run)))
    stored = json.loads((each(session_run)[1] / "model.json").read_text())
    assert models["bracket_white"]["checksums"] == stored["arrays"]
    assert models["bracket_white"]["run"] == yaml.safe_load((session_run / "config.yaml").read_text())["id"]
    assert settings["overrides"] == {}
    settings = settings["settings"]
    assert settings["layers"] == [["blocks.2", "blocks.4"]]
    assert (settings["sampler"], settings["fraction"]) == ("approx_greedy_coreset", 0.1)


def test_models_go_to_categories_in_order_and_the_folder_models_finds_its_own(session_run, evaluate):
    first, second = each(session_run)
    _, swapped = evaluate(second, first)
    _, by_name = evaluate(session_run / "models", run=("--log_group", "by name"))
    by_name = by_name.with_name("by name")
    assert_same_numbers(session_run, by_name)
    for row in ROWS:
        assert scores_of(swapped, row) != scores_of(session_run, row)


def test_one_model_serves_all_categories(session_run, evaluate):
    first, _ = each(session_run)
    ended, evaluation = evaluate(first)
    assert ended.code == 0, ended.err
    assert scores_of(evaluation, ROWS[0]) == scores_of(session_run, ROWS[0])
    assert scores_of(evaluation, ROWS[1]) != scores_of(session_run, ROWS[1])


def test_the_backbone_is_loaded_once_for_all_categories(session_run, evaluate, monkeypatch):
    from patchcore.features import workspace

    names = []
    real = workspace.load_backbone
    monkeypatch.setattr(workspace, "load_backbone", lambda name, **kwargs: names.append(name) or real(name, **kwargs))
    evaluate(*each(session_run))
    assert names == ["efficientnet_lite0"]


# The loader's options


def test_more_neighbours_can_be_asked_for(train, session_run, evaluate):
    three = train(patch_core=(*RANDOM, "--anomaly_scorer_num_nn", "3"), group="three")
    ended, evaluation = evaluate(*each(session_run), loader=("--anomaly_scorer_num_nn", "3"))
    assert ended.code == 0, ended.err
    assert_same_numbers(three, evaluation, verdicts=False)  # it was calibrated with one neighbour
    assert yaml.safe_load((evaluation / "config.yaml").read_text())["overrides"] == {"num_nn": 3}


def test_the_search_options_reach_the_bank(session_run, evaluate, monkeypatch):
    from patchcore.methods.patchcore import detector

    seen = []
    real = detector.MemoryBank

    def spy(features, **settings):
        seen.append(settings)
        return real(features)

    monkeypatch.setattr(detector, "MemoryBank", spy)
    evaluate(*each(session_run), loader=("--faiss_on_gpu", "--faiss_num_workers", "2"))
    assert [(settings["on_gpu"], settings["num_workers"]) for settings in seen] == [(True, 2)] * 2


@pytest.fixture
def stored_as_pretrained(stored):
    """Its models, as if their networks had been pretrained."""
    for folder in each(stored):
        path = folder / "model.json"
        path.write_text(path.read_text().replace('"weights": "random"', '"weights": "pretrained"'))
    return each(stored)


@pytest.mark.parametrize("where", ["option", "environment"])
def test_weights_are_looked_for_in_weights_dir(stored_as_pretrained, evaluate, tmp_path, monkeypatch, where):
    path = tmp_path / "weights" / "tf_efficientnet_lite0.in1k.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"none")
    if where == "environment":
        monkeypatch.setenv("PATCHCORE_WEIGHTS", str(path.parent))
    ended, folder = evaluate(*stored_as_pretrained, loader=("--weights_dir", path.parent) if where == "option" else ())
    assert ended.code == 1
    assert f"error: {path}: not the weights" in ended.err
    assert ended.err.count("not the weights") == 1  # once, not for every category
    assert folder is None


def test_other_weights_than_those_of_the_training_are_refused(stored_as_pretrained, evaluate, tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "weights").mkdir()
    state = load_backbone("efficientnet_lite0.seed-5", weights="random").module.state_dict()
    save_file(state, tmp_path / "weights" / "tf_efficientnet_lite0.in1k.safetensors")
    ended, folder = evaluate(*stored_as_pretrained, loader=("--weights_dir", tmp_path / "weights"))
    assert ended.code == 1
    assert f"{stored_as_pretrained[0]}: trained with other weights of efficientnet_lite0" in ended.err
    assert folder is None


def test_a_folder_of_weights_is_refused_where_none_are_read_but_not_if_the_environment_names_it(
    session_run, evaluate, monkeypatch
):
    ended, folder = evaluate(*each(session_run), loader=("--weights_dir", "x"))
    assert ended.code == 2
    assert "--weights_dir has no effect with --weights random" in ended.err
    assert str(each(session_run)[0]) in ended.err
    assert folder is None
    monkeypatch.setenv("PATCHCORE_WEIGHTS", "x")
    ended, evaluation = evaluate(*each(session_run))
    assert ended.code == 0, ended.err
    assert_same_numbers(session_run, evaluation)


# Refusals

REFUSED = {
    "resize": ({"dataset": ("--resize", "80", *BOTH)}, ("--resize 80", "--resize 96")),
    "imagesize": ({"dataset": ("--imagesize", "80", *BOTH)}, ("--imagesize 80", "--imagesize 64")),
    "split": ({"dataset": ("--train_val_split", "0.5", *BOTH)}, ("--train_val_split", "not trained again")),
    "good": ({"dataset": ("--good", "photos", *BOTH)}, ("--good", "--bad are images to test on")),
    "decoding": ({"dataset": ("--reduced_decoding", *BOTH)}, ("--reduced_decoding", "with no --reduced_decoding")),
    "augment": ({"dataset": ("--augment", *BOTH)}, ("--augment", "not trained again")),
    "repeated category": ({"dataset": ("-d", "metal_plate", "-d", "metal_plate")}, ("every category once",)),
    "saving": ({"run": ("--save_patchcore_model",)}, ("--save_patchcore_model",)),
    "layers": ({"loader": ("-le", "blocks.2")}, ("-l",)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_contradicts_the_models_is_a_usage_error_with_both_values(session_run, evaluate, name):
    settings, texts = REFUSED[name]
    ended, folder = evaluate(*each(session_run), **settings)
    assert ended.code == 2, ended.err
    message = " ".join(ended.err.replace("│", " ").split())
    assert all(text in message for text in texts), ended.err
    assert "Traceback" not in ended.err
    assert folder is None


def test_the_seed_of_an_evaluation_decides_nothing(train, evaluate):
    run = train("--seed", 7, dataset=(*SMALL, "--train_val_split", "0.5"))
    ended, evaluation = evaluate(*each(run), run=("--seed", 9))
    assert ended.code == 0, ended.err
    assert_same_numbers(run, evaluation)


@pytest.mark.parametrize(("models", "categories"), [(2, 1), (3, 2)])
def test_as_many_models_as_categories_or_one(session_run, evaluate, models, categories):
    ended, folder = evaluate(*[each(session_run)[0]] * models, dataset=BOTH[: 2 * categories])
    assert ended.code == 2
    assert f"got {models} models (-p) for {categories} categories (-d)" in ended.err
    assert folder is None


def test_models_of_different_geometry_are_named(train, session_run, evaluate):
    other = train(dataset=("--resize", "80", "--imagesize", "64"), group="other")
    ended, folder = evaluate(each(session_run)[0], each(other)[1])
    assert ended.code == 1
    assert f"the models differ in resize: {each(session_run)[0]} has 96, {each(other)[1]} has 80" in ended.err
    assert folder is None


def test_a_folder_without_a_model_is_named(evaluate, tmp_path):
    empty, nowhere, others = (tmp_path / name for name in ("empty", "nowhere", "others"))
    empty.mkdir()
    (others / "mpdd_other").mkdir(parents=True)
    for path, message in (
        (empty, f"no PatchCore model in {empty}: expected model.json and the arrays that it names"),
        (nowhere, f"no folder {nowhere}: expected a stored PatchCore model"),
        (others, f"no PatchCore model in {others} for this category: there is mpdd_other"),
    ):
        ended, folder = evaluate(path)
        assert ended.code == 1
        assert message in ended.err
        assert folder is None


def test_a_damaged_bank_loses_only_its_category(stored, evaluate):
    index = each(stored)[0] / "nnscorer_search_index.faiss"
    index.write_bytes(index.read_bytes()[:-4])
    ended, folder = evaluate(*each(stored))
    assert ended.code == 1
    assert f"{index}: damaged: its checksum is not the one in model.json" in ended.err
    assert set(read_results(folder / "results.csv")) == {ROWS[1], "Mean"}


def test_what_model_json_lacks_or_has_wrong_is_named(stored, evaluate):
    path = each(stored)[0] / "model.json"
    content = json.loads(path.read_text())
    without_backbones = {name: value for name, value in content["settings"].items() if name != "backbones"}
    for changes, message in (
        ({"format": 99}, "format 99, this version reads format 2"),
        ({"method": "fastflow"}, "a model of the method 'fastflow', expected one of patchcore"),
        ({"settings": {**content["settings"], "surprise": 1}}, "no setting is called 'surprise'"),
        ({"settings": {**content["settings"], "num_nn": "1"}}, "num_nn must be int, got '1'"),
        ({"settings": without_backbones}, "backbones is missing"),
        ({"training": 3}, "training must be an object"),
        ({"arrays": {"../../x": "1"}}, "arrays must be checksums by file name"),
    ):
        path.write_text(json.dumps(content | changes))
        ended, folder = evaluate(*each(stored))
        assert ended.code == 1
        assert f"{path}: " in ended.err
        assert message in ended.err
        assert folder is None


# Folders of version 0.1


@pytest.mark.parametrize(
    "patch_core",
    [(*RANDOM, "--anomaly_scorer_num_nn", "3", "--patchsize", "5", "--precision", "bfloat16"), ENSEMBLE],
    ids=["k3p5", "ensemble"],
)
def test_a_folder_of_version_0_1_gives_the_same_numbers(train, evaluate, tmp_path, patch_core):
    run = train("--seed", 7, patch_core=patch_core, dataset=(*SMALL, "--train_val_split", "0.5", "--reduced_decoding"))
    older = [older_formats.patchcore_format_1(model, tmp_path / "older" / model.name) for model in each(run)]
    ended, evaluation = evaluate(*older)
    assert ended.code == 0, ended.err
    assert_same_numbers(run, evaluation, verdicts=False)
    ended, newer = evaluate(*each(run), run=("--log_group", "newer"))
    assert ended.code == 0, ended.err
    of_older, of_newer = (
        yaml.safe_load((folder / "config.yaml").read_text()) for folder in (evaluation, newer.with_name("newer"))
    )
    assert of_older["settings"] == of_newer["settings"]
    assert of_older["method"] == of_newer["method"]


def test_a_damaged_folder_of_version_0_1_is_named(session_run, evaluate, tmp_path):
    older = [older_formats.patchcore_format_1(model, tmp_path / "older" / model.name) for model in each(session_run)]
    index, path = (older[0] / name for name in ("nnscorer_search_index.faiss", "patchcore_params.json"))
    whole, params = index.read_bytes(), json.loads(path.read_text())
    index.write_bytes(whole[:-4])
    ended, folder = evaluate(*older)
    assert ended.code == 1
    assert f"{index}: damaged index" in ended.err
    assert set(read_results(folder / "results.csv")) == {ROWS[1], "Mean"}
    shutil.rmtree(folder)

    def ends_with(message):
        ended, folder = evaluate(*older)
        assert ended.code == 1
        assert message in ended.err
        assert folder is None

    index.unlink()
    ends_with(f"{index}: no such file, expected the memory bank that belongs to patchcore_params.json")
    index.write_bytes(whole)
    for changes, message in (
        ({"format": 3}, "format 3, this version reads format 1"),
        ({"surprise": 1}, "no setting is called 'surprise'"),
        ({"patchsize": 0}, "patchsize must be at least 1, got 0"),
        ({"fraction": None}, "both or neither must be None"),
    ):
        path.write_text(json.dumps(params | changes))
        ends_with(f"{path}: ")
        ends_with(message)
    del params["seed"]
    path.write_text(json.dumps(params))
    ends_with(f"{path}: expected the parameters of a PatchCore model, but 'seed' is missing")


# Folders of the original


@pytest.fixture
def originals(session_run, tmp_path, monkeypatch):
    """The plain run's models as the original would have stored them: function of what differs from the run."""
    weights = tmp_path / "weights"
    weights.mkdir()
    from safetensors.torch import save_file

    state = load_backbone("efficientnet_lite0", weights="random").module.state_dict()
    save_file(state, weights / "tf_efficientnet_lite0.in1k.safetensors")
    monkeypatch.setenv("PATCHCORE_WEIGHTS", str(weights))

    def convert(run=session_run, **changes):
        folders = tmp_path / "original"
        return [older_formats.patchcore_original(model, folders / model.name, **changes) for model in each(run)]

    return convert


def test_a_folder_of_the_original_gives_the_numbers_of_its_bank(session_run, originals, evaluate):
    ended, evaluation = evaluate(*originals(), dataset=("--resize", "96", *BOTH))
    assert ended.code == 0, ended.err
    assert_same_numbers(session_run, evaluation, verdicts=False)


def test_an_ensemble_of_the_original_loads(train, originals, evaluate):
    run = train(patch_core=[part.replace(".seed-1", "").replace(".seed-2", "") for part in ENSEMBLE])
    ended, evaluation = evaluate(*originals(run), dataset=("--resize", "96", *BOTH))
    assert ended.code == 0, ended.err
    assert_same_numbers(run, evaluation, verdicts=False)


def test_the_original_scored_with_one_neighbour(train, session_run, originals, evaluate):
    folders = originals(anomaly_scorer_num_nn=3)
    ended, evaluation = evaluate(*folders, dataset=("--resize", "96", *BOTH))
    assert f"{folders[0]}: stored with --anomaly_scorer_num_nn 3, but the original scored with 1" in ended.err
    assert_same_numbers(session_run, evaluation, verdicts=False)

    three = train(patch_core=(*RANDOM, "--anomaly_scorer_num_nn", "3"), group="three")
    loader = ("--anomaly_scorer_num_nn", "3")
    again = ("--log_group", "again")
    _, evaluation = evaluate(*folders, run=again, loader=loader, dataset=("--resize", "96", *BOTH))
    assert_same_numbers(three, evaluation.with_name("again"), verdicts=False)


def test_the_resize_of_the_original_is_paired_or_asked_for(originals, evaluate):
    folders = originals()
    ended, folder = evaluate(*folders)
    assert ended.code == 1
    assert f"{folders[0] / 'patchcore_params.pkl'}: images of 64 pixels" in ended.err
    assert "--resize" in ended.err
    assert folder is None


@pytest.mark.parametrize(("imagesize", "resize"), [(224, 256), (320, 366)])
def test_the_pairs_of_the_study_need_no_resize(originals, imagesize, resize):
    from patchcore.methods import METHODS
    from patchcore.methods.stored_model import read_model

    model = read_model(originals(input_shape=(3, imagesize, imagesize))[0], METHODS)
    assert (model.geometry.resize, model.geometry.imagesize) == (resize, imagesize)
    assert model.training.train_val_split == 1
    assert model.config.sampler is None


def test_another_imagesize_than_the_originals_is_refused(originals, evaluate):
    ended, _ = evaluate(*originals(), dataset=("--resize", "96", "--imagesize", "96", *BOTH))
    assert ended.code == 2
    assert "--imagesize 96 contradicts" in ended.err
    assert "--imagesize 64" in ended.err


def test_a_malicious_folder_is_refused_in_one_line_and_not_run(originals, evaluate, tmp_path):
    trace = tmp_path / "was run"
    folders = originals()
    evil = f"cos\nsystem\n(Vtouch '{trace}'\ntR."  # os.system("touch ...")
    (folders[0] / "patchcore_params.pkl").write_bytes(evil.encode())
    ended, folder = evaluate(*folders)
    assert ended.code == 1
    assert ended.err.splitlines()[-1].startswith(f"error: {folders[0] / 'patchcore_params.pkl'}: ")
    assert "nothing of it was run" in ended.err
    assert not trace.exists()
    assert folder is None
