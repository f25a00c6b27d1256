"""The stages of FastFlow, and the runs that they describe."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from patchcore.cli.run import (
    OneLineErrors,
    cache_for,
    check_categories,
    check_weights_dir,
    checked,
    dataset_options,
    devices_for,
    execute,
    given,
    run_options,
    stage_of,
    start_logging,
    weights_dir,
)
from patchcore.cli.stored import StoredDataset, model_folders, settled, stored_dataset_stage
from patchcore.config import WEIGHTS, DatasetConfig, RunConfig, TrainedOn
from patchcore.methods.fastflow.config import (
    DENSITIES,
    FEATURE_NORMS,
    IMAGE_SCORES,
    KERNELS,
    POSITION_SCORES,
    PRECISIONS,
    SCALE_WEIGHTINGS,
    FastFlowConfig,
    FastFlowLoaderConfig,
    FastFlowScoring,
)
from patchcore.methods.fastflow.model_files import read_model
from patchcore.methods.fastflow.presets import PRESETS, preset_of
from patchcore.types import PatchCoreError

# Ships with the repository, beside its scripts.
CLASS_FILE = Path(__file__).resolve().parents[3] / "configs" / "fastflow_mpdd.yaml"

# What a file by category may set: nothing that the backbone's features depend on, which all categories share.
CLASS_SPECIFIC = (
    *("steps", "kernels", "hidden_ratio", "clamp", "feature_norm", "noise", "match_brightness", "brightness_jitter"),
    *("epochs", "train_batch_size", "learning_rate", "weight_decay", "warmup", "gradient_clip"),
    *(field.name for field in dataclasses.fields(FastFlowScoring)),
)


@dataclass(frozen=True, kw_only=True)
class FastFlowStage:
    """What the stage fastflow says: all settings, which of them were given, and the file for the others."""

    settings: Mapping[str, Any]
    given: frozenset[str]
    class_file: Path | None


@dataclass(frozen=True, kw_only=True)
class OpenDataset:
    """The images of a training whose size may be left to the backbone; `resize` and `imagesize` None then."""

    resize: int | None
    imagesize: int | None
    settings: Mapping[str, Any]

    def settled(self, backbone: str) -> DatasetConfig:
        """The images, at the size that the backbone's preset says where the command line does not."""
        preset = preset_of(backbone)
        imagesize = self.imagesize or min(preset.imagesize, self.resize or preset.imagesize)
        resize = self.resize or max(preset.resize, imagesize)
        return checked(DatasetConfig, resize=resize, imagesize=imagesize, **self.settings)


def scoring_options(**shown: str) -> Callable[[Callable], Callable]:
    """How densities become scores, for training (with defaults) and for stored models (those stored)."""

    def option(name: str, help_text: str, **settings: Any) -> Callable:
        if shown:
            return click.option(
                f"--{name}", default=None, help=f"{help_text}  [default: {shown['default']}]", **settings
            )
        default = getattr(FastFlowScoring(), name)
        return click.option(f"--{name}", default=default, show_default=True, help=help_text, **settings)

    options = (
        option(
            "density",
            "What makes a position anomalous: its latent under the standard normal, or its full density, which adds the"
            " log-determinant.",
            type=click.Choice(DENSITIES),
        ),
        option(
            "position_score",
            "One minus the likelihood per dimension, or the negative log-likelihood, which has no bound.",
            type=click.Choice(POSITION_SCORES),
        ),
        option(
            "scale_weighting",
            "Maps of several scales are averaged after they were standardised on the training set, or as they are.",
            type=click.Choice(SCALE_WEIGHTINGS),
        ),
        option(
            "image_score",
            "Of an image's map its maximum, its mean, or the mean of its top share.",
            type=click.Choice(IMAGE_SCORES),
        ),
        option("top_share", "That share.", type=click.FloatRange(0, 1, min_open=True)),
    )

    def add(command: Callable) -> Callable:
        for decorate in reversed(options):
            command = decorate(command)
        return command

    return add


def _setting(name: str, help_text: str, *aliases: str, preset: bool = False, **settings: Any) -> Callable:
    """An option of the field of that name; the default is the field's own, or the backbone's preset."""
    if preset:
        return click.option(
            f"--{name}", *aliases, default=None, help=f"{help_text}  [default: the backbone's]", **settings
        )
    default = next(field.default for field in dataclasses.fields(FastFlowConfig) if field.name == name)
    return click.option(f"--{name}", *aliases, default=default, show_default=True, help=help_text, **settings)


