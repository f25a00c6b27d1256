"""Updating a stored PatchCore model from the command line."""

from __future__ import annotations

from pathlib import Path

import click

from patchcore.cli.calibrate import described
from patchcore.cli.commands import start_logging
from patchcore.cli.errors import OneLineCommand
from patchcore.cli.models import good_images, load_model, model_parameters
from patchcore.types import PatchCoreError


@click.command(cls=OneLineCommand, params=model_parameters("NEW_GOOD_IMAGES"))
@click.option(
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="New folder for the updated model; MODEL stays as it is.",
)
@click.option(
    "--max_bank_size",
    type=click.IntRange(min=1),
    help="Patches that the memory bank has at most, of an ensemble each. The original's models need it; others grow by"
    " the share of the new patches that they were trained with.",
)
@click.pass_context
def update_patchcore(
    ctx: click.Context,
    model: Path,
    images: tuple[Path, ...],
    gpu: tuple[int, ...],
    batch_size: int,
    resize: int | None,
    weights_dir: Path | None,
    debug: bool,
    output: Path,
    max_bank_size: int | None,
) -> None:
    """Add images of good parts to the stored PatchCore model in the folder MODEL.

    Its memory bank keeps what it has and goes on with the new patches that are farthest from it. The new images
    calibrate the model, each left out in turn, together with the earlier scores of images that were left out; these
    may be too high now, which rejects too few good parts rather than too many.

    NEW_GOOD_IMAGES are image files, and folders of them; folders within are left alone, as they may hold defective
    parts. Images that the model has learnt are left out.
    """
    start_logging(debug)
    photos = good_images(images)
    if output.exists():
        raise PatchCoreError(f"--output {output}: expected the name of a new folder, this is there already")

    from patchcore.methods import METHODS

    _, detector = load_model(ctx, model, {"patchcore": METHODS["patchcore"]}, gpu=gpu, resize=resize)
    before = len(detector.album.photos)
    detector.update(photos, max_bank_size=max_bank_size, batch_size=batch_size).save(output)
    click.echo(f"learnt {len(detector.album.photos) - before} of {len(photos)} images")
    for line in described(detector.calibration):
        click.echo(line)
    click.echo(f"stored in {output}")
