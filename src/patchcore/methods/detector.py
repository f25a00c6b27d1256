"""What every detector is: fitted to good images, it scores any image by itself, knows how to read it, and stores."""

from __future__ import annotations

import dataclasses
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, overload

import torch
from torch import Tensor, nn

from patchcore.calibration import Calibration
from patchcore.config import CALIBRATION_FOLDS, FALSE_REJECTS
from patchcore.datasets.geometry import Geometry
from patchcore.datasets.loader import PrefetchLoader
from patchcore.features.encoder import Encoder
from patchcore.features.workspace import Workspace
from patchcore.methods.batch_scores import BatchScores
from patchcore.methods.calibrating import calibrate, calibrate_by_folds
from patchcore.methods.judging import Judge
from patchcore.methods.method import Method
from patchcore.methods.sources import ImageLike, Sources, images_in, listed
from patchcore.methods.stored_model import LoadedWeights, StoredModel, Training, write_model
from patchcore.methods.training_images import Album, TrainingImages, each_once
from patchcore.settings import from_plain
from patchcore.system.files import atomic_write
from patchcore.system.timing import StageTimer
from patchcore.types import Evidence, Output, PatchCoreError, Result

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger(__name__)

_READERS = 8  # threads that decode images


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
        self.calibration: Calibration | None = None
        self.album = Album()
        self.encoders = self.prepare()

    # What a method says

    @abstractmethod
    def prepare(self) -> Sequence[Encoder]:
        """Get the encoders that `config` asks for from the workspace, for images of `geometry`; returns all of them."""

    @abstractmethod
    def learn(
        self, images: TrainingImages, generator: torch.Generator, timer: StageTimer, record: Path | None
    ) -> Iterable[BatchScores] | None:
        """Learn from good images.

        Args:
            generator: a CPU generator, the source of every random choice.
            timer: told how long each stage took.
            record: folder for a record of the training and for what is needed to go on with it; need not exist.

        Returns:
            If `images.leave_one_out`, what the detector would say of every photo had it not learnt it; only methods
            whose `Method.leaves_one_out` is set are asked. None otherwise.
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

    def graph(self) -> nn.Module:
        """What was learnt as a module without state, timers or caches, from which an ONNX graph is traced.

        Returns:
            A module on the detector's device, from images (B, 3, H, W) uint8 of the network's size to scores (M, B)
            and maps (M, B, H, W), as in `BatchScores`.

        Raises:
            PatchCoreError: the method, or this choice of its settings, has none.
        """
        raise PatchCoreError(f"{self.method.title} cannot be exported: it has no graph")

    @property
    def num_members(self) -> int:
        """How many members score an image."""
        return 1

    def costs(self) -> dict[str, float]:
        """Sizes of what was learnt, for the results."""
        return {}

    def expected_bytes(self, num_images: int) -> Mapping[torch.device, int]:
        """What training holds of so many images, by device."""
        return {}

    def explainer(self) -> Callable[[Tensor], tuple[Evidence, ...]]:
        """What shows of an image (3, H, W) uint8 its most anomalous places, and the good patches nearest to them.

        Raises:
            PatchCoreError: the method or the stored model has no good patches to show.
        """
        raise PatchCoreError(f"{self.method.title} remembers no good patches, so it has nothing to compare with")

    # What every detector does

    def fit(
        self,
        images: ImageLike | list[Any] | tuple[Any, ...],
        *,
        seed: int = 0,
        calibration: str | None = None,
        folds: int = CALIBRATION_FOLDS,
        batch_size: int = 8,
        record: str | Path | None = None,
    ) -> Self:
        """Learn from images of good parts.

        Args:
            images: a folder of image files, or images as `predict` takes them.
            seed: source of all random choices.
            calibration: "leave_one_out", "folds" or "none"; None takes the first where the method can do it and it
                costs little, else the last. Verdicts need one.
            folds: how many detectors are fitted for "folds", each to the images of the other folds.
            batch_size: images at a time.
            record: folder for a record of the training; FastFlow goes on from the state that it finds there.

        Raises:
            PatchCoreError: an image cannot be read, or the training failed.
        """
        photos = images_in(images)
        kind = self.method.calibration(calibration, splits=False)
        sources = Sources(photos, self.geometry)

        def batches(chosen: Sequence[int], learn: bool = True) -> Iterable[Tensor]:
            return PrefetchLoader(dataset=sources.part(chosen), batch_size=batch_size, num_workers=_READERS)

        training = TrainingImages(
            batches=batches(range(len(sources))),
            count=len(sources),
            names=[Path(x).name if isinstance(x, str | Path) else f"image {i}" for i, x in enumerate(photos)],
            leave_one_out=kind == "leave_one_out",
            if_cheap=calibration is None,
        )
        self.fit_batches(training, Training(seed=seed), record=None if record is None else Path(record))
        if kind == "folds":
            calibrate_by_folds(self, training, folds, batches)
        return self

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
        if images.leave_one_out and not self.method.leaves_one_out:
            raise PatchCoreError(f"{self.method.title} cannot leave one image out: calibrate it with folds")
        album = Album()
        watched = dataclasses.replace(images, batches=album.watch(images), album=album)
        timer = timer or StageTimer(self.workspace.device)
        # A training that fails may leave members old and new, and a calibration belongs to what was learnt before.
        self.training = self.calibration = None
        parts = self.learn(watched, torch.Generator().manual_seed(training.seed), timer, record)
        if alike := sum(number != first for number, first in enumerate(album.first_alike())):
            log.warning("%d training images are the same as others, pixel by pixel: remove them", alike)
        self.album = album
        self.training = dataclasses.replace(training, images=images.count, fingerprint=album.fingerprint())
        if parts is not None:
            with timer("calibration"):
                self.calibration = calibrate("leave_one_out", parts)
        return self

    def calibrate(self, images: ImageLike | list[Any] | tuple[Any, ...], *, batch_size: int = 8) -> Self:
        """Calibrate with images of good parts, none of which it was trained on; they replace an earlier calibration.

        Images of the same pixels count once.

        Args:
            images: a folder of image files, or images as `predict` takes them.
            batch_size: images at a time.

        Raises:
            PatchCoreError: an image cannot be read or was trained on, or the detector has learnt nothing.
        """
        sources = Sources(images_in(images), self.geometry)
        batches = PrefetchLoader(dataset=sources, batch_size=batch_size, num_workers=_READERS)
        return self.calibrate_batches(each_once(batches))

    @torch.inference_mode()
    def calibrate_batches(
        self, batches: Iterable[Tensor], kind: str = "good_images", timer: StageTimer | None = None
    ) -> Self:
        """As `calibrate`, with (B, 3, H, W) uint8 batches; `kind` says how the images were kept unseen."""
        self._refuse_untrained()
        timer = timer or StageTimer(self.workspace.device)

        def parts() -> Iterator[BatchScores]:
            for images in batches:
                self.album.refuse_known(images)
                yield self.score(images, timer)

        self.calibration = calibrate(kind, parts())
        return self

    @overload
    def predict(self, images: ImageLike, *, batch_size: int = 8, false_rejects: float = FALSE_REJECTS) -> Result: ...

    @overload
    def predict(
        self, images: list[Any] | tuple[Any, ...], *, batch_size: int = 8, false_rejects: float = FALSE_REJECTS
    ) -> list[Result]: ...

    def predict(
        self,
        images: ImageLike | list[Any] | tuple[Any, ...],
        *,
        batch_size: int = 8,
        false_rejects: float = FALSE_REJECTS,
    ) -> Result | list[Result]:
        """Score and judge images; what is said of one depends on no other.

        Args:
            images: the path of an image file, a Pillow image, an array (H, W, 3) uint8 of RGB pixels in [0, 255], or a
                list of them.
            batch_size: images at a time.
            false_rejects: share of good images that may be rejected, above 0 and below 1.

        Returns:
            A `Result`, or for a list a list of them; with verdicts if the detector is calibrated.

        Raises:
            PatchCoreError: an image cannot be read, or the detector was not fitted.
            TypeError, ValueError: an array of another type or shape, or a wrong rate.
        """
        judge = Judge(calibration=self.calibration, false_rejects=false_rejects)
        sources = Sources(listed(images), self.geometry)
        if not len(sources):
            return []
        readers = _READERS if len(sources) > 1 else 0  # one image has nothing to be read beside it
        output = self.predict_batches(PrefetchLoader(dataset=sources, batch_size=batch_size, num_workers=readers))
        results = judge.results(output, sources.sizes, self.geometry)
        return results if isinstance(images, list | tuple) else results[0]

    @torch.inference_mode()
    def predict_batches(self, batches: Iterable[Tensor], timer: StageTimer | None = None) -> Output:
        """Score (B, 3, H, W) uint8 batches, one or more, of images as `geometry` gives them."""
        self._refuse_untrained()
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

    def _refuse_untrained(self, cure: str = "fit it, or load a stored one") -> None:
        if self.training is None:
            raise PatchCoreError(f"this {self.method.title} has learnt nothing yet: {cure}")

    def explain(self, image: ImageLike) -> tuple[Evidence, ...]:
        """Show the most anomalous places of an image and what is nearest to them, see `explainer`."""
        return self.explainer()(Sources([image], self.geometry)[0])

    def save(self, folder: str | Path) -> None:
        """Write the detector into a new folder, which appears whole or not at all.

        Raises:
            PatchCoreError: it has learnt nothing, or the folder is there already or cannot be written.
        """
        self._refuse_untrained("there is nothing to store")
        if Path(folder).exists() or not Path(folder).name:
            raise PatchCoreError(f"cannot write {str(folder)!r}: expected the name of a new folder for the model")
        with atomic_write(Path(folder)) as aside:
            aside.mkdir()
            self.write_arrays(aside)
            self.album.write(aside)
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
            photos=tuple(self.album.photos),
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
        if model.calibration is not None and len(model.calibration.scores) != detector.num_members:
            raise PatchCoreError(
                f"{model.folder}: damaged: a calibration of {len(model.calibration.scores)} members, the model has"
                f" {detector.num_members}"
            )
        detector.album = Album.read(model.folder, model.photos, detector.geometry.imagesize)
        detector.training, detector.calibration = model.training, model.calibration
        return detector
