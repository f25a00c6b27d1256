"""One category of a run: its images, its detector, and what it leaves."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from patchcore import evaluation, metrics
from patchcore.calibration import Verdict
from patchcore.config import CALIBRATION_FOLDS, DatasetConfig, RunConfig
from patchcore.datasets.find import find_test, find_training
from patchcore.datasets.geometry import load_masks
from patchcore.datasets.layout import split_train
from patchcore.datasets.loader import VIEWS, ImageDataset, PrefetchLoader
from patchcore.features.cache import FeatureCache
from patchcore.features.workspace import Workspace
from patchcore.methods.calibrating import calibrate_by_folds
from patchcore.methods.detector import Detector
from patchcore.methods.method import Method
from patchcore.methods.stored_model import StoredModel, Training
from patchcore.methods.training_images import TrainingImages
from patchcore.pictures.heat import HeatScale
from patchcore.pictures.histogram import draw_histogram
from patchcore.pictures.overlay import save_overlay
from patchcore.results import columns
from patchcore.results.config_file import row_name
from patchcore.results.run_folder import RunFolder
from patchcore.results.scores import write_pixel_pairs, write_scores
from patchcore.suspects import report_suspects
from patchcore.system.devices import peak_gpu_mib, reset_peak_gpu
from patchcore.system.files import atomic_write
from patchcore.system.memory import peak_host_mib
from patchcore.system.timing import StageTimer, progress_bar
from patchcore.types import Output, PatchCoreError, Predictions, Sample

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a run does: fit a fresh detector for every category, or take the one that is stored for it.

    Attributes:
        configs: category -> the settings of its detector.
        models: category -> the stored model to evaluate; empty where detectors are fitted.
    """

    method: Method
    configs: Mapping[str, Any]
    workspace: Workspace
    models: Mapping[str, StoredModel] = field(default_factory=dict)

    def detector(self, category: str, dataset: DatasetConfig) -> Detector:
        """The detector of a category, fresh or loaded."""
        if self.models:
            return self.method.detector_class.from_stored(self.models[category], self.workspace)
        return self.fresh(category, dataset)

    def fresh(self, category: str, dataset: DatasetConfig) -> Detector:
        """A detector of a category that has its networks, and has learnt nothing."""
        geometry = {name: getattr(dataset, name) for name in ("resize", "imagesize", "reduced_decoding")}
        return self.method.detector_class(self.configs[category], workspace=self.workspace, **geometry)


@dataclass(frozen=True, kw_only=True)
class Category:
    """The images of one category, split; `row` names it in the results.

    `unlabelled` counts the images beside the test images of which nothing says whether they are good.
    """

    name: str
    row: str
    train: Sequence[Sample]
    held_out: Sequence[Sample]
    test: Sequence[Sample]
    unlabelled: int = 0


def scan(dataset: DatasetConfig, name: str, seed: int, *, training: bool) -> Category:
    """Find and split the images of a category; the seed decides which are held out.

    An evaluation of stored models needs test images, and looks at no other.
    """
    train: list[Sample] = []
    held_out: list[Sample] = []
    if training:
        train, held_out = split_train(
            find_training(dataset, name), dataset.train_val_split, np.random.default_rng(seed)
        )
    test, unlabelled = find_test(dataset, name)
    if not (test or training):
        kind = "test images with a label" if unlabelled else "test images"
        raise PatchCoreError(f"{name}: no {kind} in {dataset.root}: nothing to evaluate")
    return Category(
        name=name,
        row=row_name(dataset.name, name),
        train=train,
        held_out=held_out,
        test=test,
        unlabelled=unlabelled,
    )


