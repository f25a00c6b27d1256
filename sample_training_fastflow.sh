#!/usr/bin/env bash
# Trains and evaluates FastFlow on ResNet18 with one setting for all categories; see --help.
# Interrupted and started again, it goes on where it was.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=configs/fastflow_mpdd.sh
source "$root/configs/fastflow_mpdd.sh"

train plain
