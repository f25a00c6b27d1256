"""FastFlow (Yu et al. 2021): a position is as anomalous as its features are unlikely."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from patchcore.features.encoder import Encoder
from patchcore.methods.batch_scores import BatchScores
from patchcore.methods.detector import Detector
from patchcore.methods.fastflow import METHOD
from patchcore.methods.fastflow.brightness import brightness, match_brightness
from patchcore.methods.fastflow.config import DENSITIES, WEIGHTS_FILE, FastFlowConfig
from patchcore.methods.fastflow.graph import FastFlowGraph
from patchcore.methods.fastflow.model import FastFlowModel, image_scores
from patchcore.methods.fastflow.record import TrainingRecord
from patchcore.methods.fastflow.samples import collect, expected_bytes
from patchcore.methods.fastflow.tiled_encoder import TiledEncoder
from patchcore.methods.fastflow.tiles import Tiling
from patchcore.methods.fastflow.training import train
from patchcore.methods.training_images import TrainingImages
from patchcore.scoring import anomaly_maps
from patchcore.settings import settings_of, to_plain
from patchcore.system.timing import StageTimer
from patchcore.types import PatchCoreError


class FastFlow(Detector):
    """A normalizing flow per feature scale; see `Detector` for the arguments, `FastFlowConfig` for the settings.

    >>> import numpy as np
    >>> images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    >>> detector = FastFlow(backbone="efficientnet_lite0", weights="random", epochs=1, steps=2, imagesize=64)
    >>> detector.fit(list(images)).predict(images[0]).map.shape
    (64, 64)
    """

    method = METHOD
    config: FastFlowConfig
    model: FastFlowModel

    def prepare(self) -> list[Encoder]:
        config, side = self.config, self.geometry.imagesize
        if len(self.workspace.devices) > 1:
            raise PatchCoreError(
                f"{len(self.workspace.devices)} GPUs for one network: the others have no work; give one --gpu, and"
                " other categories to a second run"
            )
        tiling = None
        if config.tile is not None:
            try:
                tiling = Tiling((side, side), config.tile, config.tile_stride or config.tile)
            except ValueError as error:
                raise PatchCoreError(f"--tile {config.tile}: {error}") from error
        encoder = self.workspace.encoder(
            config.backbone,
            config.layers,
            size=(config.tile or side, config.tile or side),
            precision="bfloat16" if config.precision == "bfloat16" else "float32",
            weights=config.weights,
            weights_dir=config.weights_dir,
        )
        self.encoder = TiledEncoder(encoder, side, tiling)
        self.config = dataclasses.replace(config, layers=encoder.layers)
        return [encoder]

    def learn(self, images: TrainingImages, generator: torch.Generator, timer: StageTimer, record: Path | None) -> None:
        """Learn the density of good images, see `Detector.learn`.

        `record` takes `training.csv`, and `checkpoint.pt` from which an interrupted training goes on.

        Raises:
            PatchCoreError: the training diverged, or the checkpoint in `record` is of another training.
        """
        config, device, batches = self.config, self.workspace.device, images.batches
        seed = int(torch.randint(2**62, (), generator=generator))
        model = self._new_model(generator)
        if config.match_brightness:
            batches = list(batches)
            model.brightness.fill_(torch.cat([brightness(batch) for batch in batches]).median())
        matching = self._matched(model, batches)
        samples = collect(matching, images.count, self.encoder, config.brightness_jitter, timer)
        chunks = torch.arange(len(samples)).split(32)
        model.fit_normalisation(samples.maps(chunk) for chunk in chunks)
        known = settings_of(config)
        settings = {
            name: value for name, value in to_plain(config).items() if known[name].decides and not known[name].on_load
        }
        log = TrainingRecord(
            record, settings | {"seed": seed, "samples": len(samples)}, every=config.checkpoint_seconds
        )
        train(
            model,
            samples,
            config,
            per_epoch=len(samples) // images.views,
            images_per_epoch=images.count // images.views,
            seed=seed,
            device=device,
            record=log,
            timer=timer,
        )
        with timer("flow"):
            model.fit_score_statistics(samples.maps(chunk) for chunk in chunks)
        log.finish()
        self.model = model.requires_grad_(False)

    def score(self, images: Tensor, timer: StageTimer) -> BatchScores:
        """How unlikely every position is, see `Detector.score`.

        The column `log_likelihood` is that of the whole image under the flows, in nats per dimension.
        """
        [images] = self._matched(self.model, [images])
        maps_of_inputs, densities = [], []
        for inputs in self.encoder.cut(images):
            features = self.encoder.maps(inputs, timer)
            with timer("flow"):
                values = self.model(features)
                densities.append(_per_dimension(values, self.encoder.channels))
            with timer("maps"):
                scales = self.model.position_scores(values, self.config)
                maps_of_inputs.append(
                    torch.stack([anomaly_maps(x, (inputs.shape[-2], inputs.shape[-1])) for x in scales]).mean(0)
                )
        with timer("maps"):
            maps = self.encoder.join(torch.cat(maps_of_inputs))  # (B, H, W)
            scores = image_scores(maps, self.config)
            log_likelihood = torch.cat(densities).unflatten(0, (len(images), -1)).mean(1)
        return BatchScores(scores=scores[None], maps=maps[None], columns={"log_likelihood": log_likelihood})

    def graph(self) -> FastFlowGraph:
        return FastFlowGraph(self.encoder, self.model, self.config)

    def costs(self) -> dict[str, float]:
        """The flows' parameters, and their size."""
        parameters = list(self.model.flows.parameters())
        return {
            "flow_parameters": sum(parameter.numel() for parameter in parameters),
            "flow_mib": sum(parameter.numel() * parameter.element_size() for parameter in parameters) / 2**20,
        }

    def expected_bytes(self, num_images: int) -> Mapping[torch.device, int]:
        """What is kept of so many training images: their features, or themselves."""
        return expected_bytes(num_images, self.encoder, self.config)

    def write_arrays(self, folder: Path) -> None:
        state = {name: value.cpu().contiguous() for name, value in self.model.state_dict().items()}
        (folder / WEIGHTS_FILE).write_bytes(save(state))  # save_file's errors are not the system's own

    def read_arrays(self, folder: Path) -> None:
        path = folder / WEIGHTS_FILE
        model = self._new_model(torch.Generator())
        try:
            model.load_state_dict(load_file(path))
        except (OSError, SafetensorError) as error:
            raise PatchCoreError(f"{path}: cannot read the weights: {error}") from error
        except RuntimeError as error:  # torch's own text names every tensor on a line of its own
            raise PatchCoreError(f"{path}: these weights do not belong to the settings beside them") from error
        self.model = model.eval().requires_grad_(False)

    def _new_model(self, generator: torch.Generator) -> FastFlowModel:
        device = self.workspace.device
        model = FastFlowModel(self.encoder.channels, self.config, generator).to(device)
        # oneDNN's convolutions are faster so
        return model.to(memory_format=torch.channels_last) if device.type == "cpu" else model

    def _matched(self, model: FastFlowModel, batches: Iterable[Tensor]) -> Iterable[Tensor]:
        if not self.config.match_brightness:
            return batches
        target = float(model.brightness)
        return (match_brightness(images, target) for images in batches)


def _per_dimension(values: list[Tensor], channels: list[int]) -> Tensor:
    """(2, B, h, w) log-likelihoods in nats per dimension, per scale -> (B,) of all scales together."""
    full = [x[DENSITIES.index("full")].flatten(1) for x in values]  # (B, h * w)
    nats = reduce(torch.add, (x.sum(dim=1) * count for x, count in zip(full, channels, strict=True)))
    return nats / sum(x.shape[1] * count for x, count in zip(full, channels, strict=True))
