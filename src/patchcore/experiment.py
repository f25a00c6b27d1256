"""The one loop: for each category fit, predict, measure, report, store. Knows no method by name."""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from patchcore import metrics
from patchcore.config import DatasetConfig, RunConfig, to_plain
from patchcore.datasets.category import load_masks, split_train
from patchcore.datasets.geometry import Geometry
from patchcore.datasets.layout import scan_category
from patchcore.datasets.loader import ImageDataset, image_loader
from patchcore.features.cache import FeatureCache
from patchcore.pictures import heat, histogram, overlay, png
from patchcore.results import run_folder
from patchcore.scoring import Verdict, judge, min_max_normalise
from patchcore.system import environment, files, memory, timing
from patchcore.types import Output, PatchCoreError, Predictions, Sample

log = logging.getLogger(__name__)

CONFIG = "config.yaml"
TRAINING = "training"  # folder of what trainings record

# Settings that a resumed run may have other values of.
_MAY_DIFFER = {
    *("gpu", "resume", "results_path", "num_workers", "weights_dir", "checkpoint_seconds", "faiss_num_workers"),
    *("feature_cache", "feature_cache_gib"),
}


class Detector(Protocol):
    """What the loop needs of a method's detector for one category."""

    def fit(
        self,
        batches: Iterable[Tensor],
        num_images: int,
        generator: torch.Generator,
        timer: timing.StageTimer,
        folder: Path,
    ) -> Any:
        """Learn from good images, (B, 3, H, W) uint8 batches of `num_images` in all.

        `folder`, which need not exist, is for a record of the training and for what is needed to go on with it.
        """

    def predict(self, batches: Iterable[Tensor], timer: timing.StageTimer) -> Output:
        """Score images, (B, 3, H, W) uint8 batches."""

    def costs(self) -> dict[str, float]:
        """Sizes of what was learnt, for the results."""

    def save(self, folder: Path) -> None:
        """Write the detector into an existing folder."""


class Method(Protocol):
    """Gives a detector for every category.

    Attributes:
        device: where the time of its stages is taken.
        cache: where its detectors look for feature maps; None without one.
        fits: whether the detectors are to be fitted, rather than loaded ones.
        settings: what goes into `config.yaml`.
    """

    device: torch.device
    cache: FeatureCache | None
    fits: bool
    settings: dict[str, Any]

    def detector(self, category: str) -> Detector:
        """A detector for `category`, fresh or loaded."""

    def expected_bytes(self, num_images: int) -> Mapping[torch.device, int]:
        """What a detector holds of so many training images, by device."""