@click.command(
    "fastflow",
    epilog=f"Backbones with a preset of the paper: {', '.join(PRESETS)}. Any other name that run_patchcore.py knows, or"
    " timm/NAME, goes with the layers at reductions 4, 8 and 16.",
)
@click.option("--backbone", "-b", default="resnet18", show_default=True, help="Backbone.")
@click.option(
    "--layers_to_extract_from",
    "-le",
    "layers",
    multiple=True,
    help="Layer with a flow of its own; repeat for several.  [default: the backbone's]",
)
@_setting("steps", "Coupling steps of a flow.", preset=True, type=click.IntRange(min=1))
@_setting(
    "kernels", "Convolutions of the couplings, in turn where there are two.", preset=True, type=click.Choice(KERNELS)
)
@_setting(
    "hidden_ratio",
    "Width of the couplings' subnets, as a share of the channels that go in.",
    preset=True,
    type=click.FloatRange(min=0, min_open=True),
)
@_setting("clamp", "Bound of the logarithm of a coupling's scale.", type=click.FloatRange(min=0, min_open=True))
@_setting(
    "feature_norm",
    "Standardise every channel with the training set's statistics, or layer-normalise every image.",
    type=click.Choice(FEATURE_NORMS),
)
@_setting(
    "noise", "Standard deviation of the noise on normalised features while training.", type=click.FloatRange(min=0)
)
@click.option(
    "--match_brightness", is_flag=True, help="Bring every image to the median brightness of the training images."
)
@_setting(
    "brightness_jitter",
    "Share by which training images become brighter or darker at random.",
    type=click.FloatRange(0, 1, max_open=True),
)
@_setting("epochs", "Times that every training image is seen.", type=click.IntRange(min=1))
@_setting("train_batch_size", "Images (or tiles) per step of the training.", type=click.IntRange(min=1))
@_setting("learning_rate", "Highest learning rate of Adam.", "--lr", type=click.FloatRange(min=0, min_open=True))
@_setting("weight_decay", "Weight decay of Adam.", type=click.FloatRange(min=0))
@_setting(
    "warmup", "Share of the training in which the learning rate rises.", type=click.FloatRange(0, 1, max_open=True)
)
@_setting("gradient_clip", "Largest norm of a flow's gradient.", type=click.FloatRange(min=0, min_open=True))
@_setting("tile", "Cut images into tiles of this side.  [default: whole images]", type=click.IntRange(min=1))
@_setting("tile_stride", "Pixels from one tile to the next.  [default: the tile's side]", type=click.IntRange(min=1))
@scoring_options()
@_setting(
    "precision",
    "bfloat16 for the backbone and the subnets of the flows, or for none; auto for the subnets alone, on CUDA only.",
    type=click.Choice(PRECISIONS),
)
@_setting(
    "checkpoint_seconds", "Seconds between the states that --resume can go on from.", type=click.FloatRange(min=0)
)
@click.option(
    "--use_class_specific",
    is_flag=True,
    help="Take hyper-parameters by category from --class_config; an option given here beats the file.",
)
@click.option(
    "--class_config",
    default=CLASS_FILE,
    show_default="configs/fastflow_mpdd.yaml",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file of --use_class_specific.",
)
@_setting("weights", "random tries out the structure without a download.", type=click.Choice(WEIGHTS))
@weights_dir
@click.pass_context
def fastflow_stage(ctx: click.Context, use_class_specific: bool, class_config: Path, **settings: Any) -> FastFlowStage:
    """Choose the backbone, the flows on it, their training, and how they score."""
    if given(ctx, "class_config") and not use_class_specific:
        raise click.UsageError("--class_config has no effect without --use_class_specific")
    if given(ctx, "top_share") and settings["image_score"] != "top":
        raise click.UsageError(f"--top_share has no effect with --image_score {settings['image_score']}")
    check_weights_dir(ctx, settings["weights"])
    return FastFlowStage(
        settings=settings,
        given=frozenset(name for name in settings if given(ctx, name)),
        class_file=class_config if use_class_specific else None,
    )


@click.command("dataset")
@dataset_options(resize=None, imagesize=None, shown="the backbone's")
def open_dataset_stage(
    data_path: Path, categories: tuple[str, ...], resize: int | None, imagesize: int | None, **settings: Any
) -> OpenDataset:
    """Choose the images: NAME says the layout, DATA_PATH holds a folder per category."""
    return OpenDataset(
        resize=resize, imagesize=imagesize, settings={"path": data_path, "categories": categories, **settings}
    )


@click.group(cls=OneLineErrors, chain=True, context_settings={"help_option_names": ["-h", "--help"]})
@run_options
@click.option("--save_model", is_flag=True, help="Store the flows of every category.")
def run_fastflow(**_: Any) -> None:
    """Train FastFlow on good images and evaluate it.

    RESULTS_PATH and options come first, then the stages fastflow and dataset, each with its own --help:

    \b
    run_fastflow.py [options] RESULTS fastflow --backbone resnet18 dataset -d metal_plate mpdd DATAPATH
    """


@run_fastflow.result_callback()
def _run(stages: list[Any], debug: bool, **settings: Any) -> None:
    run = checked(RunConfig, **settings)
    stage = stage_of(stages, FastFlowStage, "fastflow")
    dataset = stage_of(stages, OpenDataset, "dataset").settled(stage.settings["backbone"])
    config, configs = configurations(stage, dataset.categories)
    start_logging(debug)

    from patchcore.datasets.loader import VIEWS
    from patchcore.methods.fastflow.detector import TrainedFastFlow

    device = _one_device(run)
    check_categories(dataset)
    trained_on = TrainedOn.of(dataset, run.seed)
    views = VIEWS if dataset.augment else 1
    execute(run, dataset, TrainedFastFlow(config, configs, trained_on, device, views, cache_for(run)))


