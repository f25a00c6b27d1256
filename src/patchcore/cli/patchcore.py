"""The stages of PatchCore, and the run that they describe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from patchcore.cli.run import (
    OneLineErrors,
    check_categories,
    checked,
    dataset_stage,
    devices_for,
    execute,
    run_options,
    stage_of,
    start_logging,
)
from patchcore.config import SAMPLER_NAMES, WEIGHTS, DatasetConfig, PatchCoreConfig, RunConfig, SamplerConfig


@click.command("patch_core")
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
@click.option("--faiss_on_gpu", is_flag=True, help="Keep the memory bank on the GPU and search it there.")
@click.option(
    "--faiss_num_workers",
    default=None,
    type=click.IntRange(min=1),
    help="Threads of the search on the CPU.  [default: all cores]",
)
@click.option(
    "--weights",
    default="pretrained",
    show_default=True,
    type=click.Choice(WEIGHTS),
    help="random tries out the structure without a download.",
)
@click.option(
    "--weights_dir",
    default=None,
    envvar="PATCHCORE_WEIGHTS",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder with weight files, where they cannot be downloaded.  [$PATCHCORE_WEIGHTS]",
)
def patch_core_stage(backbones: tuple[str, ...], layers: tuple[str, ...], **settings: Any) -> PatchCoreConfig:
    """Choose the networks, their layers and how patches are described."""
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
    help="Share of the training patches kept in the memory bank.",
)
def sampler_stage(name: str, fraction: float) -> SamplerConfig:
    """Choose how the memory bank is thinned."""
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

    from patchcore.patchcore import TrainedPatchCore

    devices = devices_for(run)
    check_categories(dataset)
    method = TrainedPatchCore(config, sampler, resize=dataset.resize, imagesize=dataset.imagesize, devices=devices)
    execute(run, dataset, method)


for _stage in (patch_core_stage, sampler_stage, dataset_stage):
    run_patchcore.add_command(_stage)