@dataclass
class Summary:
    """How a run ended: its folder, the results by row name, and the reason by category that failed."""

    folder: Path
    rows: dict[str, dict[str, float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Category:
    """The images of one category, split; `row` names it in the results."""

    name: str
    row: str
    train: Sequence[Sample]
    held_out: Sequence[Sample]
    test: Sequence[Sample]


def run_experiment(run: RunConfig, dataset: DatasetConfig, method: Method, *, command: str) -> Summary:
    """Run a method on every category and write what the run leaves.

    All categories are looked at before anything is written. A category that fails is named and leaves the others
    alone; a run in which none succeeds and none can be resumed leaves nothing.

    Raises:
        PatchCoreError: a category's folder is not as it must be, the results folder cannot be written, or the run to
            resume had other settings.
    """
    categories = [_scan(dataset, name, run.seed) for name in dataset.categories]
    content = {"command": command, "run": run, "dataset": dataset, **method.settings}
    content["test_set"] = {category.row: _test_set(category, dataset.path) for category in categories}
    content = to_plain({**content, "environment": environment.environment()})
    new = [path for path in (run.results_path / run.log_project, run.results_path) if not path.exists()]
    folder = run_folder.newest_run_folder(run.results_path, run.log_project, run.log_group) if run.resume else None
    if folder:
        check_resumable(folder, content)
        summary = Summary(folder, run_folder.finished_rows(folder))
        defect_types = run_folder.read_rows(folder / "defect_types.csv") if summary.rows else []
    else:
        folder = run_folder.create_run_folder(run.results_path, run.log_project, run.log_group)
        summary, defect_types = Summary(folder), []

    def worth_keeping() -> bool:
        return bool(summary.rows) or (folder / TRAINING).exists()

    with files.removed_unless([folder, *new], worth_keeping), _log_file(folder / "run.log"):
        if not (folder / CONFIG).exists():
            run_folder.write_yaml(folder / CONFIG, content)
        unfinished = [category for category in categories if category.row not in summary.rows]
        if unfinished:
            _say_expected_memory(method, max((_images(category.train, dataset) for category in unfinished), key=len))
        for category in categories:
            if category.row in summary.rows:
                log.info("%s: finished before, skipped", category.name)
                continue
            try:
                for leftover in _category_outputs(folder, category):
                    shutil.rmtree(leftover, ignore_errors=True)
                row, by_defect_type = _run_category(run, dataset, method, category, folder)
            except KeyboardInterrupt:
                finished = ", ".join(summary.rows) or "none"
                goes_on = "; --resume goes on from here" if worth_keeping() else ""
                log.error("interrupted in %s; finished: %s%s", category.name, finished, goes_on)
                raise
            except Exception as error:  # whatever it is, it must not lose the other categories
                log.debug("category %s failed", category.name, exc_info=True)
                summary.failures[category.name] = describe(error)
                log.error("%s: %s", category.name, summary.failures[category.name])
                continue
            if by_defect_type:
                rows_of_others = [other for other in defect_types if other[run_folder.ROW_NAMES] != category.row]
                defect_types = rows_of_others + by_defect_type
                run_folder.write_rows(folder / "defect_types.csv", defect_types)
            summary.rows[category.row] = row
            run_folder.write_results(folder / "results.csv", summary.rows)
    return summary


def describe(error: BaseException) -> str:
    """An error in one line: its own words if it is ours, with its type if it is not."""
    text = " ".join(str(error).split())
    return text if isinstance(error, PatchCoreError) else f"{type(error).__name__}: {text}"


def check_resumable(folder: Path, content: dict[str, Any]) -> None:
    """See that a run folder was begun with the settings of `content`, those aside that change no result.

    Raises:
        PatchCoreError: its settings cannot be read, or differ; the first that does is named.
    """
    begun = run_folder.read_yaml(folder / CONFIG)
    for section in [*begun, *(name for name in content if name not in begun)]:
        if section in ("command", "environment"):
            continue
        old, now = begun.get(section), content.get(section)
        if not (isinstance(old, dict) and isinstance(now, dict)):
            old, now, names = {"": old}, {"": now}, [""]
        else:
            names = [name for name in {**old, **now} if name not in _MAY_DIFFER]
        for name in names:
            if old.get(name) != now.get(name):
                raise PatchCoreError(
                    f"--resume: {folder} was begun with {section} {name} {old.get(name)!r}, now it is"
                    f" {now.get(name)!r}: repeat the settings, or leave --resume out to start a new run"
                )


def _say_expected_memory(method: Method, images: ImageDataset) -> None:
    """Say what training on the largest category takes, and warn where that is more than there is."""
    for device, expected in method.expected_bytes(len(images)).items():
        free = memory.available_bytes(device)
        place = "host memory" if device.type == "cpu" else f"memory on {device}"
        sizes = f"{memory.format_bytes(expected)} of {place}, {memory.format_bytes(free)} are free"
        needs = f"{len(images)} training images take about {sizes}"
        if expected > free:
            log.warning("%s: expect the run to swap or end; fewer images or a smaller --imagesize take less", needs)
        else:
            log.info(needs)


def _category_outputs(folder: Path, category: _Category) -> list[Path]:
    """Folders that an interrupted run may have left of a category."""
    return [folder / kind / category.row for kind in ("models", "segmentation_images")]


def _scan(dataset: DatasetConfig, name: str, seed: int) -> _Category:
    train, test = scan_category(dataset.path, name)
    train, held_out = split_train(train, dataset.train_val_split, np.random.default_rng(seed))
    return _Category(name=name, row=f"{dataset.name}_{name}", train=train, held_out=held_out, test=test)


def _test_set(category: _Category, root: Path) -> dict[str, object]:
    """What tells whether two runs were tested on the same images: their number, and a hash of their names and sizes."""
    images = [f"{sample.path.relative_to(root).as_posix()} {sample.path.stat().st_size}" for sample in category.test]
    return {"images": len(images), "fingerprint": hashlib.sha256("\n".join(images).encode()).hexdigest()[:12]}


def _run_category(
    run: RunConfig, dataset: DatasetConfig, method: Method, category: _Category, folder: Path
) -> tuple[dict[str, float], list[dict[str, object]]]:
    """Run one category and return its row of the results, and its rows by defect type."""
    counts = {"held-out": len(category.held_out), "test": len(category.test)}
    if method.fits:
        counts = {"training": len(category.train), **counts}
    log.info("%s: %s images", category.name, ", ".join(f"{count} {kind}" for kind, count in counts.items() if count))
    memory.reset_peak_gpu(method.device)
    if method.cache is not None:
        method.cache.take_counts()  # those of a category that failed
    loop = _Loop(dataset, category, method.device)
    masks = load_masks(category.test, loop.geometry)  # before the training, lest a bad one be found after it
    detector = method.detector(category.name)
    costs = loop.fit(detector, run.seed, folder / TRAINING / category.row) if method.fits else {}
    pictures: list[NDArray[np.uint8]] | None = [] if run.save_segmentation_images else None
    output, prediction_costs = loop.predict(detector, category.test, "testing", pictures)
    costs |= prediction_costs | detector.costs()
    predictions = Predictions(
        **{name: getattr(output, name) for name in Output.__dataclass_fields__},
        labels=np.array([sample.is_defective for sample in category.test]),
        masks=masks,
        samples=tuple(category.test),
    )
    verdict = None
    if category.held_out:
        held_out, _ = loop.predict(detector, category.held_out, "held out", None)
        verdict = judge(output.raw_scores, held_out.raw_scores)
    with ThreadPoolExecutor(1) as meanwhile:  # pictures are compressed on one core while the other sorts pixels
        writing = []
        if pictures is not None:
            target = folder / "segmentation_images" / category.row
            writing.append(meanwhile.submit(_write_overlays, target, predictions, pictures))
        if run.save_anomaly_scores:
            target = folder / "anomaly_scores"
            writing.append(meanwhile.submit(_write_scores, target, category, predictions, dataset.path, verdict))
        quality = _measure(predictions, verdict, category.name)
        by_defect_type = _measure_defect_types(category.row, predictions, verdict)
        for task in writing:
            task.result()
    if run.save_model and method.fits:
        costs["model_mib"] = _save(detector, folder / "models" / category.row)
    if method.cache is not None:
        costs["cached_share"] = _cached_share(method.cache, category.name)
    costs["peak_host_mib"] = memory.peak_host_mib()
    costs["peak_gpu_mib"] = memory.peak_gpu_mib(method.device)
    if method.fits:
        costs["train_images"] = len(category.train)
    return quality | costs | {"test_images": len(category.test)}, by_defect_type


class _Loop:
    """Feeds the images of a category to a detector and takes the time."""

    def __init__(self, dataset: DatasetConfig, category: _Category, device: torch.device) -> None:
        self.geometry = _geometry(dataset)
        self._dataset = dataset
        self._category = category
        self._device = device

    def fit(self, detector: Detector, seed: int, folder: Path) -> dict[str, float]:
        """Fit the detector; returns the seconds that it took, in all and by stage."""
        timer = timing.StageTimer(self._device)
        images = _images(self._category.train, self._dataset)
        begin = time.perf_counter()
        batches = self._batches(images, timer, "training")
        detector.fit(batches, len(images), torch.Generator().manual_seed(seed), timer, folder)
        stages = timer.seconds()  # before the clock is read: on CUDA it waits for the device
        seconds = time.perf_counter() - begin
        spent = ", ".join(f"{stage} {value:.1f} s" for stage, value in stages.items())
        log.info("%s: trained in %.1f s (%s)", self._category.name, seconds, spent)
        return {"fit_seconds": seconds} | {f"fit_{stage}_seconds": value for stage, value in stages.items()}

    def predict(
        self,
        detector: Detector,
        samples: Sequence[Sample],
        name: str,
        pictures: list[NDArray[np.uint8]] | None,
    ) -> tuple[Output, dict[str, float]]:
        """Score samples, and append what the network saw of them to `pictures`, if there is a list.

        Returns:
            The output, and milliseconds per image in all and by stage.
        """
        timer = timing.StageTimer(self._device)
        begin = time.perf_counter()
        batches = self._batches(ImageDataset(samples, self.geometry), timer, name)
        output = detector.predict(batches if pictures is None else _keeping(batches, pictures), timer)
        stages = timer.seconds()
        milliseconds = {"ms_per_image": (time.perf_counter() - begin) / len(samples) * 1e3}
        return output, milliseconds | {
            f"{stage}_ms_per_image": value / len(samples) * 1e3 for stage, value in stages.items()
        }

    def _batches(self, images: ImageDataset, timer: timing.StageTimer, name: str) -> Iterator[Tensor]:
        loader = image_loader(images, self._dataset.batch_size, self._dataset.num_workers, pin_memory=True)
        with timing.progress_bar(f"{self._category.name}: {name}", len(images), "image") as bar:
            for batch in timer.waiting("decode", iter(loader)):
                yield batch
                bar.update(len(batch))


def _geometry(dataset: DatasetConfig) -> Geometry:
    return Geometry(resize=dataset.resize, imagesize=dataset.imagesize, reduced_decoding=dataset.reduced_decoding)


def _images(train: Sequence[Sample], dataset: DatasetConfig) -> ImageDataset:
    """The training images, augmented if they are to be."""
    return ImageDataset(train, _geometry(dataset), augment=dataset.augment)


def _measure(predictions: Predictions, verdict: Verdict | None, category: str) -> dict[str, float]:
    """The metrics of a category by column, the study's three first, and what the threshold does if there is one."""
    images = metrics.image_metrics(predictions.scores, predictions.labels)
    pixels = metrics.pixel_metrics(predictions.maps, predictions.masks, predictions.labels)
    if predictions.labels.all() or not predictions.labels.any():
        only = "defective" if predictions.labels.all() else "good"
        log.warning("%s: all test images are %s, so image metrics are undefined (nan)", category, only)
    if predictions.masks is None:
        log.warning("%s: no ground_truth folder, so pixel metrics are undefined (nan)", category)
    elif not predictions.masks.any():
        log.warning("%s: no defect pixel in the test masks, so pixel metrics are undefined (nan)", category)
    measured = {
        "instance_auroc": images.auroc,
        "full_pixel_auroc": pixels.auroc,
        "anomaly_pixel_auroc": pixels.anomaly_auroc,
        "image_ap": images.ap,
        "image_f1max": images.f1max,
        "pixel_ap": pixels.ap,
        "pixel_f1max": pixels.f1max,
        "aupro": pixels.aupro,
    }
    if verdict is not None:
        measured |= {"threshold": verdict.threshold} | _operating_point(verdict.rejected, predictions.labels)
    return measured


def _measure_defect_types(row: str, predictions: Predictions, verdict: Verdict | None) -> list[dict[str, object]]:
    """How each kind of defect is told from the good images, and its pixels from the normal ones around them."""
    defects = np.array([sample.defect for sample in predictions.samples])
    rows: list[dict[str, object]] = []
    for defect in sorted(set(defects[predictions.labels])):
        chosen = defects == defect
        compared = chosen | ~predictions.labels
        pixels = float("nan")
        if predictions.masks is not None:
            pixels = metrics.auroc(predictions.maps[chosen], predictions.masks[chosen])
        rows.append(
            {
                run_folder.ROW_NAMES: row,
                "defect_type": defect,
                "images": int(chosen.sum()),
                "instance_auroc": metrics.auroc(predictions.scores[compared], predictions.labels[compared]),
                "anomaly_pixel_auroc": pixels,
                "defects_caught": float("nan") if verdict is None else float(verdict.rejected[chosen].mean()),
            }
        )
    return rows


def _operating_point(rejected: NDArray[np.bool_], labels: NDArray[np.bool_]) -> dict[str, float]:
    """What the threshold from held-out good images catches of the defective and rejects of the good test images."""
    return {
        "defects_caught": float(rejected[labels].mean()) if labels.any() else float("nan"),
        "false_rejects": float(rejected[~labels].mean()) if not labels.all() else float("nan"),
    }


def _cached_share(cache: FeatureCache, category: str) -> float:
    """Say what the feature cache did for a category; returns the share of backbone passes that it saved."""
    counts = cache.take_counts()
    total = counts.found + counts.passed
    log.info("%s: feature maps of %d of %d backbone inputs from the cache", category, counts.found, total)
    return counts.found / total


def _save(detector: Detector, folder: Path) -> float:
    """Store a detector; returns its size on disk in MiB."""
    with files.atomic_write(folder) as aside:
        aside.mkdir()
        detector.save(aside)
        return sum(path.stat().st_size for path in aside.iterdir()) / 2**20


def _write_scores(
    folder: Path, category: _Category, predictions: Predictions, root: Path, verdict: Verdict | None
) -> None:
    """Write the scores of a category, a picture of their distribution, and what a comparison needs of the maps."""
    run_folder.write_scores(folder / f"{category.row}.csv", predictions, root, verdict)
    single = len(predictions.raw_scores) == 1  # the threshold of an ensemble is in units of its own
    picture = histogram.score_histogram(
        predictions.scores,
        predictions.labels,
        verdict.threshold if verdict is not None and single else None,
        title=f"{category.name}: image scores",
    )
    with files.atomic_write(folder / f"{category.row}.png") as aside:
        picture.save(aside, "PNG")
    if predictions.masks is not None:
        pairs = metrics.pixel_pairs(predictions.maps, predictions.masks, predictions.labels)
        run_folder.write_pixel_pairs(folder / f"{category.row}_pixels.npz", pairs)


def _keeping(batches: Iterable[Tensor], pictures: list[NDArray[np.uint8]]) -> Iterator[Tensor]:
    """Pass batches on, and keep their images as (H, W, 3), so that overlays need not decode them again."""
    for batch in batches:
        pictures.extend(batch.permute(0, 2, 3, 1).numpy())  # (B, 3, H, W) -> B x (H, W, 3)
        yield batch


def _write_overlays(folder: Path, predictions: Predictions, pictures: Sequence[NDArray[np.uint8]]) -> None:
    """Write a picture per image into a new folder, all with one colour scale."""
    scale = heat.HeatScale.of(predictions.maps)
    raw, normalised = predictions.raw_scores.mean(axis=0), min_max_normalise(predictions.scores)

    def write(i: int) -> None:
        sample = predictions.samples[i]
        name = f"{sample.category}/{sample.defect}/{sample.path.name}"
        picture = overlay.overlay(
            Image.fromarray(pictures[i]),
            None if predictions.masks is None else predictions.masks[i],
            predictions.maps[i],
            scale=scale,
            title=f"{name}   score {normalised[i]:.3f} (raw {raw[i]:.4g})",
        )
        (aside / run_folder.overlay_name(sample, normalised[i])).write_bytes(png.encode(picture))

    with files.atomic_write(folder) as aside, ThreadPoolExecutor() as pool:
        aside.mkdir()
        for _ in pool.map(write, range(len(predictions.samples))):
            pass


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Write the package's log to a file as well, in more detail than the terminal shows."""
    package = logging.getLogger("patchcore")
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        handler.close()
