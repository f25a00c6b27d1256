"""What the scripts that evaluate stored models share: their dataset stage, and how it meets what the models say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from patchcore.cli.run import checked, image_options
from patchcore.config import DatasetConfig, RunConfig, TrainedOn
from patchcore.types import PatchCoreError


@dataclass(frozen=True, kw_only=True)
class StoredDataset:
    """The images of an evaluation, before the stored models were asked for the rest.

    The settings that may be None are so where the command line leaves them to the models;
    `settings` are those that `DatasetConfig` needs beside them.
    """

    name: str
    categories: tuple[str, ...]
    resize: int | None
    imagesize: int | None
    train_val_split: float | None
    reduced_decoding: bool | None
    settings: Mapping[str, Any]


def _refuse_augment(ctx: click.Context, option: click.Parameter, value: bool) -> None:
    if value:
        raise click.UsageError("--augment adds views of training images, but stored models are not trained again")


@click.command("dataset")
@image_options
@click.option(
    "--resize",
    default=None,
    show_default="that of the models",
    type=click.IntRange(min=1),
    help="Shorter side after resizing; must be that of the models.",
)
@click.option(
    "--imagesize",
    default=None,
    show_default="that of the models",
    type=click.IntRange(min=1),
    help="Side of the centre crop; must be that of the models.",
)
@click.option(
    "--train_val_split",
    default=None,
    show_default="that of the models",
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of the training images that the models were trained on; the others set the threshold.",
)
@click.option(
    "--reduced_decoding",
    is_flag=True,
    default=None,
    show_default="that of the models",
    help="Decode JPEG files at a smaller scale; must be as with the models.",
)
@click.option("--augment", is_flag=True, hidden=True, expose_value=False, callback=_refuse_augment)
def stored_dataset_stage(
    name: str,
    data_path: Path,
    categories: tuple[str, ...],
    resize: int | None,
    imagesize: int | None,
    train_val_split: float | None,
    reduced_decoding: bool | None,
    **settings: Any,
) -> StoredDataset:
    """Choose the images: NAME says the layout, DATA_PATH holds a folder per category.

    Geometry and split are stored with the models. They may be given, but not differ.
    """
    return StoredDataset(
        name=name,
        categories=categories,
        resize=resize,
        imagesize=imagesize,
        train_val_split=train_val_split,
        reduced_decoding=reduced_decoding,
        settings={"path": data_path, **settings},
    )


def model_folders(paths: Sequence[Path], dataset: StoredDataset) -> dict[str, Path]:
    """Category -> folder of its model: one folder for all, or one per category in their order.

    A folder that has one NAME_CATEGORY in it, as a run's `models` does, stands for that.
    """
    categories = dataset.categories
    if len(paths) not in (1, len(categories)):
        raise click.UsageError(
            f"expected one model for all categories or one for each: got {len(paths)} models (-p) for"
            f" {len(categories)} categories (-d)"
        )
    folders = {}
    for category, path in zip(categories, paths * len(categories) if len(paths) == 1 else paths, strict=True):
        inside = path / f"{dataset.name}_{category}"
        folders[category] = inside if inside.is_dir() else path
    return folders


def settled(
    run: RunConfig, dataset: StoredDataset, models: Mapping[Path, TrainedOn], *, seed_given: bool
) -> tuple[RunConfig, DatasetConfig]:
    """Complete the settings of an evaluation with what its models were trained on.

    With a split below 1 the seed is the models' too: any other would hold out images that they were trained on, and
    set the threshold too low.

    Args:
        models: folder -> what the model in it was trained on.
        seed_given: whether `run.seed` was set rather than left at its default.

    Raises:
        PatchCoreError: the models do not agree, so that one evaluation cannot serve them all.
        click.UsageError: a setting contradicts the models.
    """
    (folder, trained_on), *others = models.items()
    names = ["resize", "imagesize", "train_val_split", "reduced_decoding"]
    for name in [*names, *(["seed"] if trained_on.train_val_split < 1 else [])]:
        value = getattr(trained_on, name)
        for other, also in others:
            if getattr(also, name) != value:
                raise PatchCoreError(
                    f"the models differ in {name}: {folder} has {value}, {other} has {getattr(also, name)}; evaluate"
                    " them in separate runs"
                )
        asked = (run.seed if seed_given else None) if name == "seed" else getattr(dataset, name)
        if asked is not None and asked != value:
            raise click.UsageError(
                f"{_option(name, asked)} contradicts the model in {folder}, which was stored with"
                f" {_option(name, value)}: leave the option out or use another model"
            )
    if trained_on.train_val_split < 1:
        run = dataclasses.replace(run, seed=trained_on.seed)
    geometry_and_split = {name: getattr(trained_on, name) for name in names}
    settings = {"name": dataset.name, "categories": dataset.categories, **dataset.settings, **geometry_and_split}
    return run, checked(DatasetConfig, **settings)


def _option(name: str, value: float | bool) -> str:
    """An option as it is written on the command line."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"no --{name}"
    return f"--{name} {value}"
