"""What all run scripts share: run options, the dataset stage, how stages come together, and how errors end."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
from click.core import ParameterSource

from patchcore.config import DatasetConfig, RunConfig
from patchcore.datasets import DATASETS
from patchcore.types import PatchCoreError

if TYPE_CHECKING:
    import torch

    from patchcore.experiment import Method
    from patchcore.features.cache import FeatureCache

log = logging.getLogger(__name__)

Config = TypeVar("Config")


class OneLineCommand(click.Command):
    """A command that ends with one line and exit code 1 (2 for usage) instead of a traceback, unless `--debug`."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        arguments = list(kwargs.pop("args", None) or (args[0] if args else None) or sys.argv[1:])
        debug = "--debug" in arguments
        try:
            code = super().main(arguments, *args[1:], **kwargs, standalone_mode=False)
        except click.Abort:
            click.echo("interrupted", err=True)
            code = 130
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            hint = f" (see {context.command_path} --help)" if context else ""
            click.echo(f"error: {_one_line(_misplaced(error) or error.format_message())}{hint}", err=True)
            code = error.exit_code
        except Exception as error:  # the last place where an error can still be told in one line
            if debug:
                traceback.print_exc()
            known = isinstance(error, PatchCoreError)
            hint = "" if known or debug else " (--debug shows where)"
            click.echo(f"error: {'' if known else f'{type(error).__name__}: '}{_one_line(str(error))}{hint}", err=True)
            code = 1
        sys.exit(code if isinstance(code, int) else 0)


class OneLineErrors(OneLineCommand, click.Group):
    """A group of stages that ends like a `OneLineCommand`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] in self.commands and {"-h", "--help"} & set(args):
            args.insert(0, "RESULTS_PATH")  # the help of a stage needs no results folder
        return super().parse_args(ctx, args)


def run_script(command: OneLineCommand, name: str) -> NoReturn:
    """Run a command as a process of its own, and leave at once when it has ended.

    Taking torch apart at the interpreter's end takes half a second, of no use to anybody: all files are closed by then.
    """
    try:
        command(prog_name=name)
    except SystemExit as ended:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # who read it has gone
                stream.flush()
        os._exit(ended.code if isinstance(ended.code, int) else 0)
    raise AssertionError("a OneLineCommand ends with SystemExit")


def _misplaced(error: click.ClickException) -> str | None:
    """What to say of an option that stands behind the wrong stage; None for any other error."""
    if not isinstance(error, click.NoSuchOption) or error.ctx is None:
        return None
    group = (error.ctx.parent or error.ctx).command
    stages = dict(getattr(group, "commands", {}))
    for name, command in stages.items():
        if command is not error.ctx.command and _has_option(command, error.option_name):
            return f"{error.option_name} is an option of the stage {name}: put it behind that word"
    if group is not error.ctx.command and _has_option(group, error.option_name):
        return f"{error.option_name} is an option of the run: put it in front of the results folder"
    return None


def _has_option(command: click.Command, name: str) -> bool:
    return any(name in parameter.opts for parameter in command.params if not getattr(parameter, "hidden", False))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def checked(make: type[Config], **settings: Any) -> Config:
    """Make a configuration; a setting that it refuses is a usage error."""
    try:
        return make(**settings)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


_RUN_OPTIONS: Sequence[Callable] = (
    click.argument("results_path", type=click.Path(file_okay=False, path_type=Path)),
    click.option(
        "--gpu",
        type=click.IntRange(min=0),
        multiple=True,
        default=(0,),
        show_default=True,
        help="CUDA device; without CUDA the run takes the CPU and says so. Repeat to spread an ensemble.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Source of all random choices.",
    ),
    click.option("--log_group", default="group", show_default=True, help="Folder of this run."),
    click.option("--log_project", default="project", show_default=True, help="Folder of its group of runs."),
    click.option(
        "--save_segmentation_images", is_flag=True, help="Write image, mask and heat map of every test image."
    ),
    click.option("--save_anomaly_scores", is_flag=True, help="Write the score of every test image."),
    click.option(
        "--resume",
        is_flag=True,
        help="Go on with the newest run of this group: what is finished is kept. Starts one where there is none.",
    ),
    click.option(
        "--feature_cache",
        default=None,
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder to keep feature maps in, so that later runs on the same images need no backbone pass.",
    ),
    click.option(
        "--feature_cache_gib",
        default=None,
        show_default="20",
        type=click.FloatRange(min=0, min_open=True),
        help="Size of that folder; what was used longest ago is deleted.",
    ),
    click.option("--debug", is_flag=True, help="Show the traceback of an error."),
)


def run_options(command: Callable) -> Callable:
    """The arguments and options of a run, in front of the stages."""
    for option in reversed(_RUN_OPTIONS):
        command = option(command)
    return command


_IMAGE_OPTIONS: Sequence[Callable] = (
    click.argument("name", type=click.Choice(sorted(DATASETS))),
    click.argument("data_path", type=click.Path(file_okay=False, path_type=Path)),
    click.option(
        "--subdatasets",
        "-d",
        "categories",
        multiple=True,
        required=True,
        help="Category, a folder of DATA_PATH. Repeat for several.",
    ),
    click.option("--batch_size", default=8, show_default=True, type=click.IntRange(min=1), help="Images at a time."),
    click.option(
        "--num_workers",
        default=8,
        show_default=True,
        type=click.IntRange(min=0),
        help="Threads that read images.",
    ),
)


def image_options(command: Callable) -> Callable:
    """The arguments and options of every dataset stage, whether a model is trained on the images or stored already."""
    for option in reversed(_IMAGE_OPTIONS):
        command = option(command)
    return command


def dataset_options(
    resize: int | None = 256, imagesize: int | None = 224, shown: str | bool = True
) -> Callable[[Callable], Callable]:
    """The arguments and options of a dataset stage of training; None, `shown` so, leaves the image size open."""
    options = (
        click.option(
            "--resize",
            default=resize,
            show_default=shown,
            type=click.IntRange(min=1),
            help="Shorter side after resizing.",
        ),
        click.option(
            "--imagesize",
            default=imagesize,
            show_default=shown,
            type=click.IntRange(min=1),
            help="Side of the centre crop.",
        ),
        click.option(
            "--train_val_split",
            default=1.0,
            show_default=True,
            type=click.FloatRange(0, 1, min_open=True),
            help="Share of the training images to train on; the others set the threshold.",
        ),
        click.option(
            "--augment", is_flag=True, help="Train on the flips and right-angle turns of every image as well."
        ),
        click.option(
            "--reduced_decoding",
            is_flag=True,
            help="Decode JPEG files at the smallest scale of at least twice --resize: faster for large ones, almost"
            " the same pixels.",
        ),
    )

    def add(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return image_options(command)

    return add


@click.command("dataset")
@dataset_options()
def dataset_stage(data_path: Path, categories: tuple[str, ...], **settings: Any) -> DatasetConfig:
    """Choose the images: NAME says the layout, DATA_PATH holds a folder per category."""
    return checked(DatasetConfig, path=data_path, categories=categories, **settings)


# An option of every stage that loads a backbone.
weights_dir = click.option(
    "--weights_dir",
    default=None,
    envvar="PATCHCORE_WEIGHTS",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder with weight files, where they cannot be downloaded.  [$PATCHCORE_WEIGHTS]",
)


def check_weights_dir(ctx: click.Context, weights: str) -> None:
    """Refuse a folder of weights on the command line where none are read."""
    if weights == "random" and ctx.get_parameter_source("weights_dir") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--weights_dir has no effect with --weights random")


def stage_of(stages: Sequence[Any], kind: type[Config], name: str) -> Config:
    """The one configuration of a kind among those that the stages returned."""
    found = [stage for stage in stages if isinstance(stage, kind)]
    if len(found) != 1:
        raise click.UsageError(f"expected the stage {name} once, got it {len(found)} times")
    return found[0]


def given(ctx: click.Context, name: str) -> bool:
    """Whether an option was set on the command line rather than by default."""
    return ctx.get_parameter_source(name) is not ParameterSource.DEFAULT


def start_logging(debug: bool) -> None:
    """Send the package's messages to standard error, past the progress bars; details go to `run.log` only."""
    package = logging.getLogger("patchcore")
    package.setLevel(logging.DEBUG)
    package.handlers = [_Terminal(logging.DEBUG if debug else logging.INFO)]
    package.propagate = False


