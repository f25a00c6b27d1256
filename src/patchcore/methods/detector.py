"""What every detector is: fitted to good images, it scores any image by itself, knows how to read it, and stores."""

from __future__ import annotations

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from patchcore.datasets.geometry import Geometry
from patchcore.datasets.images import to_rgb
from patchcore.datasets.layout import list_images
from patchcore.datasets.loader import PrefetchLoader
from patchcore.features.encoder import Encoder
from patchcore.features.workspace import Workspace
from patchcore.methods.method import Method
from patchcore.methods.stored_model import LoadedWeights, StoredModel, Training, write_model
from patchcore.settings import from_plain
from patchcore.system.files import atomic_write
from patchcore.system.timing import StageTimer
from patchcore.types import Output, PatchCoreError, Result

if TYPE_CHECKING:
    from typing_extensions import Self

ImageLike = str | Path | Image.Image | NDArray[np.uint8]
"""The path of an image file, a Pillow image, or RGB pixels (H, W, 3) uint8 in [0, 255]."""

_READERS = 8  # threads that decode images


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingImages:
    """Good images on their way to a detector.

    Attributes:
        batches: (B, 3, H, W) uint8.
        count: images in all.
        views: how many of them show the same photo, turned and mirrored.
    """

    batches: Iterable[Tensor]
    count: int
    views: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchScores:
    """What the M members of a detector say about a batch of B images, on any device.

    Attributes:
        scores: (M, B), the higher the more anomalous.
        maps: (M, B, H, W) in network-input pixels, the higher the more anomalous.
        columns: further (B,) numbers per image, by column name.
    """

    scores: Tensor
    maps: Tensor
    columns: dict[str, Tensor] = dataclasses.field(default_factory=dict)


