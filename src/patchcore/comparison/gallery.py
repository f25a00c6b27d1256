"""The hardest test images of a category, with what every contender made of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patchcore.comparison.runs import Problems, Row, Run
from patchcore.comparison.study import Study
from patchcore.pictures.overlay import read_overlay

MOST = 4  # images of each kind per category
PICTURES = 800  # of all studies, about 6 to 10 kB each: the page stays under 10 MB
_SIDE = 224  # px, longest side of a panel
_QUALITY = 80


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A picture as a data URI under its caption; `alt` says what it shows, for who cannot see it."""

    caption: str
    detail: str
    alt: str
    uri: str
    size: tuple[int, int]


def affordable(studies: Sequence[Study]) -> int:
    """How many images of each kind a category may show: `MOST`, fewer with many categories and contenders."""
    with_one_each = sum(2 * (2 + len(study.contenders)) for study in studies for _ in study.rows)
    return max(1, min(MOST, PICTURES // with_one_each))


def find_hardest(study: Study, row: Row, most: int, problems: Problems) -> dict[str, list[Panel]]:
    """The good images with the highest and the defective ones with the lowest ranks, averaged over the contenders.

    By the path of an image come the image, its mask and a heat map per contender, of the first run that kept scores and
    pictures; pictures that cannot be read are added to `problems`.
    """
    shown = study.first_scored(row, with_overlays=True)
    if not shown:
        return {}
    every = [run.scores[row.name] for run in shown.values()]
    ranks = np.mean([scores.scores.argsort().argsort() for scores in every], axis=0)  # (N,)
    chosen = [*hardest(-ranks, ~every[0].labels, most), *hardest(ranks, every[0].labels, most)]
    return {every[0].paths[image]: _panels(image, row, shown, problems) for image in chosen}


def hardest(ranks: NDArray[np.float64], among: NDArray[np.bool_], most: int) -> list[int]:
    """Up to `most` of the images that are True in `among`, those of the lowest rank first."""
    candidates = np.flatnonzero(among)
    return candidates[np.argsort(ranks[candidates], kind="stable")[:most]].tolist()


def _panels(image: int, row: Row, shown: dict[str, Run], problems: Problems) -> list[Panel]:
    panels: list[Panel] = []
    for name, run in shown.items():
        path, score = run.scores[row.name].paths[image], run.scores[row.name].scores[image]
        file = run.folder.overlay(row.name, path, score)
        try:
            overlay = read_overlay(file)
        except (FileNotFoundError, ValueError) as error:
            problems[run.name_of(file)] = "missing" if isinstance(error, FileNotFoundError) else str(error)
            continue
        if not panels:
            panels.append(_panel("image", "", f"image of {path}", overlay.image))
            panels.append(_panel("ground truth", "", f"ground truth of {path}", overlay.mask))
        panels.append(
            _panel(name, f"score {score:.3f} ({run.name})", f"heat map of {path} by {name}", overlay.heat_map)
        )
    return panels


def _panel(caption: str, detail: str, alt: str, picture: Image.Image) -> Panel:
    picture.thumbnail((_SIDE, _SIDE))
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=_QUALITY)
    uri = f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
    return Panel(caption=caption, detail=detail, alt=alt, uri=uri, size=picture.size)
