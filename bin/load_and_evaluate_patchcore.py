#!/usr/bin/env python
"""Evaluate stored PatchCore models on good and defective images of parts; see --help."""

from patchcore.cli.patchcore import load_and_evaluate_patchcore
from patchcore.cli.run import run_script

if __name__ == "__main__":
    run_script(load_and_evaluate_patchcore, "load_and_evaluate_patchcore.py")
