"""The commands of a method, built from its value in the registry: one that trains, one that evaluates stored models."""

from __future__ import annotations

import dataclasses
import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from patchcore.cli.errors import OneLineGroup, as_usage_error
from patchcore.cli.stages import (
    StageOptions,
    dataset_stage,
    find_stage,
    loader_stage,
    method_stage,
    run_parameters,
    stored_dataset_stage,
)
from patchcore.config import FEATURE_CACHE_GIB, OWN_PARTS, DatasetConfig, RunConfig
from patchcore.methods.method import Method
from patchcore.settings import from_plain, settings_of
from patchcore.types import PatchCoreError

if TYPE_CHECKING:
    from patchcore.features.workspace import Workspace
    from patchcore.methods.stored_model import StoredModel

log = logging.getLogger(__name__)


def training_command(method: Method) -> OneLineGroup:
    """Train and evaluate a method: options of the run, its stages, the stage dataset."""
    words = [stage.word for stage in method.stages]
    return OneLineGroup(
        chain=True,
        no_args_is_help=False,
        params=run_parameters(method.save_flag),
        help=f"Train {method.title} on good images and evaluate it.\n\nRESULTS_PATH and options come first, then the"
        f" stages {', '.join(words)} and dataset, each with its own --help:\n\n\b\nrun_{method.name}.py [options]"
        f" RESULTS {' ... '.join(words)} ... dataset -d metal_plate mpdd DATAPATH\n\nFor your own"
        " parts: dataset --good FOLDER folder",
        commands=[*(method_stage(stage, method) for stage in method.stages), dataset_stage(method)],
        result_callback=lambda stages, **run: _train(method, stages, **run),
    )


def evaluation_command(method: Method) -> OneLineGroup:
    """Evaluate stored models of a method: options of the run, the stages of the loader and dataset."""
    loader = loader_stage(method)
    return OneLineGroup(
        chain=True,
        no_args_is_help=False,
        params=run_parameters(None),
        help=f"Evaluate stored {method.title} models.\n\nRESULTS_PATH and options come first, then the stages"
        f" {loader.name} and dataset, each with its own --help. With the batch size and threads of the run that stored"
        " a model, its numbers come out to the last digit on the same device.",
        commands=[loader, stored_dataset_stage()],
        result_callback=lambda stages, **run: _evaluate(method, stages, **run),
    )


def _train(method: Method, stages: list[StageOptions], debug: bool, **settings: Any) -> None:
    run = as_usage_error(RunConfig, **settings)
    own = [find_stage(stages, stage.word) for stage in method.stages]
    images = find_stage(stages, "dataset")
    start_logging(debug)
    options = {name: value for stage in own for name, value in stage.settings.items()}
    stated = frozenset().union(*(stage.stated for stage in own))
    config, configs = _configurations(method, options, stated, images.settings["categories"])
    resize, imagesize = method.image_size(config, images.settings["resize"], images.settings["imagesize"])
    dataset = as_usage_error(DatasetConfig, **{**images.settings, "resize": resize, "imagesize": imagesize})
    as_usage_error(method.calibration, run.calibration, splits=dataset.train_val_split < 1)

    from patchcore.category_run import Job

    workspace = _workspace(run, checksums=run.save_model)
    _execute(run, dataset, Job(method=method, configs=configs, workspace=workspace))


def _configurations(
    method: Method, options: Mapping[str, Any], stated: frozenset[str], categories: Sequence[str]
) -> tuple[Any, dict[str, Any]]:
    """The settings of the stages, and those of every category: an option beats the file, the file beats a default."""
    options = dict(options)
    use_file, path = options.pop("use_class_specific", False), options.pop("class_config", None)
    if path and not use_file:
        raise click.UsageError("--class_config has no effect without --use_class_specific")
    settings = as_usage_error(method.settings_from, options)
    if use_file:
        settings["class_specific"] = True
    config = as_usage_error(from_plain, method.config, settings)
    as_usage_error(method.refuse_without_effect, config, stated)
    if not use_file:
        return config, dict.fromkeys(categories, config)
    path, by_category = _read_class_file(method, path)
    configs: dict[str, Any] = {}
    for category in categories:
        if category not in by_category:
            raise PatchCoreError(f"{path}: no settings for {category}; there are some for {', '.join(by_category)}")
        own = {name: value for name, value in by_category[category].items() if name not in stated}
        try:
            configs[category] = from_plain(method.config, {**settings, **own})
            method.refuse_without_effect(configs[category], stated)
        except ValueError as error:
            raise PatchCoreError(f"settings of {category} (see {path}): {error}") from error
    return config, configs


def _read_class_file(method: Method, path: Path | None) -> tuple[Path, dict[str, dict[str, Any]]]:
    """The file, and category -> settings in it.

    Raises:
        PatchCoreError: the file is missing, no YAML, or sets what may not differ by category.
    """
    from patchcore.results.config_file import read_yaml
    from patchcore.system.files import shipped

    path = path or shipped(str(method.category_file))
    allowed = [name for name, known in settings_of(method.config).items() if known.by_category]
    content = read_yaml(path)
    for category, settings in content.items():
        if not isinstance(settings, dict):
            raise PatchCoreError(f"{path}: expected settings by name for {category}, got {settings!r:.80}")
        for name in settings:
            if name not in allowed:
                raise PatchCoreError(f"{path}: {category} sets {name!r}; by category there are {', '.join(allowed)}")
    return path, content