class Detector(ABC):
    """A method with its settings, and, once fitted or loaded, with what it learnt.

    A subclass names its `method` and says how encoders are chosen (`prepare`), how good images are learnt (`learn`),
    how a batch is scored (`score`), and how what was learnt is stored (`write_arrays`, `read_arrays`).

    Args:
        config: the settings; or else they are given by name.
        resize, imagesize: the shorter side of an image after resizing, and the side of the square cut from its centre;
            None leaves them to the method.
        reduced_decoding: decode large JPEG files at a smaller scale.
        device: such as "cuda" or "cpu"; None takes CUDA where it is there.
        workspace: shared with other detectors; has its devices.
        settings: fields of the method's configuration, such as `PatchCoreConfig`.

    Raises:
        ValueError: a setting that there is not, that does not fit, or that has no effect beside the others.
        PatchCoreError: a device, backbone, layer or image size that cannot be had.
    """

    method: ClassVar[Method]

    def __init__(
        self,
        config: Any = None,
        *,
        resize: int | None = None,
        imagesize: int | None = None,
        reduced_decoding: bool = False,
        device: str | torch.device | None = None,
        workspace: Workspace | None = None,
        **settings: Any,
    ) -> None:
        if config is not None and not isinstance(config, self.method.config):
            raise TypeError(f"expected a {self.method.config.__name__} or settings by name, got {config!r:.80}")
        if config is not None and settings:
            raise ValueError(f"settings come with the configuration or by name, got both: {', '.join(settings)}")
        if workspace is not None and device is not None:
            raise ValueError(f"a workspace has its devices, got one and device {str(device)!r}")
        for name, side in (("resize", resize), ("imagesize", imagesize)):
            if side is not None and (type(side) is not int or side < 1):
                raise ValueError(f"{name} must be a number of pixels, at least 1, got {side!r:.80}")
        self.config = from_plain(self.method.config, settings) if config is None else config
        self.method.refuse_without_effect(self.config, frozenset(settings))
        resize, imagesize = self.method.image_size(self.config, resize, imagesize)
        self.geometry = Geometry(resize=resize, imagesize=imagesize, reduced_decoding=reduced_decoding)
        self.workspace = workspace or Workspace.on(device)
        self.training: Training | None = None
        self.calibration: dict[str, Any] | None = None
        self.encoders = self.prepare()

    # What a method says

    @abstractmethod
    def prepare(self) -> Sequence[Encoder]:
        """Get the encoders that `config` asks for from the workspace, for images of `geometry`; returns all of them."""

    @abstractmethod
    def learn(self, images: TrainingImages, generator: torch.Generator, timer: StageTimer, record: Path | None) -> None:
        """Learn from good images.

        Args:
            generator: a CPU generator, the source of every random choice.
            timer: told how long each stage took.
            record: folder for a record of the training and for what is needed to go on with it; need not exist.
        """

    @abstractmethod
    def score(self, images: Tensor, timer: StageTimer) -> BatchScores:
        """Score a batch (B, 3, H, W) uint8, every image by itself."""

    @abstractmethod
    def write_arrays(self, folder: Path) -> None:
        """Write what was learnt into an existing folder."""

    @abstractmethod
    def read_arrays(self, folder: Path) -> None:
        """Take what was learnt from a folder.

        Raises:
            PatchCoreError: a file is missing, damaged, or does not fit the settings.
        """

    def costs(self) -> dict[str, float]:
        """Sizes of what was learnt, for the results."""
        return {}

    def expected_bytes(self, num_images: int) -> Mapping[torch.device, int]:
        """What training holds of so many images, by device."""
        return {}

    # What every detector does

    def fit(
        self,
        images: ImageLike | list[Any] | tuple[Any, ...],
        *,
        seed: int = 0,
        batch_size: int = 8,
        record: str | Path | None = None,
    ) -> Self:
        """Learn from images of good parts.

        Args:
            images: a folder of image files, or images as `predict` takes them.
            seed: source of all random choices.
            batch_size: images at a time.
            record: folder for a record of the training; FastFlow goes on from the state that it finds there.

        Raises:
            PatchCoreError: an image cannot be read, or the training failed.
        """
        if isinstance(images, str) and not images:
            raise ValueError("expected a folder of images, or images, got an empty path")
        if isinstance(images, str | Path) and Path(images).is_dir():
            images = list_images(Path(images))
        sources = _Sources(_listed(images), self.geometry)
        batches = PrefetchLoader(dataset=sources, batch_size=batch_size, num_workers=_READERS)
        training = TrainingImages(batches=batches, count=len(sources))
        return self.fit_batches(training, Training(seed=seed), record=None if record is None else Path(record))

    def fit_batches(
        self,
        images: TrainingImages,
        training: Training = Training(),  # noqa: B008 - it is frozen
        *,
        timer: StageTimer | None = None,
        record: Path | None = None,
    ) -> Self:
        """Learn from images that were read already, see `fit`; `training` says the seed and where they come from."""
        if images.count < 1:
            raise PatchCoreError(f"{self.method.title} learns from one or more images, got none")
        digest = hashlib.sha256()
        watched = dataclasses.replace(images, batches=_hashed(images.batches, digest))
        timer = timer or StageTimer(self.workspace.device)
        # A training that fails may leave members old and new, and a calibration belongs to what was learnt before.
        self.training = self.calibration = None
        self.learn(watched, torch.Generator().manual_seed(training.seed), timer, record)
        self.training = dataclasses.replace(training, images=images.count, fingerprint=digest.hexdigest())
        return self

    @overload
    def predict(self, images: ImageLike, *, batch_size: int = 8) -> Result: ...

    @overload
    def predict(self, images: list[Any] | tuple[Any, ...], *, batch_size: int = 8) -> list[Result]: ...

    def predict(self, images: ImageLike | list[Any] | tuple[Any, ...], *, batch_size: int = 8) -> Result | list[Result]:
        """Score images; what is said of one depends on no other.

        Args:
            images: the path of an image file, a Pillow image, an array (H, W, 3) uint8 of RGB pixels in [0, 255], or a
                list of them.
            batch_size: images at a time.

        Returns:
            A `Result`, or for a list a list of them.

        Raises:
            PatchCoreError: an image cannot be read, or the detector was not fitted.
            TypeError, ValueError: an array of another type or shape.
        """
        sources = _Sources(_listed(images), self.geometry)
        if not len(sources):
            return []
        readers = _READERS if len(sources) > 1 else 0  # one image has nothing to be read beside it
        output = self.predict_batches(PrefetchLoader(dataset=sources, batch_size=batch_size, num_workers=readers))
        maps = output.maps[0] if len(output.maps) == 1 else output.maps.mean(axis=0)
        results = [
            Result(score=float(scores.mean()), map=one, member_scores=tuple(scores.tolist()))
            for scores, one in zip(output.scores.T, maps, strict=True)
        ]
        return results if isinstance(images, list | tuple) else results[0]

    @torch.inference_mode()
    def predict_batches(self, batches: Iterable[Tensor], timer: StageTimer | None = None) -> Output:
        """Score (B, 3, H, W) uint8 batches, one or more, of images as `geometry` gives them."""
        if self.training is None:
            raise PatchCoreError(f"this {self.method.title} has learnt nothing yet: fit it, or load a stored one")
        timer = timer or StageTimer(self.workspace.device)
        parts = [self.score(images, timer) for images in batches]
        return Output(
            scores=torch.cat([part.scores for part in parts], dim=1).double().cpu().numpy(),
            maps=torch.cat([part.maps for part in parts], dim=1).cpu().numpy(),
            columns={
                name: torch.cat([part.columns[name] for part in parts]).double().cpu().numpy()
                for name in parts[0].columns
            },
        )

    def save(self, folder: str | Path) -> None:
        """Write the detector into a new folder, which appears whole or not at all.

        Raises:
            PatchCoreError: it has learnt nothing, or the folder is there already or cannot be written.
        """
        if self.training is None:
            raise PatchCoreError(f"this {self.method.title} has learnt nothing yet: there is nothing to store")
        if Path(folder).exists() or not Path(folder).name:
            raise PatchCoreError(f"cannot write {str(folder)!r}: expected the name of a new folder for the model")
        with atomic_write(Path(folder)) as aside:
            aside.mkdir()
            self.write_arrays(aside)
            write_model(self.description(aside))

    def description(self, folder: Path) -> StoredModel:
        """What `model.json` in `folder` says of the detector."""
        weights = tuple(
            LoadedWeights(backbone=one.backbone, name=one.weights, checksum=one.checksum) for one in self.encoders
        )
        return StoredModel(
            folder=folder,
            method=self.method,
            config=self.config,
            geometry=self.geometry,
            training=self.training or Training(),
            weights=weights,
            calibration=self.calibration,
        )

    @classmethod
    def from_stored(cls, model: StoredModel, workspace: Workspace) -> Self:
        """The detector of a stored model; see `patchcore.load` for one from a folder.

        Raises:
            PatchCoreError: its arrays are damaged, or the networks have other weights than those it was trained with.
        """
        detector = cls(model.config, workspace=workspace, **dataclasses.asdict(model.geometry))
        if model.weights and len(model.weights) != len(detector.encoders):
            raise PatchCoreError(
                f"{model.folder}: names weights of {len(model.weights)} networks, its settings {len(detector.encoders)}"
            )
        for stored, encoder in zip(model.weights, detector.encoders, strict=bool(model.weights)):
            if None not in (stored.checksum, encoder.checksum) and stored.checksum != encoder.checksum:
                raise PatchCoreError(
                    f"{model.folder}: trained with other weights of {stored.backbone} ({stored.name}) than those here"
                    f" ({encoder.weights}): provide the same ones (--weights_dir), or train again"
                )
        model.check_arrays()
        detector.read_arrays(model.folder)
        detector.training, detector.calibration = model.training, model.calibration
        return detector


