"""A fitted PatchCore in a warm process: one image at a time from decoded pixels, and batches of prepared images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.inputs import BATCH, FRACTION, GEOMETRY, LITE0, Inputs
from benchmarks.measure import Report, Table, at_least, timed
from benchmarks.report import seconds
from patchcore.methods.detector import TrainingImages
from patchcore.methods.patchcore.config import PatchCoreConfig
from patchcore.methods.patchcore.detector import PatchCore
from patchcore.methods.stored_model import Training
from patchcore.system.timing import StageTimer

WIDE = PatchCoreConfig(backbones=("wideresnet50",), layers=(("layer2", "layer3"),), weights="random", fraction=FRACTION)
GPU_BATCH, QUICK_BATCH = 64, 2
STAGES = ("backbone", "embedding", "search", "maps")


def fitted(inputs: Inputs, config: PatchCoreConfig, images: int) -> PatchCore:
    """A detector with the coreset of so many training images as its bank."""
    detector = inputs.detector(config)
    if config.backbones != LITE0.backbones:
        return detector.fit_batches(TrainingImages(batches=inputs.images(images).split(BATCH), count=images))
    detector.members[0].remember(inputs.bank(images), config, None)
    detector.training = Training(images=images)
    return detector


def operations(inputs: Inputs, config: PatchCoreConfig) -> float:
    """Multiplications and additions of the backbone for an image, up to the last layer that is needed."""
    [encoder] = inputs.detector(config).encoders
    image = torch.zeros(1, 3, GEOMETRY.imagesize, GEOMETRY.imagesize, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        encoder(image, StageTimer(inputs.settings.device))
    return counter.get_total_flops()


def run(inputs: Inputs) -> Report:
    """Measure small and large banks; weights do not change what a network costs, so WideResNet50 has random ones."""
    settings = inputs.settings
    on_gpu = settings.device.type == "cuda"
    warm, calls, batches = (1, 2, 1) if settings.quick else (5, 100, 10 if on_gpu else 4)
    batch = QUICK_BATCH if settings.quick else GPU_BATCH if on_gpu else BATCH
    lite, wide = (replace(config, faiss_on_gpu=on_gpu) for config in (LITE0, WIDE))
    cases = [("EfficientNet-Lite0", lite, images) for images in sorted({settings.sizes[0], settings.sizes[-1]})]
    if not settings.quick:
        cases.append(("WideResNet50", wide, settings.sizes[-1 if on_gpu else 0]))
    pictures = inputs.pictures(calls)
    prepared = inputs.images(min(batch, BATCH), test=True)
    latencies, throughputs, targets = [], [], []
    for name, config, images in cases:
        detector = fitted(inputs, config, images)
        case = f"{name}, 224 px, bank {detector.costs()['bank_patches']:,}"
        idle = StageTimer(settings.device)

        ones = [pictures[i % len(pictures)] for i in range(warm + calls)]
        times = [timed(lambda one=one, d=detector: d.predict(one), settings.device)[1] for one in ones]
        p50, p95 = np.percentile(times[warm:], [50, 95])

        predict = detector.predict_batches
        many = prepared.repeat(batch // len(prepared), 1, 1, 1)
        many = [many.pin_memory() if on_gpu else many] * batches
        predict(many[:1], idle)
        timer = StageTimer(settings.device)
        _, spent = timed(lambda m=many, t=timer, p=predict: p(m, t), settings.device)
        rate = batches * batch / spent
        latencies.append((case, seconds(p50), seconds(p95), f"{calls}", f"{rate:,.0f} images/s"))
        stages = timer.seconds()
        flop = operations(inputs, config)
        reached = flop * batches * batch / stages["backbone"] / inputs.floors.operations["float32"]
        throughputs.append(
            (
                case,
                f"{batch}",
                f"{rate:,.0f} images/s",
                *(seconds(stages[stage] / batches / batch) for stage in STAGES),
                f"{flop / 1e9:.3g} GFLOP, {100 * reached:.0f} % of the floor",
            )
        )
        if on_gpu and name == "WideResNet50" and images == 289:
            targets.append(at_least("WideResNet50, 224 px, bank 22,657, on the GPU", 2000, rate, " images/s"))
    return Report(
        tables=[
            Table(
                title="Latency of one image, from decoded pixels to score and map, with the detector in memory",
                header=("", "p50", "p95", "calls", f"in batches of {batch}"),
                rows=latencies,
            ),
            Table(
                title="Throughput, without decoding, and what an image takes",
                header=("", "batch", "throughput", *STAGES, "operations of the backbone"),
                rows=throughputs,
            ),
        ],
        targets=targets,
    )
