"""Options made from the fields of configurations, and the commands made of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from commands import load_and_evaluate_fastflow, load_and_evaluate_patchcore, run_fastflow, run_patchcore
from patchcore.cli.options import names_stated, parameters
from patchcore.config import DatasetConfig, RunConfig
from patchcore.methods import METHODS
from patchcore.methods.fastflow.config import FastFlowConfig
from patchcore.methods.patchcore.config import PatchCoreConfig, settings_from
from patchcore.settings import check, from_plain, setting, settings_of

TRAINING = {"patchcore": run_patchcore, "fastflow": run_fastflow}
EVALUATION = {"patchcore": load_and_evaluate_patchcore, "fastflow": load_and_evaluate_fastflow}


@dataclass(frozen=True, kw_only=True)
class Example:
    """A field of every kind that becomes an option."""

    kind: str = setting(help="Not shown.", argument=True, choices=("one", "other"))
    folder: Path = setting(argument=True)
    needed: tuple[str, ...] = setting(help="Repeat it.", flags=("--needed", "-n"))
    count: int = setting(1, "How many.", at_least=1, below=10)
    share: float = setting(0.5, "What part.", above=0, at_most=1)
    flag: bool = setting(False, "Whether.")
    choice: str = setting("a", "Which.", choices=("a", "b"))
    text: str = setting("word", "What.")
    later: int | None = setting(None, "Decided later.", at_least=2, shown="as many as fit")
    nothing: float | None = setting(None, "Without a default.", above=0)
    place: Path | None = setting(None, "Where.", variable="EXAMPLE_PLACE")
    numbers: tuple[int, ...] = setting((3,), "Repeat it.", at_least=0)
    inner: bool = setting(False, option=False)

    def __post_init__(self) -> None:
        check(self)


@pytest.fixture
def parse():
    """Parse a command line of `Example`; gives the parameters and the names of those that stand on it."""

    def start(*args, names=None, shown=None):
        command = click.Command("example", params=parameters(Example, names, shown=shown))
        context = command.make_context("example", ["-n", "x", *args, "one", "there"])
        return context.params, names_stated(context)

    return start


def test_defaults_are_those_of_the_fields(parse):
    settings, given = parse()
    assert from_plain(Example, settings) == Example(kind="one", folder=Path("there"), needed=("x",))
    assert given == {"kind", "folder", "needed"}


def test_values_are_of_the_type_of_their_field(parse):
    settings, given = parse(
        *("--count", "9", "--share", "1", "--flag", "--choice", "b", "--text", "3", "--later", "2", "--nothing", "0.1"),
        *("--place", "p", "--numbers", "1", "--numbers", "2", "--needed", "y"),
    )
    assert settings == {
        **{"kind": "one", "folder": Path("there"), "needed": ("x", "y"), "count": 9, "share": 1.0, "flag": True},
        **{"choice": "b", "text": "3", "later": 2, "nothing": 0.1, "place": Path("p"), "numbers": (1, 2)},
    }
    assert given == settings.keys()
    assert from_plain(Example, settings).later == 2


@pytest.mark.parametrize(
    "args",
    [
        *(("--count", "0"), ("--count", "10"), ("--count", "1.5"), ("--share", "0"), ("--share", "1.1")),
        *(("--choice", "c"), ("--later", "1"), ("--nothing", "0"), ("--numbers", "-1"), ("--inner",)),
    ],
    ids=" ".join,
)
def test_what_the_field_does_not_allow_is_wrong_use(parse, args):
    with pytest.raises(click.UsageError) as refused:
        parse(*args)
    assert args[0] in refused.value.format_message()


def test_an_option_without_default_is_needed():
    command = click.Command("example", params=parameters(Example))
    for args, missing in ((["one", "there"], "'--needed' / '-n'"), (["-n", "x", "one"], "'FOLDER'")):
        with pytest.raises(click.MissingParameter) as refused:
            command.make_context("example", args)
        assert missing in refused.value.format_message()


def test_the_environment_gives_what_the_command_line_does_not(parse, monkeypatch):
    monkeypatch.setenv("EXAMPLE_PLACE", "there")
    settings, given = parse()
    assert settings["place"] == Path("there")
    assert "place" not in given
    settings, given = parse("--place", "here")
    assert settings["place"] == Path("here")
    assert "place" in given


def test_a_default_that_is_decided_later_is_none_and_has_its_name_in_the_help(parse):
    settings, given = parse(shown={"count": "as stored", "needed": "as stored", "numbers": "as stored", "flag": "so"})
    assert (settings["count"], settings["numbers"], settings["flag"]) == (None, (), None)
    assert "count" not in given
    params = parameters(Example, ["count", "later"], shown={"count": "as stored"})
    texts = {param.name: param.help for param in params}
    assert texts["count"] == "How many.  [default: as stored]"
    assert texts["later"] == "Decided later.  [default: as many as fit]"


def test_fields_are_chosen_by_name_arguments_first():
    assert [param.name for param in parameters(Example, ["count", "folder"])] == ["folder", "count"]
    assert "inner" not in [param.name for param in parameters(Example)]


# The commands


def fields_and_parameters(config_class, params):
    """Each setting of a configuration that is an option with its parameter, which there must be."""
    by_name = {param.name: param for param in params}
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    return [(fields[name], known, by_name[name]) for name, known in settings_of(config_class).items() if known.option]


def assert_spelt_and_defaulted(field, known, param, *, later=()):
    if known.argument:
        assert isinstance(param, click.Argument)
        return
    assert isinstance(param, click.Option)
    assert param.opts == list(known.flags or (f"--{field.name}",))
    assert param.help.startswith(known.help)
    assert param.envvar == known.variable
    assert not param.hidden
    if field.name in later or known.shown is not None:
        assert param.default in (None, ())
        assert "[default: " in param.help
    elif field.default is dataclasses.MISSING:
        assert param.required
    else:
        assert param.default == field.default
    if known.choices:
        assert tuple(param.type.choices) == known.choices


@pytest.mark.parametrize("command", [*TRAINING.values(), *EVALUATION.values()])
def test_every_setting_of_a_run_is_an_option_in_front_of_the_stages(command):
    evaluates = command in EVALUATION.values()
    params = {param.name: param for param in command.params}
    for field in dataclasses.fields(RunConfig):
        known = settings_of(RunConfig)[field.name]
        if field.name in ("calibration", "calibration_folds") and evaluates:
            assert field.name not in params  # stored models have theirs
        elif field.name != "save_model":
            assert_spelt_and_defaulted(field, known, params.pop(field.name))
        elif not evaluates:
            assert params.pop("save_model").is_flag
    assert set(params) == {"debug", "version"}


def test_stored_models_are_asked_for_by_the_option_of_the_method():
    for name, flag in (("patchcore", "--save_patchcore_model"), ("fastflow", "--save_model")):
        assert METHODS[name].save_flag == flag
        assert [flag] in [param.opts for param in TRAINING[name].params]


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_of_a_method_is_an_option_of_one_of_its_stages(name):
    method, command = METHODS[name], TRAINING[name]
    assert list(command.commands) == [*(stage.word for stage in method.stages), "dataset"]
    params = [param for stage in method.stages for param in command.commands[stage.word].params]
    visible = [param.name for param in params if not getattr(param, "hidden", False)]
    assert len(visible) == len(set(visible))
    for field, known, param in fields_and_parameters(method.config, params):
        assert_spelt_and_defaulted(field, known, param)
    others = {"use_class_specific", "class_config"} if method.category_file else set()
    options = {setting for setting, known in settings_of(method.config).items() if known.option}
    assert set(visible) == options | others


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_of_the_images_is_an_option_of_the_stage_dataset(name):
    params = TRAINING[name].commands["dataset"].params
    for field, known, param in fields_and_parameters(DatasetConfig, params):
        assert_spelt_and_defaulted(field, known, param, later=("resize", "imagesize"))
    assert {param.name for param in params} == {field.name for field in dataclasses.fields(DatasetConfig)}


@pytest.mark.parametrize("name", METHODS)
def test_a_loader_offers_what_may_be_chosen_anew(name):
    method, command = METHODS[name], EVALUATION[name]
    loader = command.commands[f"{method.stages[0].word}_loader"]
    known = settings_of(method.config)
    anew = {setting for setting in known if known[setting].on_load}
    assert {param.name for param in loader.params} == {"paths", *anew}
    trained = [param for stage in method.stages for param in TRAINING[name].commands[stage.word].params]
    flags = {param.name: param.opts for param in trained}
    for param in loader.params:
        if param.name == "paths":
            assert param.opts == [f"--{method.stages[0].word}_paths", "-p"]
            continue
        assert param.opts == flags[param.name]
        stored = known[param.name].decides  # where and how fast is a matter of the machine
        assert ("[default: as stored]" in param.help) == stored
        assert not stored or param.default is None


@pytest.mark.parametrize("name", METHODS)
def test_the_images_of_an_evaluation_have_all_options_but_those_of_a_training(name):
    params = {param.name: param for param in EVALUATION[name].commands["dataset"].params}
    assert set(params) == {field.name for field in dataclasses.fields(DatasetConfig)}
    for of_a_training in ("augment", "good", "train_val_split"):
        assert params.pop(of_a_training).hidden
    for setting_of_the_models in ("resize", "imagesize", "reduced_decoding"):
        assert params[setting_of_the_models].default is None
        assert "[default: that of the models]" in params[setting_of_the_models].help
    assert params["batch_size"].default == 8
    assert params["num_workers"].default == 8


def settings_told(command, stage, *args):
    context = command.commands[stage].make_context(stage, list(args))
    return {name: value for name, value in context.params.items() if name not in ("use_class_specific", "class_config")}


def test_a_command_line_without_options_gives_the_configurations_defaults(monkeypatch):
    monkeypatch.delenv("PATCHCORE_WEIGHTS", raising=False)
    network = settings_told(run_patchcore, "patch_core", "-b", "net", "-le", "layer2")
    thinning = settings_told(run_patchcore, "sampler", "approx_greedy_coreset")
    expected = PatchCoreConfig(backbones=("net",), layers=(("layer2",),))
    assert from_plain(PatchCoreConfig, settings_from({**network, **thinning})) == expected
    assert from_plain(FastFlowConfig, settings_told(run_fastflow, "fastflow")) == FastFlowConfig()
    run = run_fastflow.make_context("run", ["results", "fastflow"]).params
    run = {name: value for name, value in run.items() if name not in ("debug", "version")}
    assert from_plain(RunConfig, run) == RunConfig(results_path=Path("results"))
    images = settings_told(run_fastflow, "dataset", "-d", "plate", "mpdd", "data")
    expected = DatasetConfig(name="mpdd", path=Path("data"), categories=("plate",), resize=256, imagesize=224)
    assert from_plain(DatasetConfig, {**images, "resize": 256, "imagesize": 224}) == expected


# Every option of version 0.1, so that its command lines go on to run, and those that came since.
RUN = "--gpu --seed --log_group --log_project --save_segmentation_images --save_anomaly_scores --resume --feature_cache"
RUN += " --feature_cache_gib --false_rejects --debug"
IMAGES = "--subdatasets -d --batch_size --num_workers --resize --imagesize --train_val_split --augment"
IMAGES += " --reduced_decoding --good --bad --masks"
SCORING = "--density --position_score --scale_weighting --image_score --top_share"
OPTIONS = {
    (run_patchcore, ""): f"{RUN} --save_patchcore_model --calibration --calibration_folds",
    (run_patchcore, "patch_core"): "--backbone_names -b --layers_to_extract_from -le --pretrain_embed_dimension"
    " --target_embed_dimension --patchsize --anomaly_scorer_num_nn --faiss_on_gpu --faiss_num_workers --precision"
    " --weights --weights_dir --preprocessing --aggregation --patchscore --patchoverlap --patchsize_aggregate -pa",
    (run_patchcore, "sampler"): "--percentage -p",
    (run_patchcore, "dataset"): IMAGES,
    (load_and_evaluate_patchcore, ""): RUN,
    (load_and_evaluate_patchcore, "patch_core_loader"): "--patch_core_paths -p --anomaly_scorer_num_nn --faiss_on_gpu"
    " --faiss_num_workers --weights_dir",
    (load_and_evaluate_patchcore, "dataset"): IMAGES,
    (run_fastflow, ""): f"{RUN} --save_model --calibration --calibration_folds",
    (run_fastflow, "fastflow"): "--backbone -b --layers_to_extract_from -le --steps --kernels --hidden_ratio --clamp"
    " --feature_norm --noise --match_brightness --brightness_jitter --epochs --train_batch_size --learning_rate --lr"
    f" --weight_decay --warmup --gradient_clip --tile --tile_stride {SCORING} --precision --checkpoint_seconds"
    " --use_class_specific --class_config --weights --weights_dir",
    (run_fastflow, "dataset"): IMAGES,
    (load_and_evaluate_fastflow, ""): RUN,
    (load_and_evaluate_fastflow, "fastflow_loader"): f"--fastflow_paths -p {SCORING} --weights_dir",
    (load_and_evaluate_fastflow, "dataset"): IMAGES,
}


@pytest.mark.parametrize(("command", "stage"), OPTIONS)
def test_the_options_that_are_known_are_there_and_no_others(command, stage):
    params = (command.commands[stage] if stage else command).params
    options = [flag for param in params if isinstance(param, click.Option) for flag in param.opts]
    expected = [*OPTIONS[command, stage].split(), *([] if stage else ["--version"])]
    assert sorted(options) == sorted(expected)


@pytest.mark.parametrize("command", [*TRAINING.values(), *EVALUATION.values()])
def test_the_data_is_called_data_path(command, shell):
    ended = shell(command, "dataset", "--help")
    assert ended.code == 0
    assert "[OPTIONS] {mpdd|mvtec|folder} [DATA_PATH]" in " ".join(ended.out.split())
    assert "DATA_PATH holds a folder per category" in " ".join(ended.out.split())


@pytest.mark.parametrize("command", [*TRAINING.values(), *EVALUATION.values()])
def test_the_version_can_be_asked_for(command, shell):
    ended = shell(command, "--version")
    assert ended.code == 0
    assert ended.out.startswith("patchcore, version ")
