"""Good images that look unlike the others: dirt in the training set is the commonest cause of a useless threshold."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from patchcore.calibration import Calibration
from patchcore.datasets.geometry import Geometry
from patchcore.pictures.contact_sheet import draw_contact_sheet
from patchcore.results.run_folder import RunFolder
from patchcore.results.tables import write_csv
from patchcore.system.files import atomic_write
from patchcore.types import Sample

log = logging.getLogger(__name__)

_TYPICAL = 5  # images shown beside the suspects
_MOST_SHOWN = 35  # suspects in the picture; the table has all


def report_suspects(
    calibration: Calibration, samples: Sequence[Sample], geometry: Geometry, folder: RunFolder, row: str, root: Path
) -> None:
    """Warn of suspicious images among those that calibrated a detector, and leave a table and a contact sheet.

    Args:
        calibration: of the `samples`, in their order.
        row: the name of the category in the results.
        root: that the images are named from.
    """
    numbers = calibration.suspects()
    if not numbers:
        return
    names = [_name(samples[number].path, root) for number in numbers]
    scores = calibration.scores.mean(axis=0)
    median = float(np.median(scores))
    log.warning(
        "%s: %d of the %d good images may show no good part: %s; the median score is %.6g: look at %s",
        row,
        len(numbers),
        len(calibration),
        ", ".join(f"{name} ({scores[number]:.6g})" for name, number in zip(names[:5], numbers, strict=False))
        + (" ..." if len(names) > 5 else ""),
        median,
        folder.suspects_picture(row),
    )
    outlyingness = calibration.outlyingness()
    table = [(name, scores[i], outlyingness[i]) for name, i in zip(names, numbers, strict=True)]
    write_csv(folder.suspects(row), ["path", "score", "outlyingness"], table)
    typical = [int(i) for i in np.argsort(np.abs(scores - median)) if i not in numbers][:_TYPICAL]
    entries = [
        (geometry.picture(geometry.open(samples[i].path)), f"{samples[i].path.name}\nscore {scores[i]:.6g}", suspicious)
        for chosen, suspicious in ((numbers[:_MOST_SHOWN], True), (typical, False))
        for i in chosen
    ]
    sheet = draw_contact_sheet(f"{row}: suspicious good images, then typical ones", entries)
    with atomic_write(folder.suspects_picture(row)) as aside:
        sheet.save(aside, "PNG")


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
