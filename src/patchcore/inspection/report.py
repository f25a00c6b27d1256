"""What is left of an inspection, image by image, and how it ended."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from patchcore.inspection.overlays import Overlays, describe
from patchcore.results.predictions import PredictionFolder
from patchcore.types import Inspected, Region

BROKEN, REJECTED = 1, 3  # exit codes

_JSON = ("path", "score", "p_value", "verdict", "threshold", "seconds", "regions", "error")
_WORDS = {"accept": "accepted", "reject": "rejected", None: "without a verdict", "broken": "broken"}


class Report:
    """Takes what is said of images: counts it, writes it into a folder, and passes it on.

    Args:
        folder: the tables; None writes none.
        overlays: the pictures; None draws none.
        show: told of every image after it was written.
    """

    def __init__(
        self,
        *,
        folder: PredictionFolder | None = None,
        overlays: Overlays | None = None,
        show: Callable[[Inspected], object] = lambda image: None,
    ) -> None:
        self._folder, self._overlays, self._show = folder, overlays, show
        self._counts: Counter[str | None] = Counter()

    def add(self, image: Inspected) -> None:
        """Take an image. The picture comes first and the prediction last: what has a prediction has everything."""
        if self._overlays is not None:
            self._overlays.save(image)
        if self._folder is not None:
            self._folder.add(image)
        self._counts["broken" if image.result is None else image.result.verdict] += 1
        self._show(image)

    def add_all(self, images: Iterable[Inspected]) -> None:
        """Take images as they come."""
        for image in images:
            self.add(image)

    def summary(self) -> str:
        """How many images had which end."""
        parts = [f"{self._counts[end]} {word}" for end, word in _WORDS.items() if self._counts[end]]
        total = self._counts.total()
        return f"{total} image{'' if total == 1 else 's'}{': ' if parts else ''}{', '.join(parts)}"

    def exit_code(self, *, fail_on_reject: bool) -> int:
        """1 if an image was broken, else 3 if that is asked for and one was rejected, else 0."""
        if self._counts["broken"]:
            return BROKEN
        return REJECTED if fail_on_reject and self._counts["reject"] else 0


def as_line(image: Inspected) -> str:
    """An image in a line for people."""
    result = image.result
    if result is None:
        return f"BROKEN      {' '.join(str(image.path).split())}  {image.error}"
    word = {"accept": "ACCEPT", "reject": "REJECT"}.get(result.verdict or "", "NO VERDICT")
    return f"{word:<11} {' '.join(str(image.path).split())}  {describe(result)}"


def as_json(image: Inspected) -> str:
    """An image as a JSON object in one line; what is unknown is null."""
    content: dict[str, Any] = dict.fromkeys(_JSON)
    content |= {"path": str(image.path), "error": image.error}
    if (result := image.result) is not None:
        content |= {
            "score": _number(result.score),
            "p_value": _number(result.p_value),
            "verdict": result.verdict,
            "threshold": _number(result.threshold),
            "seconds": image.seconds,
            "regions": None if result.regions is None else [_as_plain(region) for region in result.regions],
        }
    return json.dumps(content, allow_nan=False)


def _as_plain(region: Region) -> dict[str, float | None]:
    box = dict(zip(("left", "top", "right", "bottom"), region.box, strict=True))
    return box | {"area": _number(region.area), "peak": _number(region.peak), "share": _number(region.share)}


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
