# Shared by the sample_*.sh scripts: where things are, and the study's four PatchCore variants. Sourced, not run.

usage() {
    cat <<EOF
usage: $0 [DATAPATH]

DATAPATH (or \$DATAPATH) is the folder of MPDD, which holds metal_plate, bracket_white ... Settings from the environment:
  RESULTS=results        folder of all results
  LOG_PROJECT=MPDD       project folder below it
  DATASETS="metal_plate bracket_white bracket_brown bracket_black"
  BACKBONE_SET=study     the study's networks; offline: EfficientNet-Lite0, which needs no download
  GPUS=0                 CUDA devices; "0 1" spreads the networks of an ensemble over two
  PATCH_CORE_OPTIONS=    more options of the stage patch_core or patch_core_loader, such as "--faiss_on_gpu"
  DATASET_OPTIONS=       more options of the stage dataset, such as "--num_workers 4"
  PYTHON=                the interpreter; .venv/bin/python where that is, else python
EOF
}

case ${1:-} in -h | --help) usage && exit 0 ;; esac
DATAPATH=${1:-${DATAPATH:-}}
if [ -z "$DATAPATH" ] || [ $# -gt 1 ]; then
    usage >&2
    exit 2
fi
if [ ! -d "$DATAPATH" ]; then
    echo "error: no folder $DATAPATH: expected MPDD there" >&2
    exit 2
fi
RESULTS=${RESULTS:-results}
LOG_PROJECT=${LOG_PROJECT:-MPDD}
BACKBONE_SET=${BACKBONE_SET:-study}
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    [ ! -x "$ROOT/.venv/bin/python" ] || PYTHON=$ROOT/.venv/bin/python
fi
read -r -a DATASETS <<<"${DATASETS:-metal_plate bracket_white bracket_brown bracket_black}"
read -r -a GPUS <<<"${GPUS:-0}"
read -r -a PATCH_CORE_OPTIONS <<<"${PATCH_CORE_OPTIONS:-}"
read -r -a DATASET_OPTIONS <<<"${DATASET_OPTIONS:-}"
DATASET_FLAGS=()
for dataset in "${DATASETS[@]}"; do DATASET_FLAGS+=(-d "$dataset"); done
GPU_FLAGS=()
for gpu in "${GPUS[@]}"; do GPU_FLAGS+=(--gpu "$gpu"); done

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

# Whether a run's results.csv holds a row of every data set. A run writes each row once the category is whole.
complete() {
    local dataset
    for dataset in "${DATASETS[@]}"; do
        grep -qs "^mpdd_$dataset," "$1/results.csv" || return 1
    done
}

# Moves what an interrupted run left out of the way, so that the next run gets the group's own name.
set_aside() {
    [ -e "$1" ] || return 0
    local number=0
    while [ -e "$1.incomplete$number" ]; do number=$((number + 1)); done
    echo "$1 is incomplete: moved to $1.incomplete$number"
    mv "$1" "$1.incomplete$number"
}
