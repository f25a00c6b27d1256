"""The stages behind a run's options: click commands that return their settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from patchcore.cli.errors import HELP, as_usage_error
from patchcore.cli.options import names_stated, parameters
from patchcore.config import OWN_PARTS, DatasetConfig, RunConfig, category_of, check_layout
from patchcore.methods.method import Method, Stage
from patchcore.settings import settings_of

_IMAGES = "Choose the images: NAME says the layout, DATA_PATH holds a folder per category."
_OF_THE_MODELS = "that of the models"
_REDUCED_DECODING_OF_STORED = "Decode JPEG files at a smaller scale."  # the training's help would mislead
_OF_A_TRAINING = {  # what an evaluation refuses, and why
    "augment": "it adds views of training images",
    "good": "those are images to learn from; --bad are images to test on",
    "train_val_split": "it holds training images out",
}
_OF_A_RUN = ("calibration", "calibration_folds")  # that trains; a stored model has its calibration


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """The settings of a stage by name, and which of them stand on the command line."""

    word: str
    settings: Mapping[str, Any]
    stated: frozenset[str]


def run_parameters(save_flag: str | None) -> list[click.Parameter]:
    """The arguments and options of a run, in front of the stages; no flag where stored models are evaluated."""
    names = [name for name in settings_of(RunConfig) if name != "save_model" and (save_flag or name not in _OF_A_RUN)]
    params = parameters(RunConfig, names)
    if save_flag:
        text = settings_of(RunConfig)["save_model"].help
        params.append(click.Option([save_flag, "save_model"], is_flag=True, help=text))
    return [*params, click.Option(["--debug"], is_flag=True, help="Show the traceback of an error.")]


def method_stage(stage: Stage, method: Method) -> click.Command:
    """A stage in which settings of a method are given."""
    params = parameters(method.config, stage.settings)
    if method.category_file and stage is method.stages[0]:
        params += _category_file_options(method.category_file)
    params += [_option_without_effect(flags, value) for flags, value in stage.ignored.items()]
    return _stage(stage.word, params, stage.help, epilog=stage.epilog)


def dataset_stage(method: Method) -> click.Command:
    """The images of a training, at the size that the method chooses where none is given."""
    shown = dict(zip(("resize", "imagesize"), method.image_size_shown, strict=True))
    text = (
        f"{_IMAGES}\n\nWith the NAME {OWN_PARTS} there is no DATA_PATH: --good FOLDER [--bad FOLDER] [--masks FOLDER]"
        " say where the images of your own parts are."
    )
    params = _image_parameters(settings_of(DatasetConfig), shown)
    return _stage("dataset", params, text, complete=lambda settings: _complete_layout(settings, needed="good"))


def stored_dataset_stage() -> click.Command:
    """The images of an evaluation; their geometry comes with the models."""
    shown = dict.fromkeys(("resize", "imagesize", "reduced_decoding"), _OF_THE_MODELS)
    params = _image_parameters([name for name in settings_of(DatasetConfig) if name not in _OF_A_TRAINING], shown)
    for param in params:
        if param.name == "reduced_decoding":
            param.help = f"{_REDUCED_DECODING_OF_STORED}  [default: {_OF_THE_MODELS}]"
    refused = [param for param in parameters(DatasetConfig, _OF_A_TRAINING) if isinstance(param, click.Option)]
    for param in refused:
        param.hidden, param.expose_value, param.callback = True, False, _refuse_of_a_training
    return _stage(
        "dataset",
        [*params, *refused],
        f"{_IMAGES} With the NAME {OWN_PARTS} there is none, but --bad FOLDER [--masks FOLDER].\n\nOnly test images are"
        " read. The geometry is stored with the models. It may be given, but not differ.",
        complete=lambda settings: _complete_layout(settings, needed="bad"),
    )


def _image_parameters(names: Iterable[str], shown: Mapping[str, str]) -> list[click.Parameter]:
    params = parameters(DatasetConfig, names, shown=shown)
    for param in params:
        if param.name == "path":
            param.metavar = "[DATA_PATH]"
    return params


def _complete_layout(settings: dict[str, Any], *, needed: str) -> None:
    """See that a layout is whole, and name the category of one's own parts after the folder that is `needed`."""
    if settings["name"] == OWN_PARTS:
        if settings[needed] is None:
            raise click.UsageError(f"{OWN_PARTS} needs --{needed} FOLDER")
        settings["categories"] = settings["categories"] or (as_usage_error(category_of, settings[needed]),)
    layout = ("name", "path", "categories", "good", "bad", "masks")
    as_usage_error(check_layout, **{name: settings.get(name) for name in layout})


def loader_stage(method: Method) -> click.Command:
    """The stored models of an evaluation, and the settings that are chosen anew for them."""
    first = method.stages[0].word
    paths = click.Option(
        [f"--{first}_paths", "-p", "paths"],
        multiple=True,
        required=True,
        type=click.Path(file_okay=False, path_type=Path),
        help="Model folder, or a run's folder models. Once for all categories, or repeated in the order of -d.",
    )
    known = settings_of(method.config)
    names = [name for name in known if known[name].on_load]
    shown = {name: "as stored" for name in names if known[name].decides}  # the others are not stored
    params = parameters(method.config, names, shown=shown)
    return _stage(f"{first}_loader", [paths, *params], method.loader_help)


def find_stage(stages: Sequence[StageOptions], word: str) -> StageOptions:
    """The options of the one stage of that word."""
    found = [stage for stage in stages if stage.word == word]
    if len(found) != 1:
        raise click.UsageError(f"expected the stage {word} once, got it {len(found)} times")
    return found[0]


def _stage(
    word: str,
    params: Sequence[click.Parameter],
    help_text: str,
    epilog: str = "",
    complete: Callable[[dict[str, Any]], None] = lambda settings: None,
) -> click.Command:
    """A command that returns its settings, which `complete` may check and change."""

    @click.pass_context
    def collect(ctx: click.Context, **settings: Any) -> StageOptions:
        complete(settings)
        return StageOptions(word=word, settings=settings, stated=names_stated(ctx))

    return click.Command(
        word, params=list(params), callback=collect, help=help_text, epilog=epilog, context_settings=HELP
    )


def _category_file_options(name: str) -> list[click.Parameter]:
    return [
        click.Option(
            ["--use_class_specific"],
            is_flag=True,
            help="Take hyper-parameters by category from --class_config; an option given here beats the file.",
        ),
        click.Option(
            ["--class_config"],
            type=click.Path(dir_okay=False, path_type=Path),
            help=f"The file of --use_class_specific.  [default: configs/{name}]",
        ),
    ]


def _option_without_effect(flags: Sequence[str], value: Any) -> click.Option:
    """An option of the original's that never had an effect, hidden, accepted at its default only."""

    def refuse(ctx: click.Context, option: click.Parameter, got: Any) -> None:
        if got != value:
            shown = " ".join(map(str, got)) if isinstance(got, tuple) else got
            cure = "leave it out" if value == () else f"leave it out or at {value}"
            raise click.UsageError(
                f"{flags[0]} {shown}: this option never had an effect in the original and is not implemented; {cure}"
            )

    several = isinstance(value, tuple)
    kind = int if several else type(value)
    return click.Option(
        list(flags), default=value, type=kind, multiple=several, hidden=True, expose_value=False, callback=refuse
    )


def _refuse_of_a_training(ctx: click.Context, option: click.Parameter, value: Any) -> None:
    if ctx.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE:
        reason = _OF_A_TRAINING[str(option.name)]
        raise click.UsageError(f"--{option.name}: {reason}, but stored models are not trained again; leave it out")
