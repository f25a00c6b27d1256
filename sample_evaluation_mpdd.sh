#!/usr/bin/env bash
# Evaluates every stored PatchCore variant of sample_training_mpdd.sh, each at its own image size; see --help.
# Results go to GROUP_evaluation. Started again, it skips what is complete.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=configs/mpdd_study.sh
source "$root/configs/mpdd_study.sh"

found=0

evaluate() {
    local group=$1 seed=$2 resize=$3 imagesize=$4
    local stored=$RESULTS/$LOG_PROJECT/$group/models
    local folder=$RESULTS/$LOG_PROJECT/${group}_evaluation
    if [ ! -d "$stored" ]; then
        echo "== $group: no models in $stored, skipped"
        return
    fi
    found=$((found + 1))
    if complete "$folder"; then
        echo "== $group: evaluated before, skipped"
        return
    fi
    set_aside "$folder"
    local models=() dataset
    for dataset in "${DATASETS[@]}"; do models+=(-p "$stored/mpdd_$dataset"); done
    echo "== $group"
    "$PYTHON" "$ROOT/bin/load_and_evaluate_patchcore.py" "${GPU_FLAGS[@]}" --seed "$seed" --save_segmentation_images \
        --save_anomaly_scores --log_group "${group}_evaluation" --log_project "$LOG_PROJECT" "$RESULTS" \
        patch_core_loader "${models[@]}" "${PATCH_CORE_OPTIONS[@]}" \
        dataset --resize "$resize" --imagesize "$imagesize" "${DATASET_OPTIONS[@]}" "${DATASET_FLAGS[@]}" mpdd "$DATAPATH"
}

each_variant evaluate
if [ "$found" = 0 ]; then
    echo "error: no stored variant in $RESULTS/$LOG_PROJECT: run sample_training_mpdd.sh first" >&2
    exit 1
fi
