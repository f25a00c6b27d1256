# shellcheck shell=bash
# The study's four PatchCore variants. Sourced, not run.
METHOD=patch_core
OPTIONS_NAME=PATCH_CORE_OPTIONS
METHOD_EXAMPLE=--faiss_on_gpu
GPUS_NOTE='; "0 1" spreads the networks of an ensemble over two'
# shellcheck source=configs/mpdd_study.sh
source "$(dirname "${BASH_SOURCE[0]}")/mpdd_study.sh"

case $BACKBONE_SET in
study)
    NAME=WR50
    SINGLE=(-b wideresnet50 -le layer2 -le layer3)
    ENSEMBLE=(-b wideresnet101 -b resnext101 -b densenet201 -le 0.layer2 -le 0.layer3 -le 1.layer2 -le 1.layer3
        -le 2.features.denseblock2 -le 2.features.denseblock3)
    ;;
offline)
    NAME=LITE0
    SINGLE=(-b efficientnet_lite0 -le blocks.2 -le blocks.4)
    ENSEMBLE=(-b efficientnet_lite0 -b efficientnet_lite0 -b efficientnet_lite0 -le 0.blocks.2 -le 0.blocks.4
        -le 1.blocks.2 -le 1.blocks.3 -le 2.blocks.3 -le 2.blocks.4)
    ;;
*)
    echo "error: BACKBONE_SET must be study or offline, got $BACKBONE_SET" >&2
    exit 2
    ;;
esac

# Calls its argument once per variant, as: GROUP SEED RESIZE IMAGESIZE PERCENTAGE and the options of patch_core.
# The group names are the study's, so that its tables and these results can be laid side by side.
each_variant() {
    "$1" "MPDD_IM224_${NAME}_L2-3_P01_D1024-1024_PS-3_AN-1_S0" 0 256 224 0.1 "${SINGLE[@]}" \
        --pretrain_embed_dimension 1024 --target_embed_dimension 1024 --anomaly_scorer_num_nn 1 --patchsize 3
    "$1" "MPDD_IM224_Ensemble${ENSEMBLE_SUFFIX}_L2-3_P001_D1024-384_PS-3_AN-1_S3" 3 256 224 0.01 "${ENSEMBLE[@]}" \
        --pretrain_embed_dimension 1024 --target_embed_dimension 384 --anomaly_scorer_num_nn 1 --patchsize 3
    "$1" "MPDD_IM320_${NAME}_L2-3_P001_D1024-1024_PS-3_AN-1_S22" 22 366 320 0.01 "${SINGLE[@]}" \
        --pretrain_embed_dimension 1024 --target_embed_dimension 1024 --anomaly_scorer_num_nn 1 --patchsize 3
    "$1" "MPDD_IM320_${NAME}_L2-3_P001_D1024-1024_PS-5_AN-3_S39" 39 366 320 0.01 "${SINGLE[@]}" \
        --pretrain_embed_dimension 1024 --target_embed_dimension 1024 --anomaly_scorer_num_nn 3 --patchsize 5
}
ENSEMBLE_SUFFIX=
[ "$BACKBONE_SET" = study ] || ENSEMBLE_SUFFIX=_$NAME