class _Sources:
    """Images from anywhere, as the network sees them: (3, imagesize, imagesize) uint8."""

    def __init__(self, images: Sequence[ImageLike], geometry: Geometry) -> None:
        self._images = images
        self._geometry = geometry
        for image in images:
            if isinstance(image, Image.Image):
                try:
                    image.load()  # here, since threads that load one image at the same time damage it
                except (OSError, SyntaxError, ValueError) as error:
                    raise PatchCoreError(f"cannot read the image: {error}") from error
                if 0 in image.size:
                    raise ValueError(f"an image has one pixel or more, got {image.width} x {image.height}")

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        image = self._images[index]
        if isinstance(image, str | Path):
            return self._geometry.read(Path(image))
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                raise ValueError(
                    "an image as an array must be RGB pixels (H, W, 3) uint8 in [0, 255], got"
                    f" {image.shape} {image.dtype}"
                )
            return self._geometry.image(Image.fromarray(image))
        if isinstance(image, Image.Image):
            return self._geometry.image(to_rgb(image.copy(), "the image"))  # it would lose its transparency
        raise TypeError(
            f"an image must be a path, a Pillow image or an array (H, W, 3) uint8, got {type(image).__name__}"
        )


def _listed(images: ImageLike | list[Any] | tuple[Any, ...]) -> Sequence[ImageLike]:
    return images if isinstance(images, list | tuple) else [images]


def _hashed(batches: Iterable[Tensor], digest: Any) -> Iterator[Tensor]:
    """Pass batches on, and their pixels to a hash, image by image whatever the size of the batches."""
    for batch in batches:
        digest.update(batch.permute(0, 2, 3, 1).contiguous().numpy())  # (B, H, W, 3)
        yield batch
