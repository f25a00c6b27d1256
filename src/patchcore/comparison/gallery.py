"""The hardest test images of a category, with what every method made of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patchcore.comparison.runs import Problem, Run
from patchcore.comparison.study import Method, Row, Study
from patchcore.pictures.overlay import panels

MOST = 4  # images of each kind per category
PICTURES = 800  # of all studies, about 6 to 10 kB each: the page stays under 10 MB
_SIDE = 224  # px, longest side of a panel
_QUALITY = 80


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A picture under its caption, as a data URI."""

    caption: str
    detail: str
    uri: str
    size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One test image: its image, mask and a heat map per method."""

    path: str
    panels: tuple[Panel, ...]


def affordable(studies: Sequence[Study]) -> int:
    """How many images of each kind a category may show: `MOST`, fewer where there are many categories and methods."""
    with_one_each = sum(2 * (2 + len(study.methods)) for study in studies for _ in study.rows)
    return max(1, min(MOST, PICTURES // with_one_each))


def cases(study: Study, row: Row, most: int, problems: list[Problem]) -> list[Case]:
    """The good images with the highest and the defective ones with the lowest ranks, averaged over the methods.

    Of every method the first run that kept scores and pictures is shown; pictures that cannot be read are added to
    `problems`.
    """
    shown = {method.name: run for method in study.methods if (run := pictured(method, row))}
    if not shown:
        return []
    every = [run.scores[row.name] for run in shown.values()]
    ranks = np.mean([scores.scores.argsort().argsort() for scores in every], axis=0)  # (N,)
    chosen = [*hardest(-ranks, ~every[0].labels, most), *hardest(ranks, every[0].labels, most)]
    return [_case(image, row, shown, problems) for image in chosen]


def hardest(ranks: NDArray[np.float64], among: NDArray[np.bool_], most: int) -> list[int]:
    """Up to `most` of the images that are True in `among`, those of the lowest rank first."""
    candidates = np.flatnonzero(among)
    return candidates[np.argsort(ranks[candidates], kind="stable")[:most]].tolist()


def pictured(method: Method, row: Row) -> Run | None:
    """The first run of a method that kept the scores and pictures of a row."""
    for run in method.runs_of(row):
        if row.name in run.scores and any(name == row.name for name, _ in run.pictures):
            return run
    return None


def _case(image: int, row: Row, shown: dict[str, Run], problems: list[Problem]) -> Case:
    first = next(iter(shown.values())).scores[row.name]
    path = PurePosixPath(first.paths[image])
    key = row.name, f"{'_'.join(path.parts[:3])}_{path.stem}"
    found: list[Panel] = []
    for name, run in shown.items():
        try:
            picture, mask, heat = _read(run.pictures[key])
        # Pillow answers some damaged files with a SyntaxError, and one that claims to be huge with its own.
        except (KeyError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = "missing" if isinstance(error, KeyError) else f"damaged: {error}"
            problems.append(Problem(name=f"{run.name}/segmentation_images/{row.name}: {key[1]}", reason=reason))
            continue
        if not found:
            found += [_panel("image", "", picture), _panel("ground truth", "", mask)]
        found.append(_panel(name, f"score {run.scores[row.name].scores[image]:.3f} ({run.name})", heat))
    return Case(path=str(path), panels=tuple(found))


def _read(path: Path) -> tuple[Image.Image, Image.Image, Image.Image]:
    with Image.open(path) as sheet:
        return panels(sheet.convert("RGB"))


def _panel(caption: str, detail: str, picture: Image.Image) -> Panel:
    picture.thumbnail((_SIDE, _SIDE))
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=_QUALITY)
    uri = f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
    return Panel(caption=caption, detail=detail, uri=uri, size=picture.size)
