"""Stored models evaluated: the numbers of the run that stored them, and refusals of what contradicts them."""

import json
import pickle
import shutil

import pytest
import yaml

from commands import LITE0, patchcore_args
from patchcore.backbones.build import load_backbone
from patchcore.cli.patchcore import load_and_evaluate_patchcore, run_patchcore
from patchcore.results.run_folder import read_results

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


def scores_of(folder, row):
    return (folder / "anomaly_scores" / f"{row}.csv").read_text()


def metrics_of(folder):
    return {
        row: {name: value for name, value in columns.items() if not any(cost in name for cost in COSTS)}
        for row, columns in read_results(folder / "results.csv").items()
    }


def assert_same_numbers(run, evaluation):
    for row in ROWS:
        assert scores_of(evaluation, row) == scores_of(run, row)
    expected, found = metrics_of(run), metrics_of(evaluation)
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


def test_geometry_comes_from_the_model_and_the_split_with_its_seed(train, evaluate):
    run = train("--seed", 7, dataset=(*SMALL, "--train_val_split", "0.5"))
    ended, evaluation = evaluate(*each(run))
    assert ended.code == 0, ended.err
    assert "threshold" in metrics_of(run)["mpdd_metal_plate"]
    assert_same_numbers(run, evaluation)
    settings = yaml.safe_load((evaluation / "config.yaml").read_text())
    assert settings["run"]["seed"] == 7
    assert [settings["dataset"][name] for name in ("resize", "imagesize", "train_val_split")] == [96, 64, 0.5]


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
    assert settings["patch_core_loader"]["paths"] == list(map(str, each(session_run)))
    model = settings["models"]["bracket_white"]
    assert model["folder"] == str(each(session_run)[1])
    assert model["config"]["layers"] == [["blocks.2", "blocks.4"]]
    assert model["sampler"] == {"name": "approx_greedy_coreset", "fraction": 0.1}


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
    from patchcore.methods.patchcore import detector

    names = []
    real = detector.load_backbone
    monkeypatch.setattr(detector, "load_backbone", lambda name, **kwargs: names.append(name) or real(name, **kwargs))
    evaluate(*each(session_run))
    assert names == ["efficientnet_lite0"]


# The loader's options


def test_more_neighbours_can_be_asked_for(train, session_run, evaluate):
    three = train(patch_core=(*RANDOM, "--anomaly_scorer_num_nn", "3"), group="three")
    ended, evaluation = evaluate(*each(session_run), loader=("--anomaly_scorer_num_nn", "3"))
    assert ended.code == 0, ended.err
    assert_same_numbers(three, evaluation)


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


def test_weights_are_looked_for_in_weights_dir(stored, evaluate, tmp_path):
    path = stored / "models" / "mpdd_metal_plate" / "patchcore_params.json"
    path.write_text(path.read_text().replace('"random"', '"pretrained"'))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "tf_efficientnet_lite0.in1k.safetensors").write_bytes(b"none")
    ended, folder = evaluate(each(stored)[0], loader=("--weights_dir", tmp_path / "weights"))
    assert ended.code == 1
    assert f"{tmp_path / 'weights' / 'tf_efficientnet_lite0.in1k.safetensors'}: not the weights" in ended.err
    assert folder is None


# Refusals

REFUSED = {
    "resize": ({"dataset": ("--resize", "80", *BOTH)}, ("--resize 80", "--resize 96")),
    "imagesize": ({"dataset": ("--imagesize", "80", *BOTH)}, ("--imagesize 80", "--imagesize 64")),
    "split": ({"dataset": ("--train_val_split", "0.5", *BOTH)}, ("--train_val_split 0.5", "--train_val_split 1.0")),
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


def test_the_seed_may_differ_only_where_it_decides_nothing(train, session_run, evaluate):
    ended, _ = evaluate(*each(session_run), run=("--seed", 9))
    assert ended.code == 0, ended.err
    run = train("--seed", 7, dataset=(*SMALL, "--train_val_split", "0.5"), group="split")
    ended, _ = evaluate(*each(run), run=("--seed", 9))
    assert ended.code == 2
    assert "--seed 9 contradicts" in ended.err
    assert "--seed 7" in ended.err


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
        (empty, f"no PatchCore model in {empty}: expected nnscorer_search_index.faiss"),
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
    assert f"{index}: damaged index" in ended.err
    assert set(read_results(folder / "results.csv")) == {ROWS[1], "Mean"}


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
        folders = []
        for model in each(run):
            folder = tmp_path / "original" / model.name
            folder.mkdir(parents=True)
            for path in model.glob("*.faiss"):
                shutil.copy(path, folder)
            for path in model.glob("*.json"):
                own = json.loads(path.read_text())
                params = {
                    "backbone.name": own["backbone"],
                    "layers_to_extract_from": own["layers"],
                    "input_shape": (3, own["imagesize"], own["imagesize"]),
                    "pretrain_embed_dimension": own["pretrain_embed_dimension"],
                    "target_embed_dimension": own["target_embed_dimension"],
                    "patchsize": own["patchsize"],
                    "patchstride": 1,
                    "anomaly_scorer_num_nn": own["num_nn"],
                }
                target = folder / path.with_suffix(".pkl").name
                target.write_bytes(pickle.dumps({**params, **changes}, pickle.HIGHEST_PROTOCOL))
            folders.append(folder)
        return folders

    return convert


def test_a_folder_of_the_original_gives_the_numbers_of_its_bank(session_run, originals, evaluate):
    ended, evaluation = evaluate(*originals(), dataset=("--resize", "96", *BOTH))
    assert ended.code == 0, ended.err
    assert_same_numbers(session_run, evaluation)


def test_an_ensemble_of_the_original_loads(train, originals, evaluate):
    run = train(patch_core=[part.replace(".seed-1", "").replace(".seed-2", "") for part in ENSEMBLE])
    ended, evaluation = evaluate(*originals(run), dataset=("--resize", "96", *BOTH))
    assert ended.code == 0, ended.err
    assert_same_numbers(run, evaluation)


def test_the_original_scored_with_one_neighbour(train, session_run, originals, evaluate):
    folders = originals(anomaly_scorer_num_nn=3)
    ended, evaluation = evaluate(*folders, dataset=("--resize", "96", *BOTH))
    assert f"{folders[0]}: stored with --anomaly_scorer_num_nn 3, but the original scored with 1" in ended.err
    assert_same_numbers(session_run, evaluation)

    three = train(patch_core=(*RANDOM, "--anomaly_scorer_num_nn", "3"), group="three")
    loader = ("--anomaly_scorer_num_nn", "3")
    again = ("--log_group", "again")
    _, evaluation = evaluate(*folders, run=again, loader=loader, dataset=("--resize", "96", *BOTH))
    assert_same_numbers(three, evaluation.with_name("again"))


def test_the_resize_of_the_original_is_paired_or_asked_for(originals, evaluate):
    folders = originals()
    ended, folder = evaluate(*folders)
    assert ended.code == 1
    assert f"{folders[0] / 'patchcore_params.pkl'}: images of 64 pixels" in ended.err
    assert "--resize" in ended.err
    assert folder is None


@pytest.mark.parametrize(("imagesize", "resize"), [(224, 256), (320, 366)])
def test_the_pairs_of_the_study_need_no_resize(originals, imagesize, resize):
    from patchcore.methods.patchcore.model_files import read_model

    model = read_model(originals(input_shape=(3, imagesize, imagesize))[0])
    assert (model.trained_on.resize, model.trained_on.imagesize) == (resize, imagesize)
    assert model.trained_on.train_val_split == 1
    assert model.sampler is None


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
