"""The settings of PatchCore, and how command lines and people name them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchcore.config import PRECISIONS, weights_dir_setting, weights_setting
from patchcore.settings import check, setting

log = logging.getLogger(__name__)

INDEX_FILE = "nnscorer_search_index.faiss"  # of a member, behind its prefix
ORIGINS_FILE = "origins.npy"  # the same; which of all training patches the rows of its bank are
SAMPLERS = ("approx_greedy_coreset", "greedy_coreset", "identity", "random")


@dataclass(frozen=True, kw_only=True)
class PatchCoreConfig:
    """One network, or an ensemble of several; how patches are described, remembered and searched.

    `layers` holds the layer names of each backbone, in the order of `backbones`; the first layer of each sets the
    grid of patches. `sampler` is None for a stored model that does not say how its bank was thinned.
    """

    backbones: tuple[str, ...] = setting(help="Backbone. Repeat for an ensemble.", flags=("--backbone_names", "-b"))
    layers: tuple[tuple[str, ...], ...] = setting(
        help="Layer, such as layer2; of an ensemble 0.layer2, 1.layer3 ... Repeat for several; the first sets the"
        " grid.",
        flags=("--layers_to_extract_from", "-le"),
    )
    pretrain_embed_dimension: int = setting(1024, "Values per patch and layer.", at_least=1)
    target_embed_dimension: int = setting(1024, "Values per patch in the bank.", at_least=1)
    patchsize: int = setting(3, "Side of a patch on the feature map.", at_least=1)
    num_nn: int = setting(
        1,
        "Nearest neighbours whose mean distance is the score.",
        flags=("--anomaly_scorer_num_nn",),
        at_least=1,
        on_load=True,
    )
    faiss_on_gpu: bool = setting(
        False, "Keep the memory bank on the GPU and search it there.", decides=False, on_load=True
    )
    faiss_num_workers: int | None = setting(
        None,
        "Threads of the search on the CPU.",
        at_least=1,
        at_most=1024,
        shown="all cores",
        decides=False,
        on_load=True,
    )
    precision: str = setting(
        "float32",
        "Of the networks; bfloat16 is faster where the hardware has it, for scores that differ by some per cent.",
        choices=PRECISIONS,
    )
    weights: str = weights_setting()
    weights_dir: Path | None = weights_dir_setting()
    sampler: str | None = setting("approx_greedy_coreset", argument=True, choices=SAMPLERS)
    fraction: float | None = setting(
        0.1,
        "Share of the training patches kept in the memory bank; identity keeps all.",
        flags=("--percentage", "-p"),
        above=0,
        at_most=1,
    )

    def __post_init__(self) -> None:
        check(self)
        if self.patchsize % 2 == 0:
            raise ValueError(f"patchsize must be odd, so that a patch has a middle, got {self.patchsize}")
        if not self.backbones:
            raise ValueError("at least one backbone is needed: -b NAME")
        if len(self.layers) != len(self.backbones) or not all(self.layers):
            raise ValueError(f"every backbone needs a layer: {self.backbones} with {self.layers}")
        if (self.sampler is None) != (self.fraction is None):
            raise ValueError(f"sampler {self.sampler} with fraction {self.fraction}: both or neither must be None")
        if self.sampler == "identity":
            object.__setattr__(self, "fraction", 1.0)

    @property
    def thinning(self) -> tuple[str, float]:
        """Sampler and share of the patches kept; a ValueError for a stored model that does not say them."""
        if self.sampler is None or self.fraction is None:
            raise ValueError("the stored model does not name a sampler: fit a detector that has one")
        return self.sampler, self.fraction


def settings_from(options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a command line, where the layers of an ensemble carry the number of their backbone."""
    return {**options, "layers": layers_by_backbone(options["layers"], len(options["backbones"]))}


def warn_without_effect(config: PatchCoreConfig, stated: frozenset[str]) -> None:
    """Say that identity keeps every patch to who asked for a share of them."""
    if config.sampler == "identity" and "fraction" in stated:
        log.warning("sampler identity keeps every patch: -p has no effect")


def layers_by_backbone(layers: Iterable[str], count: int) -> tuple[tuple[str, ...], ...]:
    """Sort layer names to backbones: as they are for a single one, by the number in front for several."""
    if count == 1:
        return (tuple(layers),)
    found: list[list[str]] = [[] for _ in range(count)]
    for layer in layers:
        number, _, name = layer.partition(".")
        if not number.isdecimal() or int(number) >= count or not name:
            raise ValueError(
                f"layer {layer!r}: with {count} backbones a layer is named NUMBER.LAYER, such as 0.layer2,"
                f" the number in 0..{count - 1}"
            )
        found[int(number)].append(name)
    for index, names in enumerate(found):
        if not names:
            raise ValueError(f"backbone number {index} has no layer: add -le {index}.LAYER")
    return tuple(map(tuple, found))


def describe(config: PatchCoreConfig) -> tuple[str, ...]:
    """The networks, and the share of the patches that is kept."""
    networks = " + ".join(
        name if count == 1 else f"{count} × {name}" for name, count in Counter(config.backbones).items()
    )
    if config.sampler is None or config.fraction is None:
        return (networks,)
    kept = {
        "approx_greedy_coreset": "{:g} %",
        "greedy_coreset": "greedy {:g} %",
        "random": "random {:g} %",
        "identity": "all patches",
    }
    return networks, kept[config.sampler].format(100 * config.fraction)


def member_prefixes(count: int) -> list[str]:
    """What the names of the members' files begin with, as in the original: nothing for a single one."""
    return [""] if count == 1 else [f"Ensemble-{index + 1}-{count}_" for index in range(count)]