@dataclass
class CategoryRun:
    """One category from its images to what a run leaves of it: a row, and its rows by kind of defect."""

    config: RunConfig
    dataset: DatasetConfig
    job: Job
    category: Category
    folder: RunFolder
    run_id: str
    row: dict[str, float] = field(default_factory=dict)
    defect_types: dict[str, dict[str, float]] = field(default_factory=dict)
    highest: Path | None = None

    def run(self) -> CategoryRun:
        category, workspace = self.category, self.job.workspace
        found = {"training": category.train, "held-out": category.held_out, "test": category.test}
        told = ", ".join(f"{len(samples)} {kind}" for kind, samples in found.items() if samples)
        log.info("%s: %s images", category.name, told)
        if category.unlabelled:
            log.warning(
                "%s: images directly in the folder test (%d) have no label: not measured, but predict judges them",
                category.name,
                category.unlabelled,
            )
        reset_peak_gpu(workspace.device)
        if workspace.cache is not None:
            workspace.cache.take_counts()  # those of a category that failed
        detector = self.job.detector(category.name, self.dataset)
        masks = load_masks(category.test, detector.geometry)  # before the training, lest a bad one be found after it
        costs = {} if self.job.models else self._fit(detector)
        quality = dict.fromkeys(columns.METRICS, math.nan)
        if category.test:
            quality, prediction_costs = self._test(detector, masks)
            costs |= prediction_costs
        else:
            log.info("%s: %s", category.name, columns.NOTHING_TO_MEASURE)
        costs |= detector.costs()
        if self.config.save_model and not self.job.models:
            target = self.folder.models / category.row
            detector.save(target)
            costs[columns.MODEL_MIB] = sum(path.stat().st_size for path in target.iterdir()) / 2**20
        if workspace.cache is not None:
            costs[columns.CACHED_SHARE] = self._cached_share(workspace.cache)
        costs[columns.PEAK_HOST_MIB] = peak_host_mib()
        costs[columns.PEAK_GPU_MIB] = peak_gpu_mib(workspace.device)
        if not self.job.models:
            costs[columns.TRAIN_IMAGES] = len(category.train)
        if taken := quality.keys() & costs.keys():
            raise ValueError(f"the method gives a cost {taken.pop()}, a name that the results have already")
        counts = {
            columns.TEST_IMAGES: len(category.test),
            columns.DEFECTIVE_IMAGES: sum(sample.is_defective for sample in category.test),
        }
        self.row = quality | costs | counts
        return self

    def _test(self, detector: Detector, masks: NDArray[np.bool_] | None) -> tuple[dict[str, float], dict[str, float]]:
        """Score the test images and write what is asked for of them; returns the metrics, and what scoring took."""
        category = self.category
        pictures: list[NDArray[np.uint8]] | None = [] if self.config.save_segmentation_images else None
        output, costs = self._predict(detector, category.test, "testing", pictures)
        predictions = evaluation.predictions_of(output, category.test, masks)
        del output  # the maps of every member of an ensemble
        verdict = None
        if detector.calibration is not None:
            verdict = detector.calibration.judge(predictions.raw_scores, self.config.false_rejects)
            if verdict.rate > self.config.false_rejects:
                log.warning(
                    "%s: %d calibration images allow a rate of false rejects of 1/%d = %.2g, not of %g: that is used",
                    category.name,
                    len(detector.calibration),
                    len(detector.calibration) + 1,
                    verdict.rate,
                    self.config.false_rejects,
                )
        elif self.job.models:
            log.info("%s: the model is not calibrated, so there are no verdicts: see bin/calibrate.py", category.name)
        return self._measure_and_write(predictions, verdict, pictures), costs

    def _fit(self, detector: Detector) -> dict[str, float]:
        """Fit the detector; returns the seconds that it took, in all and by stage."""
        timer = StageTimer(self.job.workspace.device)
        dataset, category = self.dataset, self.category
        images = ImageDataset(category.train, detector.geometry, augment=dataset.augment)
        begin = time.perf_counter()
        training = Training(
            seed=self.config.seed,
            train_val_split=dataset.train_val_split,
            category=category.name,
            run=self.run_id,
        )
        kind = self._calibration()
        training_images = TrainingImages(
            batches=self._batches(images, timer, "training"),
            count=len(images),
            views=VIEWS if dataset.augment else 1,
            names=[Path(os.path.relpath(sample.path, dataset.root)).as_posix() for sample in category.train],
            leave_one_out=kind == "leave_one_out",
        )
        detector.fit_batches(training_images, training, timer=timer, record=self.folder.trainings / category.row)
        if kind in ("held_out", "folds"):
            with timer("calibration"):
                self._calibrate(detector, kind, training_images)
        stages = timer.seconds()  # before the clock is read: on CUDA it waits for the device
        seconds = time.perf_counter() - begin
        spent = ", ".join(f"{stage} {value:.1f} s" for stage, value in stages.items())
        log.info("%s: trained in %.1f s (%s)", category.name, seconds, spent)
        if detector.calibration is not None:
            calibrated = category.held_out if kind == "held_out" else category.train
            report_suspects(
                detector.calibration, calibrated, detector.geometry, self.folder, category.row, dataset.root
            )
        by_stage = {columns.fit_stage_seconds(stage): value for stage, value in stages.items()}
        return {columns.FIT_SECONDS: seconds} | by_stage

    def _calibration(self) -> str:
        """How the detector is calibrated; without being asked only where something is kept that needs it."""
        config, splits = self.config, bool(self.category.held_out)
        kept = config.save_model or config.save_anomaly_scores or splits
        if config.calibration is None and not kept:
            return "none"
        kind = self.job.method.calibration(config.calibration, splits=splits)
        if kind == "none" and config.calibration is None:
            log.info("%s: no calibration, so no verdicts: --calibration folds makes one", self.category.name)
        return kind

    def _calibrate(self, detector: Detector, kind: str, images: TrainingImages) -> None:
        """Calibrate with the images that were held out, or by folds of those that were trained on."""
        category = self.category

        def batches(photos: Sequence[Sample], stage: str, augment: bool = False) -> Iterator[Tensor]:
            timer = StageTimer(self.job.workspace.device)  # the time is that of the calibration
            return self._batches(ImageDataset(photos, detector.geometry, augment=augment), timer, stage)

        if kind == "held_out":
            detector.calibrate_batches(batches(category.held_out, kind), kind)
            return

        def chosen(photos: Sequence[int], learn: bool) -> Iterator[Tensor]:
            augment = learn and self.dataset.augment
            return batches([category.train[photo] for photo in photos], "fold" if learn else "calibration", augment)

        calibrate_by_folds(detector, images, self.config.calibration_folds or CALIBRATION_FOLDS, chosen)

    def _predict(
        self, detector: Detector, samples: Sequence[Sample], name: str, pictures: list[NDArray[np.uint8]] | None
    ) -> tuple[Output, dict[str, float]]:
        """Score samples, and append what the network saw of them to `pictures`, if there is a list.

        Returns:
            The output, and milliseconds per image in all and by stage.
        """
        timer = StageTimer(self.job.workspace.device)
        begin = time.perf_counter()
        batches = self._batches(ImageDataset(samples, detector.geometry), timer, name)
        output = detector.predict_batches(batches if pictures is None else _keeping(batches, pictures), timer)
        stages = timer.seconds()
        milliseconds = {columns.MS_PER_IMAGE: (time.perf_counter() - begin) / len(samples) * 1e3}
        return output, milliseconds | {
            columns.stage_ms_per_image(stage): value / len(samples) * 1e3 for stage, value in stages.items()
        }

    def _batches(self, images: ImageDataset, timer: StageTimer, name: str) -> Iterator[Tensor]:
        loader = PrefetchLoader(
            dataset=images, batch_size=self.dataset.batch_size, num_workers=self.dataset.num_workers, pin_memory=True
        )
        with progress_bar(f"{self.category.name}: {name}", len(images), "image") as bar:
            for batch in timer.waiting("decode", iter(loader)):
                yield batch
                bar.update(len(batch))

    def _measure_and_write(
        self, predictions: Predictions, verdict: Verdict | None, pictures: list[NDArray[np.uint8]] | None
    ) -> dict[str, float]:
        """The metrics; pictures are compressed on one core while the other sorts pixels."""
        normalised = evaluation.min_max_normalise(predictions.scores)
        with ThreadPoolExecutor(1) as meanwhile:
            writing = []
            if pictures is not None:
                writing.append(meanwhile.submit(self._write_overlays, predictions, normalised, pictures))
            if self.config.save_anomaly_scores:
                writing.append(meanwhile.submit(self._write_scores, predictions, normalised, verdict))
            quality = evaluation.measure(predictions, verdict, self.category.name)
            self.defect_types = evaluation.measure_defect_types(predictions, verdict)
            for task in writing:
                task.result()
        return quality

    def _write_scores(self, predictions: Predictions, normalised: NDArray[np.float64], verdict: Verdict | None) -> None:
        """Write the scores, a picture of their distribution, and what a comparison needs of the maps."""
        row = self.category.row
        write_scores(self.folder.scores(row), predictions, normalised, root=self.dataset.root, verdict=verdict)
        single = len(predictions.raw_scores) == 1  # the threshold of an ensemble is in units of its own
        picture = draw_histogram(
            predictions.scores,
            predictions.labels,
            verdict.threshold if verdict is not None and single else None,
            title=f"{self.category.name}: image scores",
        )
        with atomic_write(self.folder.score_histogram(row)) as aside:
            picture.save(aside, "PNG")
        if predictions.masks is not None:
            pairs = metrics.pixel_pairs(predictions.maps, predictions.masks, predictions.labels)
            write_pixel_pairs(self.folder.pixel_pairs(row), pairs)

    def _write_overlays(
        self, predictions: Predictions, normalised: NDArray[np.float64], pictures: Sequence[NDArray[np.uint8]]
    ) -> None:
        """Write a picture per image into a new folder, all with one colour scale."""
        scale = HeatScale.of(predictions.maps)
        raw = predictions.raw_scores.mean(axis=0)
        paths = [
            self.folder.overlay(self.category.row, sample.path.relative_to(self.dataset.root).as_posix(), score)
            for sample, score in zip(predictions.samples, normalised, strict=True)
        ]

        def write(i: int) -> None:
            sample = predictions.samples[i]
            name = f"{sample.category}/{sample.defect}/{sample.path.name}"
            save_overlay(
                aside / paths[i].name,
                Image.fromarray(pictures[i]),
                None if predictions.masks is None else predictions.masks[i],
                predictions.maps[i],
                scale=scale,
                title=name,
                score=float(normalised[i]),
                raw_score=float(raw[i]),
            )

        with atomic_write(self.folder.overlays / self.category.row) as aside, ThreadPoolExecutor() as pool:
            aside.mkdir()
            for _ in pool.map(write, range(len(paths))):
                pass
        self.highest = paths[int(normalised.argmax())]

    def _cached_share(self, cache: FeatureCache) -> float:
        """Say what the feature cache did for the category; returns the share of backbone passes that it saved."""
        found, passed = cache.take_counts()
        total = found + passed
        log.info("%s: feature maps of %d of %d backbone inputs from the cache", self.category.name, found, total)
        return found / total


def _keeping(batches: Iterable[Tensor], pictures: list[NDArray[np.uint8]]) -> Iterator[Tensor]:
    """Pass batches on, and keep their images as (H, W, 3), so that overlays need not decode them again."""
    for batch in batches:
        pictures.extend(batch.permute(0, 2, 3, 1).numpy())  # (B, 3, H, W) -> B x (H, W, 3)
        yield batch
