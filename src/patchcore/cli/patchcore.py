"""The stages of PatchCore, and the run that they describe."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from patchcore.backbones.registry import BACKBONES
from patchcore.cli.run import (
    OneLineErrors,
    cache_for,
    check_categories,
    check_weights_dir,
    checked,
    dataset_stage,
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
from patchcore.methods.patchcore.config import (
    BACKBONE_PRECISIONS,
    SAMPLER_NAMES,
    PatchCoreConfig,
    PatchCoreLoaderConfig,
    SamplerConfig,
)
from patchcore.methods.patchcore.model_files import read_model

# Options that the original took and did nothing with, but one: images did score the max of their patches. Old command
# lines run as long as they leave them where they were.
_WITHOUT_EFFECT = (
    (("--preprocessing",), {"default": "mean"}),
    (("--aggregation",), {"default": "mean"}),
    (("--patchscore",), {"default": "max"}),
    (("--patchoverlap",), {"default": 0.0, "type": float}),
    (("--patchsize_aggregate", "-pa"), {"default": (), "type": int, "multiple": True}),
)


def options_without_effect(command: Callable) -> Callable:
    """Accept the original's options that never had an effect, hidden, at their defaults only."""

    def refuse(default: Any, ctx: click.Context, option: click.Parameter, value: Any) -> None:
        if value != default:
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
            cure = "leave it out" if default == () else f"leave it out or at {default}"
            raise click.UsageError(
                f"{option.opts[0]} {shown}: this option never had an effect in the original and is not implemented;"
                f" {cure}"
            )

    for names, settings in _WITHOUT_EFFECT:
        callback = partial(refuse, settings["default"])
        command = click.option(*names, **settings, hidden=True, expose_value=False, callback=callback)(command)
    return command


# Options that training and loading share.
faiss_on_gpu = click.option("--faiss_on_gpu", is_flag=True, help="Keep the memory bank on the GPU and search it there.")
faiss_num_workers = click.option(
    "--faiss_num_workers",
    default=None,
    type=click.IntRange(min=1),
    help="Threads of the search on the CPU.  [default: all cores]",
)


@click.command(
    "patch_core",
    epilog=f"Backbones: {', '.join(sorted(BACKBONES))}; any model of timm as timm/NAME. NAME.seed-N sets the seed of"
    " random weights.",
)
@click.option(
    "--backbone_names",
    "-b",
    "backbones",
    multiple=True,
    required=True,
    help="Backbone. Repeat for an ensemble.",
)
@click.option(
    "--layers_to_extract_from",
    "-le",
    "layers",
    multiple=True,
    required=True,
    help="Layer, such as layer2; of an ensemble 0.layer2, 1.layer3 ... Repeat for several; the first sets the grid.",
)
@click.option(
    "--pretrain_embed_dimension",
    default=1024,
    show_default=True,
    type=click.IntRange(min=1),
    help="Values per patch and layer.",
)
@click.option(
    "--target_embed_dimension",
    default=1024,
    show_default=True,
    type=click.IntRange(min=1),
    help="Values per patch in the bank.",
)
@click.option(
    "--patchsize",
    default=3,
    show_default=True,
    type=click.IntRange(min=1),
    help="Side of a patch on the feature map.",
)
@click.option(
    "--anomaly_scorer_num_nn",
    "num_nn",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Nearest neighbours whose mean distance is the score.",
)
@faiss_on_gpu
@faiss_num_workers
@click.option(
    "--precision",
    default="float32",
    show_default=True,
    type=click.Choice(BACKBONE_PRECISIONS),
    help="Of the networks; bfloat16 is faster where the hardware has it, for scores that differ by some per cent.",
)
@click.option(
    "--weights",
    default="pretrained",
    show_default=True,
    type=click.Choice(WEIGHTS),
    help="random tries out the structure without a download.",
)
@weights_dir
@options_without_effect
@click.pass_context
def patch_core_stage(
    ctx: click.Context, backbones: tuple[str, ...], layers: tuple[str, ...], **settings: Any
) -> PatchCoreConfig:
    """Choose the networks, their layers and how patches are described."""
    check_weights_dir(ctx, settings["weights"])
    return checked(PatchCoreConfig, backbones=backbones, layers=layers_by_backbone(layers, len(backbones)), **settings)


def layers_by_backbone(layers: tuple[str, ...], count: int) -> tuple[tuple[str, ...], ...]:
    """Sort layer names to backbones: as they are for a single one, by the number in front for several."""
    if count == 1:
        return (layers,)
    sorted_out: list[list[str]] = [[] for _ in range(count)]
    for layer in layers:
        number, _, name = layer.partition(".")
        if not number.isdigit() or int(number) >= count or not name:
            raise click.UsageError(
                f"layer {layer!r}: with {count} backbones a layer is named NUMBER.LAYER, such as 0.layer2,"
                f" the number in 0..{count - 1}"
            )
        sorted_out[int(number)].append(name)
    for number, names in enumerate(sorted_out):
        if not names:
            raise click.UsageError(f"backbone number {number} has no layer: add -le {number}.LAYER")
    return tuple(map(tuple, sorted_out))


