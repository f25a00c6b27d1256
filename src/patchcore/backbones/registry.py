"""Backbones by name, as data. The names are those of the original PatchCore registry.

Nothing heavy is imported here, so that command lines can list the names at no cost.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from patchcore.types import PatchCoreError

OFFLINE_BACKBONE = "efficientnet_lite0"


@dataclass(frozen=True)
class Entry:
    """Where a backbone comes from.

    Attributes:
        library: "torchvision", "timm" or "builtin" (EfficientNet-Lite0, see efficientnet_lite0.py).
        model: the network's name in that library.
        weights: the torchvision weights or the timm tag; "" for timm's default tag, if it has one.
        layers: those at reductions 4, 8 and 16, where the library does not tell them.
    """

    library: str
    model: str
    weights: str = ""
    layers: tuple[str, ...] = ()


_RESNET = ("layer1", "layer2", "layer3")
_DENSE = ("features.denseblock1", "features.denseblock2", "features.denseblock3")
_LITE0 = ("blocks.1", "blocks.2", "blocks.4")

# Names of the original, and those of the FastFlow paper. The original loaded torchvision's first ImageNet weights and
# timm's defaults of versions 0.4 to 0.6; the tags are today's names for those.
BACKBONES: dict[str, Entry] = {
    OFFLINE_BACKBONE: Entry("builtin", "tf_efficientnet_lite0", "in1k", _LITE0),
    "alexnet": Entry("torchvision", "alexnet", "AlexNet_Weights.IMAGENET1K_V1"),
    "resnet18": Entry("torchvision", "resnet18", "ResNet18_Weights.IMAGENET1K_V1", _RESNET),
    "resnet34": Entry("torchvision", "resnet34", "ResNet34_Weights.IMAGENET1K_V1", _RESNET),
    "resnet50": Entry("torchvision", "resnet50", "ResNet50_Weights.IMAGENET1K_V1", _RESNET),
    "resnet101": Entry("torchvision", "resnet101", "ResNet101_Weights.IMAGENET1K_V1", _RESNET),
    "resnext101": Entry("torchvision", "resnext101_32x8d", "ResNeXt101_32X8D_Weights.IMAGENET1K_V1", _RESNET),
    "wideresnet50": Entry("torchvision", "wide_resnet50_2", "Wide_ResNet50_2_Weights.IMAGENET1K_V1", _RESNET),
    "wide_resnet50_2": Entry("torchvision", "wide_resnet50_2", "Wide_ResNet50_2_Weights.IMAGENET1K_V1", _RESNET),
    "wideresnet101": Entry("torchvision", "wide_resnet101_2", "Wide_ResNet101_2_Weights.IMAGENET1K_V1", _RESNET),
    "vgg11": Entry("torchvision", "vgg11", "VGG11_Weights.IMAGENET1K_V1", ("features.9", "features.14", "features.19")),
    "vgg19": Entry(
        "torchvision", "vgg19", "VGG19_Weights.IMAGENET1K_V1", ("features.17", "features.26", "features.35")
    ),
    "vgg19_bn": Entry(
        "torchvision", "vgg19_bn", "VGG19_BN_Weights.IMAGENET1K_V1", ("features.25", "features.38", "features.51")
    ),
    "densenet121": Entry("torchvision", "densenet121", "DenseNet121_Weights.IMAGENET1K_V1", _DENSE),
    "densenet201": Entry("torchvision", "densenet201", "DenseNet201_Weights.IMAGENET1K_V1", _DENSE),
    "resnet200": Entry("timm", "resnet200"),
    "resnest50": Entry("timm", "resnest50d_4s2x40d", "in1k"),
    "resnetv2_50_bit": Entry("timm", "resnetv2_50x3_bit", "goog_in21k_ft_in1k"),
    "resnetv2_50_21k": Entry("timm", "resnetv2_50x3_bit", "goog_in21k"),
    "resnetv2_101_bit": Entry("timm", "resnetv2_101x3_bit", "goog_in21k_ft_in1k"),
    "resnetv2_101_21k": Entry("timm", "resnetv2_101x3_bit", "goog_in21k"),
    "resnetv2_152_bit": Entry("timm", "resnetv2_152x4_bit", "goog_in21k_ft_in1k"),
    "resnetv2_152_21k": Entry("timm", "resnetv2_152x4_bit", "goog_in21k"),
    "resnetv2_152_384": Entry("timm", "resnetv2_152x2_bit", "goog_teacher_in21k_ft_in1k_384"),
    "resnetv2_101": Entry("timm", "resnetv2_101", "a1h_in1k"),
    "mnasnet_100": Entry("timm", "mnasnet_100", "rmsp_in1k"),
    "mnasnet_a1": Entry("timm", "semnasnet_100", "rmsp_in1k"),
    "mnasnet_b1": Entry("timm", "mnasnet_100", "rmsp_in1k"),
    "inception_v4": Entry("timm", "inception_v4", "tf_in1k"),
    "efficientnet_b1": Entry("timm", "tf_efficientnet_b1", "aa_in1k"),
    "efficientnet_b3": Entry("timm", "tf_efficientnet_b3", "aa_in1k"),
    "efficientnet_b5": Entry("timm", "tf_efficientnet_b5", "ra_in1k"),
    "efficientnet_b7": Entry("timm", "tf_efficientnet_b7", "ra_in1k"),
    "efficientnetv2_m": Entry("timm", "tf_efficientnetv2_m", "in1k"),
    "efficientnetv2_l": Entry("timm", "tf_efficientnetv2_l", "in1k"),
    "vit_small": Entry("timm", "vit_small_patch16_224", "augreg_in21k_ft_in1k"),
    "vit_base": Entry("timm", "vit_base_patch16_224", "augreg_in21k_ft_in1k"),
    "vit_large": Entry("timm", "vit_large_patch16_224", "augreg_in21k_ft_in1k"),
    "vit_r50": Entry("timm", "vit_large_r50_s32_224", "augreg_in21k_ft_in1k"),
    "vit_deit_base": Entry("timm", "deit_base_patch16_224", "fb_in1k"),
    "vit_deit_distilled": Entry("timm", "deit_base_distilled_patch16_224", "fb_in1k"),
    "deit_base_distilled_patch16_224": Entry("timm", "deit_base_distilled_patch16_224", "fb_in1k"),
    "cait_m48_448": Entry("timm", "cait_m48_448", "fb_dist_in1k"),
    "vit_swin_base": Entry("timm", "swin_base_patch4_window7_224", "ms_in22k_ft_in1k"),
    "vit_swin_large": Entry("timm", "swin_large_patch4_window7_224", "ms_in22k_ft_in1k"),
}


def resolve_backbone(name: str) -> tuple[Entry, int | None]:
    """What a name stands for: its entry, and N of a `.seed-N` suffix (None without one).

    `timm/MODEL[.TAG]` is taken as it is; whether timm has it shows when it is loaded.

    Raises:
        PatchCoreError: if the name is neither in `BACKBONES` nor begins with `timm/`.
    """
    stem, _, digits = name.partition(".seed-")
    if (digits and not digits.isdecimal()) or name.endswith(".seed-"):
        raise PatchCoreError(f"backbone {name!r}: .seed- must be followed by digits, as in {stem}.seed-3")
    seed = int(digits) if digits else None
    if stem in BACKBONES:
        return BACKBONES[stem], seed
    library, slash, model = stem.partition("/")
    if library == "timm" and slash and model:
        model, _, tag = model.partition(".")
        return Entry("timm", model, tag), seed
    near = near_misses(stem, BACKBONES) or f"; there are {', '.join(BACKBONES)}"
    raise PatchCoreError(f"unknown backbone {stem!r}{near}; any timm model goes by timm/NAME")


def near_misses(name: str, names: Iterable[str]) -> str:
    """The end of an error message: `; did you mean A, B?`, or nothing where no name is near."""
    near = difflib.get_close_matches(name, list(names), n=4)
    return f"; did you mean {', '.join(near)}?" if near else ""
