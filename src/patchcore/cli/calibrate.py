"""Calibrating a stored model from the command line."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from patchcore.cli.commands import start_logging
from patchcore.cli.errors import OneLineCommand
from patchcore.cli.models import good_images, load_model, model_parameters
from patchcore.config import FALSE_REJECTS
from patchcore.types import PatchCoreError

if TYPE_CHECKING:
    from patchcore.calibration import Calibration

log = logging.getLogger(__name__)

_NEEDED = math.ceil(1 / FALSE_REJECTS) - 1  # images, for the usual rate


@click.command(cls=OneLineCommand, params=model_parameters("GOOD_IMAGES"))
@click.pass_context
def calibrate(
    ctx: click.Context,
    model: Path,
    images: tuple[Path, ...],
    gpu: tuple[int, ...],
    batch_size: int,
    resize: int | None,
    weights_dir: Path | None,
    debug: bool,
) -> None:
    """Calibrate the stored model in the folder MODEL with images of good parts that it has not learnt.

    Verdicts need a calibration. It is stored with the model and replaces an earlier one; nothing else of the model
    changes. A model of an older version or of the original gets a model.json beside its files.

    GOOD_IMAGES are image files, and folders of them; folders within are left alone, as they may hold defective parts.
    """
    start_logging(debug)
    photos = good_images(images)

    from patchcore.methods import METHODS
    from patchcore.methods.stored_model import MODEL_FILE, write_calibration

    stored, detector = load_model(ctx, model, METHODS, gpu=gpu, resize=resize)
    if not stored.photos or stored.training.images is None:
        log.warning(
            "%s does not say of every image that it was trained on: see that none of these is among them, or the"
            " threshold will be too low",
            model,
        )
    before = stored.calibration
    calibrated = detector.calibrate(photos, batch_size=batch_size).description(model)
    _refuse_weaker(calibrated.calibration, before)
    write_calibration(dataclasses.replace(calibrated, checksums=stored.checksums))
    if before is not None:
        click.echo(f"replaced a calibration of {len(before)} images ({before.kind})")
    for line in described(calibrated.calibration):
        click.echo(line)
    click.echo(f"stored in {model / MODEL_FILE}")


def _refuse_weaker(new: Calibration | None, old: Calibration | None) -> None:
    """A few images must not take the place of a calibration that allows the usual rate."""
    if new and old and new.rate(FALSE_REJECTS) > FALSE_REJECTS >= old.rate(FALSE_REJECTS):
        raise PatchCoreError(
            f"{len(new)} different images allow no rate of false rejects below {1 / (len(new) + 1):.2g}, the"
            f" {len(old)} images of the model's calibration {1 / (len(old) + 1):.2g}: give {_NEEDED} or more"
        )


def described(calibration: Calibration | None) -> Iterator[str]:
    """What verdicts a calibration allows, in two lines; none without one."""
    if calibration is None:
        return
    count, rate = len(calibration), calibration.rate(FALSE_REJECTS)
    yield f"calibrated with {count} good images: rates of false rejects from {1 / (count + 1):.3g} on"
    few = f" ({FALSE_REJECTS:g} needs {_NEEDED} images or more)" if rate > FALSE_REJECTS else ""
    threshold = calibration.threshold(FALSE_REJECTS)
    says = "none, the p-values of an ensemble decide" if threshold is None else f"{threshold:.6g}"
    yield f"threshold at a rate of {rate:.3g}{few}: {says}"