@click.command("sampler")
@click.argument("name", type=click.Choice(SAMPLER_NAMES))
@click.option(
    "--percentage",
    "-p",
    "fraction",
    default=0.1,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of the training patches kept in the memory bank; identity keeps all.",
)
@click.pass_context
def sampler_stage(ctx: click.Context, name: str, fraction: float) -> SamplerConfig:
    """Choose how the memory bank is thinned."""
    if name == "identity":
        if given(ctx, "fraction") and fraction < 1:
            click.echo(f"sampler identity keeps every patch: -p {fraction:g} has no effect", err=True)
        fraction = 1.0
    return checked(SamplerConfig, name=name, fraction=fraction)


@click.group(cls=OneLineErrors, chain=True, context_settings={"help_option_names": ["-h", "--help"]})
@run_options
@click.option("--save_patchcore_model", "save_model", is_flag=True, help="Store the memory bank of every category.")
def run_patchcore(**_: Any) -> None:
    """Train PatchCore on good images and evaluate it.

    RESULTS_PATH and options come first, then the stages patch_core, sampler and dataset, each with its own --help.
    """


@run_patchcore.result_callback()
def _run(stages: list[Any], debug: bool, **settings: Any) -> None:
    run = checked(RunConfig, **settings)
    config = stage_of(stages, PatchCoreConfig, "patch_core")
    sampler = stage_of(stages, SamplerConfig, "sampler")
    dataset = stage_of(stages, DatasetConfig, "dataset")
    start_logging(debug)

    from patchcore.methods.patchcore.detector import TrainedPatchCore

    devices = devices_for(run)
    check_categories(dataset)
    trained_on = TrainedOn.of(dataset, run.seed)
    execute(run, dataset, TrainedPatchCore(config, sampler, trained_on, devices, cache_for(run)))


for _stage in (patch_core_stage, sampler_stage, dataset_stage):
    run_patchcore.add_command(_stage)


@click.command("patch_core_loader")
@click.option(
    "--patch_core_paths",
    "-p",
    "paths",
    multiple=True,
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Model folder, or a run's folder models. Once for all categories, or repeated in the order of -d.",
)
@click.option(
    "--anomaly_scorer_num_nn",
    "num_nn",
    default=None,
    type=click.IntRange(min=1),
    help="Nearest neighbours whose mean distance is the score.  [default: as stored; 1 for the original's folders]",
)
@faiss_on_gpu
@faiss_num_workers
@weights_dir
def patch_core_loader_stage(**settings: Any) -> PatchCoreLoaderConfig:
    """Choose the stored models.

    Backbones, layers, patch size and image size come with them. The folders of the original PatchCore can be read too.
    """
    return checked(PatchCoreLoaderConfig, **settings)


@click.group(cls=OneLineErrors, chain=True, context_settings={"help_option_names": ["-h", "--help"]})
@run_options
def load_and_evaluate_patchcore(**_: Any) -> None:
    """Evaluate stored PatchCore models.

    RESULTS_PATH and options come first, then the stages patch_core_loader and dataset, each with its own --help.
    With the batch size and threads of the run that stored a model, its numbers come out to the last digit on the same
    device.
    """


@load_and_evaluate_patchcore.result_callback()
@click.pass_context
def _evaluate(ctx: click.Context, stages: list[Any], debug: bool, **settings: Any) -> None:
    run = checked(RunConfig, **settings)
    loader = stage_of(stages, PatchCoreLoaderConfig, "patch_core_loader")
    images = stage_of(stages, StoredDataset, "dataset")
    folders = model_folders(loader.paths, images)
    start_logging(debug)
    models = {folder: read_model(folder, loader, resize=images.resize) for folder in dict.fromkeys(folders.values())}
    trained_on = {folder: model.trained_on for folder, model in models.items()}
    run, dataset = settled(run, images, trained_on, seed_given=given(ctx, "seed"))

    from patchcore.methods.patchcore.detector import StoredPatchCore

    devices = devices_for(run)
    check_categories(dataset)
    by_category = {category: models[folder] for category, folder in folders.items()}
    execute(run, dataset, StoredPatchCore(by_category, loader, devices, cache_for(run)))


for _stage in (patch_core_loader_stage, stored_dataset_stage):
    load_and_evaluate_patchcore.add_command(_stage)
