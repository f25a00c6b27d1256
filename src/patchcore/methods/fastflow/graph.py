"""FastFlow as one graph of tensors, for export."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from patchcore.methods.fastflow.brightness import match_brightness
from patchcore.methods.fastflow.config import FastFlowConfig
from patchcore.methods.fastflow.model import FastFlowModel, image_scores
from patchcore.methods.fastflow.tiled_encoder import TiledEncoder
from patchcore.scoring import anomaly_maps


class FastFlowGraph(nn.Module):
    """Backbone and flows; see `Detector.graph`."""

    def __init__(self, encoder: TiledEncoder, model: FastFlowModel, config: FastFlowConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.network = encoder.encoder.graph()
        self.model = model
        self.config = config
        self.brightness = float(model.brightness)
        side = config.tile or encoder.imagesize
        self.size = side, side

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.match_brightness:
            images = match_brightness(images, self.brightness)
        values = self.model(self.network(self.encoder.inputs(images)))
        scales = self.model.position_scores(values, self.config)
        maps = self.encoder.join(torch.stack([anomaly_maps(x, self.size) for x in scales]).mean(0))  # (B, H, W)
        return image_scores(maps, self.config)[None], maps[None]