def _evaluate(method: Method, stages: list[StageOptions], debug: bool, **settings: Any) -> None:
    run = as_usage_error(RunConfig, **settings)
    loader = find_stage(stages, f"{method.stages[0].word}_loader")
    images = find_stage(stages, "dataset")
    folders = _model_folders(loader.settings["paths"], images.settings["name"], images.settings["categories"])
    chosen = {name: value for name, value in loader.settings.items() if name in loader.stated and name != "paths"}
    places = {name: value for name, value in loader.settings.items() if name not in loader.stated and value}
    start_logging(debug)

    from patchcore.methods.stored_model import read_model

    models = {}
    for folder in dict.fromkeys(folders.values()):
        model = read_model(folder, {method.name: method}, images.settings["resize"])
        config = dataclasses.replace(model.config, **places)
        try:
            models[folder] = dataclasses.replace(model, config=config).with_settings(chosen)
        except ValueError as error:
            raise click.UsageError(f"{error} ({folder})") from error
    settings = dict(images.settings)
    if settings["name"] == OWN_PARTS and "categories" not in images.stated:  # the model knows of which parts it is
        [(category, folder)] = folders.items()
        category = models[folder].training.category or category
        folders, settings["categories"] = {category: folder}, (category,)
    dataset = _complete_settings(settings, models)

    from patchcore.category_run import Job

    by_category = {category: models[folder] for category, folder in folders.items()}
    for category, model in by_category.items():
        if model.training.category not in (None, category):
            log.warning("%s: the model in %s was trained on %s", category, model.folder, model.training.category)
    configs = {category: model.config for category, model in by_category.items()}
    workspace = _workspace(run, checksums=True)
    _execute(run, dataset, Job(method=method, configs=configs, models=by_category, workspace=workspace))


def _model_folders(paths: tuple[Path, ...], name: str, categories: Sequence[str]) -> dict[str, Path]:
    """Category -> folder of its model: one folder for all, or one per category in their order.

    A folder that has one NAME_CATEGORY in it, as a run's `models` does, stands for that.
    """
    if len(paths) not in (1, len(categories)):
        raise click.UsageError(
            f"expected one model for all categories or one for each: got {len(paths)} models (-p) for"
            f" {len(categories)} categories (-d)"
        )
    folders = {}
    for category, path in zip(categories, paths * len(categories) if len(paths) == 1 else paths, strict=True):
        inside = path / f"{name}_{category}"
        folders[category] = inside if inside.is_dir() else path
    return folders


def _complete_settings(settings: Mapping[str, Any], models: Mapping[Path, StoredModel]) -> DatasetConfig:
    """Complete the settings of the images of an evaluation with the geometry of its models.

    Raises:
        PatchCoreError: the models do not agree, so that one evaluation cannot serve them all.
        click.UsageError: a setting contradicts the models.
    """
    stored = {folder: dataclasses.asdict(model.geometry) for folder, model in models.items()}
    folder, first = next(iter(stored.items()))
    for name in first:
        for other, also in stored.items():
            if also[name] != first[name]:
                raise PatchCoreError(
                    f"the models differ in {name}: {folder} has {first[name]}, {other} has {also[name]}; evaluate them"
                    " in separate runs"
                )
        asked = settings[name]
        if asked is not None and asked != first[name]:
            raise click.UsageError(
                f"{_as_option(name, asked)} contradicts the model in {folder}, which was stored with"
                f" {_as_option(name, first[name])}: leave the option out or use another model"
            )
    return as_usage_error(DatasetConfig, **{**settings, **first})


def _as_option(name: str, value: float | bool) -> str:
    """An option as it is written on the command line."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"no --{name}"
    return f"--{name} {value}"


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


def _workspace(run: RunConfig, *, checksums: bool) -> Workspace:
    """The devices that `--gpu` names, with a line of notice where it has to be the CPU, and the feature cache."""
    from patchcore.features.cache import FeatureCache
    from patchcore.features.workspace import Workspace
    from patchcore.system.devices import choose_devices

    devices, notice = choose_devices(run.gpu)
    if notice:
        log.info(notice)
    cache = None
    if run.feature_cache is not None:
        cache = FeatureCache(run.feature_cache, int((run.feature_cache_gib or FEATURE_CACHE_GIB) * 2**30))
    return Workspace(devices, cache, checksums=checksums)


def _execute(run: RunConfig, dataset: DatasetConfig, job: Any) -> None:
    """Run the experiment, print the closing table, and exit with 1 if a category failed."""
    from patchcore.experiment import run_experiment
    from patchcore.results.tables import format_results, format_verdicts

    command = shlex.join([sys.executable, *sys.argv])
    summary = run_experiment(run, dataset, job, command=command)
    if summary.rows:
        click.echo(format_results(summary.rows))
        if verdicts := format_verdicts(summary.rows):
            click.echo(verdicts)
        click.echo(f"results: {summary.folder.results}")
        for picture in summary.highest.values():
            count = sum(1 for _ in picture.parent.iterdir())
            click.echo(f"pictures: {count} in {picture.parent}, the highest score in {picture.name}")
    if summary.failures:
        failed = ", ".join(summary.failures)
        raise PatchCoreError(f"{len(summary.failures)} of {len(dataset.categories)} categories failed: {failed}")
