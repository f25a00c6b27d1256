"""PatchCore (Roth et al. 2021): a bank of good patches; a patch is as anomalous as it is far from the bank."""

from __future__ import annotations

from patchcore.backbones.registry import BACKBONES
from patchcore.methods.method import Method, Stage
from patchcore.methods.patchcore.config import PatchCoreConfig, describe, settings_from, warn_without_effect
from patchcore.settings import settings_of

_SAMPLER = ("sampler", "fraction")


def _image_size(config: PatchCoreConfig, resize: int | None, imagesize: int | None) -> tuple[int, int]:
    return resize or 256, imagesize or 224


METHOD = Method(
    name="patchcore",
    title="PatchCore",
    config=PatchCoreConfig,
    stages=(
        Stage(
            word="patch_core",
            settings=tuple(name for name in settings_of(PatchCoreConfig) if name not in _SAMPLER),
            help="Choose the networks, their layers and how patches are described.",
            epilog=f"Backbones: {', '.join(sorted(BACKBONES))}; any model of timm as timm/NAME. NAME.seed-N sets the"
            " seed of random weights.",
            # The original took these and did nothing with them, but one: images did score the max of their patches.
            ignored={
                ("--preprocessing",): "mean",
                ("--aggregation",): "mean",
                ("--patchscore",): "max",
                ("--patchoverlap",): 0.0,
                ("--patchsize_aggregate", "-pa"): (),
            },
        ),
        Stage(word="sampler", settings=_SAMPLER, help="Choose how the memory bank is thinned."),
    ),
    detector="patchcore.methods.patchcore.detector:PatchCore",
    image_size=_image_size,
    image_size_shown=("256", "224"),
    describe=describe,
    settings_from=settings_from,
    refuse=warn_without_effect,
    loader_help="Choose the stored models.\n\nBackbones, layers, patch size and image size come with them. The folders"
    " of the original PatchCore can be read too; they are scored with 1 neighbour, as the original did.",
    save_flag="--save_patchcore_model",
    leaves_one_out=True,
    older="patchcore.methods.patchcore.older_models:read_older",
)