class _Terminal(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        tqdm.write(f"{prefix}{self.format(record)}", file=sys.stderr)


def devices_for(run: RunConfig) -> list[torch.device]:
    """The devices that `--gpu` names, with a line of notice where it has to be the CPU."""
    from patchcore.system.devices import choose_devices

    devices, notice = choose_devices(run.gpu)
    if notice:
        log.info(notice)
    return devices


def cache_for(run: RunConfig) -> FeatureCache | None:
    """The cache of feature maps that `--feature_cache` names, if it does."""
    from patchcore.features.cache import DEFAULT_GIB, FeatureCache

    if run.feature_cache is None:
        return None
    return FeatureCache(run.feature_cache, int((run.feature_cache_gib or DEFAULT_GIB) * 2**30))


def check_categories(dataset: DatasetConfig) -> None:
    """Look at the folders of all categories, before any time goes into backbones."""
    from patchcore.datasets.layout import scan_category

    for category in dataset.categories:
        scan_category(dataset.path, category)


def execute(run: RunConfig, dataset: DatasetConfig, method: Method) -> None:
    """Run the experiment, print the closing table, and exit with 1 if a category failed."""
    from patchcore.experiment import run_experiment
    from patchcore.results.run_folder import table

    command = shlex.join([sys.executable, *sys.argv])
    summary = run_experiment(run, dataset, method, command=command)
    if summary.rows:
        click.echo(table(summary.rows))
        click.echo(f"results: {summary.folder / 'results.csv'}")
        for row in summary.rows if run.save_segmentation_images else ():
            folder = summary.folder / "segmentation_images" / row
            pictures = sorted(folder.iterdir(), key=lambda path: path.stem.rpartition("_score")[2])
            click.echo(f"pictures: {len(pictures)} in {folder}, the highest score in {pictures[-1].name}")
    if summary.failures:
        failed = ", ".join(summary.failures)
        raise PatchCoreError(f"{len(summary.failures)} of {len(dataset.categories)} categories failed: {failed}")
