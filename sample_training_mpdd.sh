#!/usr/bin/env bash
# Trains and evaluates the study's four PatchCore variants on MPDD; see --help. Started again, it skips what is finished.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=configs/patchcore_mpdd.sh
source "$root/configs/patchcore_mpdd.sh"

train() {
    local group=$1 seed=$2 resize=$3 imagesize=$4 percentage=$5
    shift 5
    run_study run_patchcore.py "$group" --seed "$seed" --save_patchcore_model -- \
        patch_core "$@" "${METHOD_OPTIONS[@]}" sampler -p "$percentage" approx_greedy_coreset -- \
        --resize "$resize" --imagesize "$imagesize"
}

each_variant train
