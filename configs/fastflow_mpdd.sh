# shellcheck shell=bash
# The FastFlow recipes. Sourced, not run.
METHOD=fastflow
OPTIONS_NAME=FASTFLOW_OPTIONS
METHOD_EXAMPLE="--epochs 100"
GPUS_NOTE=
# shellcheck source=configs/mpdd_study.sh
source "$(dirname "${BASH_SOURCE[0]}")/mpdd_study.sh"

case $BACKBONE_SET in
study) SMALL=(R18 resnet18) LARGE=(WR50 wide_resnet50_2) ;;
offline) SMALL=(LITE0 efficientnet_lite0) LARGE=(LITE0 efficientnet_lite0) ;;
*)
    echo "error: BACKBONE_SET must be study or offline, got $BACKBONE_SET" >&2
    exit 2
    ;;
esac
RECIPES=(improved plain wresnet50 patch)

# Sets GROUP, GEOMETRY (options of the stage dataset) and FLOW (options of the stage fastflow) of a recipe.
recipe() {
    GEOMETRY=(--resize 256 --imagesize 224)
    FLOW=(--backbone "${SMALL[1]}")
    case $1 in
    improved) GROUP=FFLOW_IMPROVED_${SMALL[0]} FLOW+=(--use_class_specific) ;;
    plain) GROUP=FFLOW_${SMALL[0]} ;;
    wresnet50) GROUP=FFLOW_LARGE_${LARGE[0]} FLOW=(--backbone "${LARGE[1]}") ;;
    patch) GROUP=FFLOW_PATCH_${SMALL[0]} FLOW+=(--tile 160 --tile_stride 80) GEOMETRY=(--resize 512 --imagesize 512) ;;
    esac
}

# Trains and evaluates a recipe.
train() {
    recipe "$1"
    run_study run_fastflow.py "$GROUP" --seed 0 --save_model -- fastflow "${FLOW[@]}" "${METHOD_OPTIONS[@]}" -- "${GEOMETRY[@]}"
}
