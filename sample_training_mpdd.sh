#!/usr/bin/env bash
# Trains and evaluates the study's four PatchCore variants on MPDD; see --help. Started again, it skips what is complete.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=configs/patchcore_mpdd.sh
source "$root/configs/patchcore_mpdd.sh"

train() {
    local group=$1 seed=$2 resize=$3 imagesize=$4 percentage=$5
    shift 5
    local folder=$RESULTS/$LOG_PROJECT/$group
    if complete "$folder" && [ -d "$folder/models" ]; then
        echo "== $group: complete, skipped"
        return
    fi
    set_aside "$folder"
    echo "== $group"
    "$PYTHON" "$ROOT/bin/run_patchcore.py" "${GPU_FLAGS[@]}" --seed "$seed" --save_patchcore_model --save_segmentation_images \
        --save_anomaly_scores --log_group "$group" --log_project "$LOG_PROJECT" "$RESULTS" \
        patch_core "$@" "${METHOD_OPTIONS[@]}" \
        sampler -p "$percentage" approx_greedy_coreset \
        dataset --resize "$resize" --imagesize "$imagesize" "${DATASET_OPTIONS[@]}" "${DATASET_FLAGS[@]}" mpdd "$DATAPATH"
}

each_variant train
