"""The values in which the parts of the toolkit meet."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # command lines that only show their help need no numpy
    import numpy as np
    from numpy.typing import NDArray


class PatchCoreError(Exception):
    """An error that the user can mend: one line that says what was expected, what came and the cure."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image file of a category and what is known about it.

    `defect` is the folder that the image lies in ("good", "scratches" ...); `mask_path` is the ground truth of
    a defective image, None for good images and where the category has no masks at all.
    """

    path: Path
    category: str
    split: str
    defect: str
    mask_path: Path | None = None

    @property
    def is_defective(self) -> bool:
        """The label: True for every image outside the folder `good`."""
        return self.defect != "good"


@dataclass(frozen=True, kw_only=True)
class Output:
    """What the M members of a detector say about N images, each image by itself; M is 1 but for ensembles.

    Attributes:
        scores: (M, N) float64 image scores, the higher the more anomalous.
        maps: (M, N, H, W) float32 anomaly maps in network-input pixels, the higher the more anomalous.
        columns: further (N,) numbers per image for the scores CSV, by column name.
    """

    scores: NDArray[np.float64]
    maps: NDArray[np.float32]
    columns: dict[str, NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a detector says about one image.

    Attributes:
        score: the higher the more anomalous; of an ensemble the mean of its members' scores.
        map: (H, W) float32 in network-input pixels, the higher the more anomalous; of an ensemble the members' mean.
        member_scores: the score of every member.
        p_value: in (0, 1], how probable it is that a good image is at least as anomalous; None without a calibration.
        verdict: "accept" or "reject"; None without a calibration.
        regions: the connected regions of the map above the value that one in a thousand pixels of good images exceeds,
            the highest peak first; None without a calibration.
        threshold: the score above which an image is rejected; None without a calibration, and for an ensemble, whose
            p-value decides.
    """

    score: float
    map: NDArray[np.float32]
    member_scores: tuple[float, ...]
    p_value: float | None = None
    verdict: str | None = None
    regions: tuple[Region, ...] | None = None
    threshold: float | None = None


@dataclass(frozen=True, kw_only=True)
class MapRegion:
    """A connected region of an anomaly map.

    Attributes:
        box: left, top, right, bottom in pixels of the map; right and bottom are exclusive.
        pixels: of the map, at least one.
        peak: the highest value of the map within.
    """

    box: tuple[int, int, int, int]
    pixels: int
    peak: float


@dataclass(frozen=True, kw_only=True)
class Region:
    """A connected anomalous region in an image as its file holds it.

    Attributes:
        box: left, top, right, bottom in pixels of the original image; right and bottom are exclusive.
        area: in pixels of the original image.
        peak: the highest value of the anomaly map within.
        share: of the original image's area, in (0, 1].
    """

    box: tuple[int, int, int, int]
    area: float
    peak: float
    share: float


@dataclass(frozen=True, kw_only=True)
class GoodPatch:
    """A patch of a good image that a detector remembers.

    Attributes:
        photo: the name of the training image.
        view: 0 for the photo as it is, 1 to 3 turned by so many quarters to the left, 4 to 7 then mirrored as well.
        picture: (H, W, 3) uint8, what the network saw of the photo in that view.
        box: left, top, right, bottom of the patch in it; right and bottom are exclusive.
        distance: squared, from what it is compared with.
    """

    photo: str
    view: int
    picture: NDArray[np.uint8]
    box: tuple[int, int, int, int]
    distance: float


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """An anomalous place of an image, and what a detector took for normal there.

    Attributes:
        box: left, top, right, bottom in network-input pixels; right and bottom are exclusive.
        score: of the place, the higher the more anomalous.
        nearest: good patches, the nearest first.
    """

    box: tuple[int, int, int, int]
    score: float
    nearest: tuple[GoodPatch, ...]


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """An image file, and what a detector says about it.

    Attributes:
        path: of the file.
        result: None for a file that is broken.
        seconds: from decoded to judged; None for a file that is broken.
        error: why there is no result; None if there is one.
        picture: (H, W, 3) uint8, what the network saw; None for a file that is broken.
        size: (width, height) of the image in the file; None for a file that is broken.
        state: size in bytes and time of the last change in ns, which tell what the file held; None if it is not there.
    """

    path: Path
    result: Result | None = None
    seconds: float | None = None
    error: str | None = None
    picture: NDArray[np.uint8] | None = None
    size: tuple[int, int] | None = None
    state: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a detector says about the N images of a test set, and the truth beside it.

    Attributes:
        scores: (N,) float64 image scores; of an ensemble the mean of its members', each min-max normalised over these
            images.
        maps: (N, H, W) float32 anomaly maps; of an ensemble as the scores.
        raw_scores: (M, N) float64 scores of the members as they are.
        labels: (N,) bool, True where the image is defective.
        masks: (N, H, W) bool, True on defects; None where the category has no ground truth masks.
        samples: the N images that the rows belong to.
        columns: further (N,) numbers per image for the scores CSV, by column name.
    """

    scores: NDArray[np.float64]
    maps: NDArray[np.float32]
    raw_scores: NDArray[np.float64]
    labels: NDArray[np.bool_]
    masks: NDArray[np.bool_] | None
    samples: tuple[Sample, ...]
    columns: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.samples)
        for name in ("scores", "maps", "labels", "masks"):
            value = getattr(self, name)
            if value is not None and len(value) != n:
                raise ValueError(f"Predictions.{name} has {len(value)} rows for {n} images")
        if self.masks is not None and self.masks.shape != self.maps.shape:
            raise ValueError(f"masks {self.masks.shape} and maps {self.maps.shape} differ in shape")
