"""What a detector says of a batch."""

from __future__ import annotations

import dataclasses

from torch import Tensor


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
