"""Inference of a fitted PatchCore in a warm process: one image at a time, and as many as fit, without decoding."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.inputs import BATCH, FRACTION, GEOMETRY, LITE0, Inputs
from benchmarks.measure import Report, Table, at_least, timed
from benchmarks.report import seconds
from patchcore.config import TrainedOn
from patchcore.features.extractor import normalise
from patchcore.methods.patchcore.config import PatchCoreConfig, SamplerConfig
from patchcore.methods.patchcore.detector import PatchCore, PatchEmbedder, load_embedders
from patchcore.methods.patchcore.memory_bank import MemoryBank
from patchcore.system.timing import StageTimer

WIDE = PatchCoreConfig(backbones=("wideresnet50",), layers=(("layer2", "layer3"),), weights="random")
TRAINED_ON = TrainedOn(resize=GEOMETRY.resize, imagesize=GEOMETRY.imagesize)
SAMPLER = SamplerConfig(name="approx_greedy_coreset", fraction=FRACTION)
GPU_BATCH, QUICK_BATCH = 64, 2
STAGES = ("backbone", "embedding", "search", "maps")


def fitted(inputs: Inputs, config: PatchCoreConfig, embedder: PatchEmbedder, images: int) -> PatchCore:
    """A detector with the coreset of so many training images as its bank."""
    device = inputs.settings.device
    detector = PatchCore([embedder], config, SAMPLER, TRAINED_ON)
    if config is LITE0:
        detector.banks_ = [MemoryBank(inputs.bank(images), on_gpu=device.type == "cuda")]
        return detector
    batches = inputs.images(images).split(BATCH)
    return detector.fit(batches, images, torch.Generator().manual_seed(0), StageTimer(device))


def operations(embedder: PatchEmbedder) -> float:
    """Multiplications and additions of the backbone for an image, up to the last layer that is needed."""
    image = normalise(torch.zeros(1, 3, GEOMETRY.imagesize, GEOMETRY.imagesize, dtype=torch.uint8))
    with FlopCounterMode(display=False) as counter:
        embedder.extractor(image.to(embedder.device))
    return counter.get_total_flops()


def run(inputs: Inputs) -> Report:
    """Measure small and large banks; weights do not change what a network costs, so WideResNet50 has random ones."""
    settings = inputs.settings
    on_gpu = settings.device.type == "cuda"
    warm, calls, batches = (1, 2, 1) if settings.quick else (5, 100, 10 if on_gpu else 4)
    batch = QUICK_BATCH if settings.quick else GPU_BATCH if on_gpu else BATCH
    wide = PatchCoreConfig(**{**vars(WIDE), "faiss_on_gpu": on_gpu})
    lite = inputs.embedder
    cases = [("EfficientNet-Lite0", LITE0, lite, images) for images in sorted({settings.sizes[0], settings.sizes[-1]})]
    if not settings.quick:
        [embedder] = load_embedders(wide, GEOMETRY.imagesize, [settings.device])
        cases.append(("WideResNet50", wide, embedder, settings.sizes[-1 if on_gpu else 0]))
    pictures = inputs.images(min(batch, BATCH), test=True)
    latencies, throughputs, targets = [], [], []
    for name, config, embedder, images in cases:
        detector = fitted(inputs, config, embedder, images)
        case = f"{name}, 224 px, bank {len(detector.banks_[0]):,}"
        idle = StageTimer(settings.device)

        ones = [pictures[i % len(pictures)][None] for i in range(warm + calls)]
        times = [timed(lambda one=one, d=detector, t=idle: d.predict([one], t), settings.device)[1] for one in ones]
        p50, p95 = np.percentile(times[warm:], [50, 95])
        latencies.append((case, seconds(p50), seconds(p95), f"{calls}"))

        many = pictures.repeat(batch // len(pictures), 1, 1, 1)
        many = [many.pin_memory() if on_gpu else many] * batches
        detector.predict(many[:1], idle)
        timer = StageTimer(settings.device)
        _, spent = timed(lambda d=detector, m=many, t=timer: d.predict(m, t), settings.device)
        rate = batches * batch / spent
        stages = timer.seconds()
        flop = operations(embedder)
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
                title="Latency of one image, warmed up, without decoding",
                header=("", "p50", "p95", "calls"),
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
