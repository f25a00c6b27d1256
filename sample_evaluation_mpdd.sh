#!/usr/bin/env bash
# Evaluates every stored PatchCore variant of sample_training_mpdd.sh, each at its own image size; see --help.
# Results go to GROUP_evaluation. Started again, it skips what is finished.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=configs/patchcore_mpdd.sh
source "$root/configs/patchcore_mpdd.sh"

evaluate() {
    local group=$1 seed=$2 resize=$3 imagesize=$4
    evaluate_group load_and_evaluate_patchcore.py "$group" "$seed" --resize "$resize" --imagesize "$imagesize"
}

each_variant evaluate
found_or_fail sample_training_mpdd.sh
