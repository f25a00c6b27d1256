"""FastFlow: a position is as anomalous as its features are unlikely."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from patchcore.config import TrainedOn, to_plain
from patchcore.features.cache import FeatureCache
from patchcore.methods.fastflow.brightness import brightness, matched
from patchcore.methods.fastflow.config import DENSITIES, FastFlowConfig, FastFlowLoaderConfig
from patchcore.methods.fastflow.model import FastFlowModel
from patchcore.methods.fastflow.model_files import WEIGHTS_FILE, StoredModel, read_state, write_model
from patchcore.methods.fastflow.network import Network
from patchcore.methods.fastflow.record import TrainingRecord
from patchcore.methods.fastflow.samples import collect, expected_bytes
from patchcore.methods.fastflow.training import train
from patchcore.scoring import anomaly_maps
from patchcore.system.timing import StageTimer
from patchcore.types import Output, PatchCoreError

# Settings that change nothing about what a training ends with.
_INCIDENTAL = ("checkpoint_seconds", "weights_dir", "scoring")


class FastFlow:
    """The detector. `fit` trains one flow per scale, `predict` asks how likely every position is.

    Args:
        network: the backbone for `config`; it may be shared between detectors.
        config: the settings.
        trained_on: stored with the model, so that it is given images of the same geometry later.
        views: in how many views every training image comes; an epoch draws as many samples as there are images.
    """

    def __init__(self, network: Network, config: FastFlowConfig, trained_on: TrainedOn, views: int = 1) -> None:
        self.network = network
        self.config = dataclasses.replace(config, layers=network.layers)
        self.trained_on = trained_on
        self.views = views
        self.model_: FastFlowModel | None = None

    def fit(
        self,
        batches: Iterable[Tensor],
        num_images: int,
        generator: torch.Generator,
        timer: StageTimer,
        folder: Path,
    ) -> FastFlow:
        """Learn the density of good images.

        Args:
            batches: (B, 3, H, W) uint8 images, `num_images` in all.
            generator: a CPU generator, the source of every random choice.
            timer: told how long each stage took.
            folder: takes `training.csv`, and `checkpoint.pt` from which an interrupted training goes on.

        Raises:
            PatchCoreError: the training diverged, or the checkpoint in `folder` is of another training.
        """
        config, device = self.config, self.network.device
        seed = int(torch.randint(2**62, (), generator=generator))
        model = FastFlowModel(self.network.channels, config, generator).to(device)
        if device.type == "cpu":  # oneDNN's convolutions are faster so
            model = model.to(memory_format=torch.channels_last)
        if config.match_brightness:
            batches = list(batches)
            model.brightness.fill_(torch.cat([brightness(images) for images in batches]).median())
        samples = collect(
            self._matched(model, batches),
            num_images,
            self.network,
            config.brightness_jitter,
            timer,
        )
        chunks = torch.arange(len(samples)).split(32)
        model.fit_normalisation(samples.maps(chunk) for chunk in chunks)
        settings = {name: value for name, value in to_plain(config).items() if name not in _INCIDENTAL}
        record = TrainingRecord(
            folder, settings | {"seed": seed, "samples": len(samples)}, every=config.checkpoint_seconds
        )
        train(
            model,
            samples,
            config,
            per_epoch=len(samples) // self.views,
            images_per_epoch=num_images // self.views,
            seed=seed,
            device=device,
            record=record,
            timer=timer,
        )
        with timer("flow"):
            model.fit_score_statistics(samples.maps(chunk) for chunk in chunks)
        record.finish()
        self.model_ = model.requires_grad_(False)
        return self

    @torch.inference_mode()
    def predict(self, batches: Iterable[Tensor], timer: StageTimer) -> Output:
        """Score images.

        Args:
            batches: (B, 3, H, W) uint8 images.
            timer: told how long each stage took.

        Returns:
            Scores and maps, the higher the more anomalous, and the column `log_likelihood`: that of the whole image
            under the flows, in nats per dimension.
        """
        scores, maps, log_likelihoods = [], [], []
        for images in self._matched(self.model_, batches):
            pieces_maps, densities = [], []
            for pieces in self.network.chunks(images):
                features = self.network.features(pieces, timer)
                with timer("flow"):
                    values = self.model_(features)
                    densities.append(_per_dimension(values, self.network.channels))
                with timer("maps"):
                    scales = self.model_.position_scores(values, self.config.scoring)
                    pieces_maps.append(torch.stack([anomaly_maps(x, tuple(pieces.shape[-2:])) for x in scales]).mean(0))
            with timer("maps"):
                whole = self.network.whole_maps(torch.cat(pieces_maps))  # (B, H, W)
                scores.append(self._image_scores(whole))
                maps.append(whole)
                log_likelihoods.append(torch.cat(densities).unflatten(0, (len(images), -1)).mean(1))
        image_scores, densities = (torch.cat(x).double().cpu().numpy() for x in (scores, log_likelihoods))
        return Output(
            scores=image_scores,
            maps=torch.cat(maps).cpu().numpy(),
            raw_scores=image_scores[None],
            columns={"log_likelihood": densities},
        )

    def costs(self) -> dict[str, float]:
        """What the fitted detector takes: the flows' parameters, and their size."""
        parameters = list(self.model_.flows.parameters())
        return {
            "flow_parameters": sum(parameter.numel() for parameter in parameters),
            "flow_mib": sum(parameter.numel() * parameter.element_size() for parameter in parameters) / 2**20,
        }

    def save(self, folder: Path) -> None:
        """Write weights and parameters into an existing folder."""
        write_model(folder, self.config, self.trained_on, self.model_.state_dict())

    @classmethod
    def load(cls, model: StoredModel, network: Network) -> FastFlow:
        """Read the weights of a stored detector.

        Args:
            model: from `read_model`.
            network: for the configuration and image size of `model`; it may be shared.

        Raises:
            PatchCoreError: the weights are missing, damaged, or do not fit the parameters.
        """
        detector = cls(network, model.config, model.trained_on)
        flows = FastFlowModel(network.channels, model.config, torch.Generator())
        try:
            flows.load_state_dict(read_state(model.folder))
        except RuntimeError as error:  # torch's own text names every tensor on a line of its own
            raise PatchCoreError(
                f"{model.folder / WEIGHTS_FILE}: these weights do not belong to the parameters beside them"
            ) from error
        flows = flows.to(network.device)
        if network.device.type == "cpu":
            flows = flows.to(memory_format=torch.channels_last)
        detector.model_ = flows.eval().requires_grad_(False)
        return detector

    def _matched(self, model: FastFlowModel, batches: Iterable[Tensor]) -> Iterable[Tensor]:
        if not self.config.match_brightness:
            return batches
        target = float(model.brightness)
        return (matched(images, target) for images in batches)

    def _image_scores(self, maps: Tensor) -> Tensor:
        """(B, H, W) maps -> (B,) image scores."""
        scoring, pixels = self.config.scoring, maps.flatten(1)
        if scoring.image_score == "max":
            return pixels.amax(dim=1)
        if scoring.image_score == "mean":
            return pixels.mean(dim=1)
        count = max(1, round(scoring.top_share * pixels.shape[1]))
        return pixels.topk(count, dim=1, sorted=False).values.mean(dim=1)


