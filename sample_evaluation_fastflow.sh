#!/usr/bin/env bash
# Evaluates every stored model of the sample_training_fastflow*.sh scripts; see --help.
# Results go to GROUP_evaluation. Started again, it skips what is finished.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=configs/fastflow_mpdd.sh
source "$root/configs/fastflow_mpdd.sh"

for name in "${RECIPES[@]}"; do
    recipe "$name"
    evaluate_group load_and_evaluate_fastflow.py "$GROUP" 0 "${GEOMETRY[@]}"
done
found_or_fail "a sample_training_fastflow*.sh"
