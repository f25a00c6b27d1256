"""What the paper chose per backbone, and what stands in for it elsewhere."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Defaults of a backbone: its flow, its layers (the backbone's own scales where empty), and its images."""

    steps: int = 8
    kernels: str = "3x3"
    hidden_ratio: float = 1.0
    layers: tuple[str, ...] = ()
    resize: int = 256
    imagesize: int = 256

    @property
    def flow(self) -> dict[str, object]:
        """The fields of `FastFlowConfig` that the preset sets."""
        return {name: getattr(self, name) for name in ("steps", "kernels", "hidden_ratio", "layers")}


_DEIT = Preset(steps=20, kernels="3x3-1x1", hidden_ratio=0.16, layers=("blocks.7",), imagesize=224)
_WIDE_RESNET50 = Preset(kernels="3x3-1x1")

# Yu et al. 2021, section 4.2 and appendix. DeiT has 224 pixels here, as its name says, not the 384 of the paper.
PRESETS = {
    "resnet18": Preset(),
    "wide_resnet50_2": _WIDE_RESNET50,
    "wideresnet50": _WIDE_RESNET50,
    "deit_base_distilled_patch16_224": _DEIT,
    "vit_deit_distilled": _DEIT,
    "cait_m48_448": Preset(
        steps=20, kernels="3x3-1x1", hidden_ratio=0.16, layers=("blocks.40",), resize=448, imagesize=448
    ),
}
OTHERS = Preset(imagesize=224)


def preset_of(backbone: str) -> Preset:
    """The preset of a backbone, `timm/` in front or a seed behind its name or not."""
    return PRESETS.get(backbone.removeprefix("timm/").partition(".seed-")[0], OTHERS)
