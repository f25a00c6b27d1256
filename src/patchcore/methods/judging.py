"""From what a detector says of images to results with verdicts and regions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from patchcore.calibration import Calibration
from patchcore.config import FALSE_REJECTS
from patchcore.datasets.geometry import Geometry
from patchcore.regions import connected_regions
from patchcore.types import Output, Region, Result

ACCEPT, REJECT = "accept", "reject"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judge:
    """Says of images whether they are rejected, and which regions of them are anomalous.

    Attributes:
        calibration: of the detector; None gives scores only.
        false_rejects: the share of good images that may be rejected.
        threshold: images that score above it are rejected, whatever the calibration says; None leaves it to that.
    """

    calibration: Calibration | None
    false_rejects: float = FALSE_REJECTS
    threshold: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.false_rejects < 1:
            raise ValueError(f"false_rejects must be above 0 and below 1, got {self.false_rejects}")

    def results(self, output: Output, sizes: Sequence[tuple[int, int]], geometry: Geometry) -> list[Result]:
        """What is said of N images.

        Args:
            output: of the detector.
            sizes: (width, height) of each image as its file holds it.
            geometry: by which they came to the network.
        """
        maps = output.maps[0] if len(output.maps) == 1 else output.maps.mean(axis=0)
        results = [
            Result(score=float(mean), map=one, member_scores=tuple(scores.tolist()), threshold=self.threshold)
            for mean, scores, one in zip(output.scores.mean(axis=0), output.scores.T, maps, strict=True)
        ]
        if self.calibration is not None:
            verdict = self.calibration.judge(output.scores, self.false_rejects)
            threshold = self.calibration.threshold(self.false_rejects)
            results = [
                dataclasses.replace(
                    result,
                    p_value=float(p),
                    verdict=REJECT if rejected else ACCEPT,
                    threshold=threshold,
                    regions=_regions(result, self.calibration.pixel_threshold, size, geometry),
                )
                for result, p, rejected, size in zip(results, verdict.p_values, verdict.rejected, sizes, strict=True)
            ]
        if self.threshold is None:
            return results
        return [
            dataclasses.replace(
                result, threshold=self.threshold, verdict=ACCEPT if result.score <= self.threshold else REJECT
            )
            for result in results
        ]


def _regions(result: Result, threshold: float, size: tuple[int, int], geometry: Geometry) -> tuple[Region, ...]:
    if result.map.max() <= threshold:
        return ()
    _, found = connected_regions(result.map, threshold)
    return tuple(geometry.region_in_image(region, size) for region in found)