def configurations(stage: FastFlowStage, categories: Sequence[str]) -> tuple[FastFlowConfig, dict[str, FastFlowConfig]]:
    """The settings of the stage, and those of every category: an option beats the file, the file beats the preset."""
    preset = preset_of(stage.settings["backbone"]).flow
    common = {**stage.settings, **{name: value for name, value in preset.items() if not stage.settings[name]}}
    common["class_specific"] = stage.class_file is not None
    by_category = {} if stage.class_file is None else _read_class_file(stage.class_file)
    configs = {}
    for category in categories:
        if stage.class_file is not None and category not in by_category:
            raise PatchCoreError(
                f"{stage.class_file}: no settings for {category}; there are some for {', '.join(by_category)}"
            )
        special = {name: value for name, value in by_category.get(category, {}).items() if name not in stage.given}
        try:
            configs[category] = _configuration({**common, **special})
        except (TypeError, ValueError) as error:
            if not special:
                raise click.UsageError(str(error)) from error
            raise PatchCoreError(f"settings of {category} (see {stage.class_file}): {error}") from error
    return checked(_configuration, settings=common), configs


def _configuration(settings: Mapping[str, Any]) -> FastFlowConfig:
    names = [field.name for field in dataclasses.fields(FastFlowScoring)]
    scoring = FastFlowScoring(**{name: settings[name] for name in names})
    return FastFlowConfig(scoring=scoring, **{name: value for name, value in settings.items() if name not in names})


def _read_class_file(path: Path) -> dict[str, dict[str, Any]]:
    """Category -> settings.

    Raises:
        PatchCoreError: the file is missing, no YAML, or sets something else than `CLASS_SPECIFIC`.
    """
    from patchcore.results.run_folder import read_yaml

    content = read_yaml(path)
    for category, settings in content.items():
        if not isinstance(settings, dict):
            raise PatchCoreError(f"{path}: expected settings by name for {category}, got {settings!r:.80}")
        for name in settings:
            if name not in CLASS_SPECIFIC:
                raise PatchCoreError(
                    f"{path}: {category} sets {name!r}; by category there are {', '.join(CLASS_SPECIFIC)}"
                )
    return content


def _one_device(run: RunConfig) -> Any:
    """The one device of a FastFlow run."""
    devices = devices_for(run)
    if len(devices) > 1:
        raise PatchCoreError(
            f"{len(devices)} GPUs for one network: the others have no work; give one --gpu, and other categories to a"
            " second run"
        )
    return devices[0]


for _stage in (fastflow_stage, open_dataset_stage):
    run_fastflow.add_command(_stage)


@click.command("fastflow_loader")
@click.option(
    "--fastflow_paths",
    "-p",
    "paths",
    multiple=True,
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Model folder, or a run's folder models. Once for all categories, or repeated in the order of -d.",
)
@scoring_options(default="as stored")
@weights_dir
def fastflow_loader_stage(paths: tuple[Path, ...], weights_dir: Path | None, **scoring: Any) -> FastFlowLoaderConfig:
    """Choose the stored models. Backbone, flows, tiles and image size come with them; scores may be chosen anew."""
    chosen = {name: value for name, value in scoring.items() if value is not None}
    return checked(FastFlowLoaderConfig, paths=paths, weights_dir=weights_dir, scoring=chosen)


@click.group(cls=OneLineErrors, chain=True, context_settings={"help_option_names": ["-h", "--help"]})
@run_options
def load_and_evaluate_fastflow(**_: Any) -> None:
    """Evaluate stored FastFlow models.

    RESULTS_PATH and options come first, then the stages fastflow_loader and dataset, each with its own --help.
    With the batch size and threads of the run that stored a model, its numbers come out to the last digit on the same
    device.
    """


@load_and_evaluate_fastflow.result_callback()
@click.pass_context
def _evaluate(ctx: click.Context, stages: list[Any], debug: bool, **settings: Any) -> None:
    run = checked(RunConfig, **settings)
    loader = stage_of(stages, FastFlowLoaderConfig, "fastflow_loader")
    images = stage_of(stages, StoredDataset, "dataset")
    folders = model_folders(loader.paths, images)
    start_logging(debug)
    models = {folder: read_model(folder, loader) for folder in dict.fromkeys(folders.values())}
    trained_on = {folder: model.trained_on for folder, model in models.items()}
    run, dataset = settled(run, images, trained_on, seed_given=given(ctx, "seed"))

    from patchcore.methods.fastflow.detector import StoredFastFlow

    device = _one_device(run)
    check_categories(dataset)
    by_category = {category: models[folder] for category, folder in folders.items()}
    execute(run, dataset, StoredFastFlow(by_category, loader, device, cache_for(run)))


for _stage in (fastflow_loader_stage, stored_dataset_stage):
    load_and_evaluate_fastflow.add_command(_stage)