def _per_dimension(values: list[Tensor], channels: list[int]) -> Tensor:
    """(2, B, h, w) log-likelihoods in nats per dimension, per scale -> (B,) of all scales together."""
    full = [x[DENSITIES.index("full")].flatten(1) for x in values]  # (B, h * w)
    nats = sum(x.sum(dim=1) * count for x, count in zip(full, channels, strict=True))
    return nats / sum(x.shape[1] * count for x, count in zip(full, channels, strict=True))


class TrainedFastFlow:
    """The method that fits a fresh detector for every category; all of them share the loaded backbone.

    Args:
        configs: category -> its settings, alike in what the backbone depends on.
        config: the settings that the categories' were made from, for the record.
        views: in how many views every training image comes.
    """

    fits = True

    def __init__(
        self,
        config: FastFlowConfig,
        configs: Mapping[str, FastFlowConfig],
        trained_on: TrainedOn,
        device: torch.device,
        views: int,
        cache: FeatureCache | None = None,
    ) -> None:
        self.device = device
        self.cache = cache
        self.settings = {"fastflow": config}
        if config.class_specific:
            self.settings["fastflow_by_category"] = dict(configs)
        self._configs = dict(configs)
        self._trained_on = trained_on
        self._views = views
        self._network = Network(config, trained_on.imagesize, device, cache)

    def detector(self, category: str) -> FastFlow:
        """A detector that has learnt nothing yet."""
        return FastFlow(self._network, self._configs[category], self._trained_on, self._views)

    def expected_bytes(self, num_images: int) -> dict[torch.device, int]:
        """What is kept of so many training images, by device: their features, or themselves."""
        needs = [expected_bytes(num_images, self._network, config) for config in self._configs.values()]
        return max(needs, key=lambda by_device: sum(by_device.values()))


class StoredFastFlow:
    """The method that loads a stored detector for every category; those that can share a backbone.

    Args:
        models: category -> its model, which may be the same for several.
        loader: what the models were read with, for the record.
    """

    fits = False

    def __init__(
        self,
        models: Mapping[str, StoredModel],
        loader: FastFlowLoaderConfig,
        device: torch.device,
        cache: FeatureCache | None = None,
    ) -> None:
        self.device = device
        self.cache = cache
        self.settings = {"fastflow_loader": loader, "models": dict(models)}
        self._models = dict(models)
        self._networks: dict[tuple, Network] = {}
        for model in models.values():
            if _network_key(model) not in self._networks:
                network = Network(model.config, model.trained_on.imagesize, device, cache)
                self._networks[_network_key(model)] = network

    def detector(self, category: str) -> FastFlow:
        """The detector that is stored for a category."""
        model = self._models[category]
        return FastFlow.load(model, self._networks[_network_key(model)])

    def expected_bytes(self, num_images: int) -> dict[torch.device, int]:
        """Nothing: no detector is trained."""
        return {}


def _network_key(model: StoredModel) -> tuple:
    """What a network depends on."""
    config = model.config
    network = config.backbone, config.layers, config.weights, config.precision
    return *network, config.tile, config.tile_stride, model.trained_on.imagesize
