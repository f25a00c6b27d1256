# shellcheck shell=bash
# Shared by the sample_*.sh scripts: settings from the environment, training and evaluation. Sourced, not run.
# Reads METHOD, the name of the method's stage, and OPTIONS_NAME, the variable that holds more options for it.

usage() {
    cat <<EOF
usage: $0 [DATAPATH]

DATAPATH (or \$DATAPATH) is the folder of MPDD, which holds metal_plate, bracket_white ... Settings from the environment:
  RESULTS=results        folder of all results
  LOG_PROJECT=MPDD       project folder below it
  DATASETS="metal_plate bracket_white bracket_brown bracket_black"
  BACKBONE_SET=study     the study's networks; offline: EfficientNet-Lite0, which needs no download
  GPUS=0                 CUDA devices$GPUS_NOTE
$(printf '  %-23s' "$OPTIONS_NAME=")more options of the stage $METHOD or ${METHOD}_loader, such as "$METHOD_EXAMPLE"
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
read -r -a METHOD_OPTIONS <<<"${!OPTIONS_NAME:-}"
read -r -a DATASET_OPTIONS <<<"${DATASET_OPTIONS:-}"
DATASET_FLAGS=()
for dataset in "${DATASETS[@]}"; do DATASET_FLAGS+=(-d "$dataset"); done
GPU_FLAGS=()
for gpu in "${GPUS[@]}"; do GPU_FLAGS+=(--gpu "$gpu"); done

# Runs a script of bin/ on the data sets: run_study SCRIPT GROUP, then options of the run, -- and the stages before
# the dataset stage, -- and the options of that. --resume skips what is finished and says so.
run_study() {
    local script=$1 group=$2 run=() stages=()
    shift 2
    while [ "$1" != -- ]; do run+=("$1") && shift; done
    shift
    while [ "$1" != -- ]; do stages+=("$1") && shift; done
    shift
    echo "== $group"
    "$PYTHON" "$ROOT/bin/$script" "${GPU_FLAGS[@]}" "${run[@]}" --resume --save_segmentation_images --save_anomaly_scores \
        --log_group "$group" --log_project "$LOG_PROJECT" "$RESULTS" "${stages[@]}" \
        dataset "$@" "${DATASET_OPTIONS[@]}" "${DATASET_FLAGS[@]}" mpdd "$DATAPATH"
}

# Evaluates the stored models of a group with a script of bin/, into GROUP_evaluation: evaluate_group SCRIPT GROUP SEED
# and the options of the dataset stage.
evaluate_group() {
    local script=$1 group=$2 seed=$3 dataset models=()
    shift 3
    local stored=$RESULTS/$LOG_PROJECT/$group/models
    if [ ! -d "$stored" ]; then
        echo "== $group: no models in $stored, skipped"
        return
    fi
    FOUND=$((FOUND + 1))
    for dataset in "${DATASETS[@]}"; do models+=(-p "$stored/mpdd_$dataset"); done
    run_study "$script" "${group}_evaluation" --seed "$seed" -- "${METHOD}_loader" "${models[@]}" "${METHOD_OPTIONS[@]}" -- "$@"
}
FOUND=0

# Ends an evaluation script that found nothing: found_or_fail SCRIPT, the one that would have trained.
found_or_fail() {
    [ "$FOUND" = 0 ] || return 0
    echo "error: no stored model in $RESULTS/$LOG_PROJECT: run $1 first" >&2
    exit 1
}
