"""FastFlow (Yu et al. 2021): normalizing flows on the feature maps of a frozen backbone."""

from __future__ import annotations

from patchcore.methods.fastflow.config import FastFlowConfig
from patchcore.methods.fastflow.presets import PRESETS, preset_of
from patchcore.methods.method import Method, Stage
from patchcore.settings import settings_of


def _image_size(config: FastFlowConfig, resize: int | None, imagesize: int | None) -> tuple[int, int]:
    preset = preset_of(config.backbone)
    imagesize = imagesize or min(preset.imagesize, resize or preset.imagesize)
    return resize or max(preset.resize, imagesize), imagesize


def _refuse(config: FastFlowConfig, stated: frozenset[str]) -> None:
    if "top_share" in stated and config.image_score != "top":
        raise ValueError(f"--top_share has no effect with --image_score {config.image_score}")


METHOD = Method(
    name="fastflow",
    title="FastFlow",
    config=FastFlowConfig,
    stages=(
        Stage(
            word="fastflow",
            settings=tuple(settings_of(FastFlowConfig)),
            help="Choose the backbone, the flows on it, their training, and how they score.",
            epilog=f"Backbones with a preset of the paper: {', '.join(PRESETS)}. Any other name that run_patchcore.py"
            " knows, or timm/NAME, goes with the layers at reductions 4, 8 and 16.",
        ),
    ),
    detector="patchcore.methods.fastflow.detector:FastFlow",
    image_size=_image_size,
    image_size_shown=("the backbone's", "the backbone's"),
    describe=lambda config: (config.backbone,),
    refuse=_refuse,
    loader_help="Choose the stored models. Backbone, flows, tiles and image size come with them; scores may be chosen"
    " anew.",
    category_file="fastflow_mpdd.yaml",
    older="patchcore.methods.fastflow.older_models:read_older",
)
