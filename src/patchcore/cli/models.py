"""What the commands share that take one stored model and images of good parts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from patchcore.cli.options import names_stated, parameters
from patchcore.config import DatasetConfig, RunConfig, weights_dir_setting
from patchcore.methods.method import Method

if TYPE_CHECKING:
    from patchcore.methods.stored_model import StoredModel

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Weights:
    weights_dir: Path | None = weights_dir_setting()


def model_parameters(images: str) -> list[click.Parameter]:
    """The arguments MODEL and `images`, and the options that say how the model is loaded."""
    return [
        click.Argument(["model"], type=click.Path(file_okay=False, path_type=Path)),
        click.Argument(["images"], nargs=-1, required=True, metavar=f"{images}...", type=_IMAGES),
        *parameters(RunConfig, ["gpu"]),
        *parameters(DatasetConfig, ["batch_size"]),
        *parameters(_Weights),
        click.Option(
            ["--resize"],
            type=click.IntRange(min=1),
            help="Shorter side of the images after resizing; only for the original's models, which do not say it.",
        ),
        click.Option(["--debug"], is_flag=True, help="Show the traceback of an error."),
    ]


_IMAGES = click.Path(exists=True, path_type=Path)


def load_model(
    ctx: click.Context, folder: Path, methods: Mapping[str, Method], *, gpu: Sequence[int], resize: int | None
) -> tuple[StoredModel, Any]:
    """The stored model in a folder, and its detector, of whichever class, on the devices that `--gpu` names.

    Raises:
        PatchCoreError: there is no model of these methods, it is damaged, or its networks cannot be had.
    """
    from patchcore.features.workspace import Workspace
    from patchcore.methods.loading import read_with_settings
    from patchcore.system.devices import choose_devices

    if len(set(gpu)) < len(gpu):
        raise click.UsageError(f"every --gpu once, got {' '.join(map(str, gpu))}")
    # Without the option the weights are looked for where its environment variable says, whatever the model needs.
    chosen = {name: ctx.params[name] for name in ("weights_dir",) if name in names_stated(ctx)}
    model = read_with_settings(folder, methods, resize, chosen)
    devices, notice = choose_devices(gpu)
    if notice:
        log.info(notice)
    return model, model.method.detector_class.from_stored(model, Workspace(devices))


def good_images(paths: Sequence[Path]) -> list[Path]:
    """Image files, and those of folders, but not of folders within: defective parts may lie there. Each once.

    Raises:
        PatchCoreError: a folder holds no image.
    """
    from patchcore.datasets.layout import list_images

    found: dict[Path, Path] = {}
    for path in paths:
        for file in list_images(path) if path.is_dir() else [path]:
            found.setdefault(file.resolve(), file)
    return list(found.values())
