#!/usr/bin/env python
"""Evaluate stored FastFlow models on good and defective images of parts; see --help."""

from patchcore.cli.fastflow import load_and_evaluate_fastflow
from patchcore.cli.run import run_script

if __name__ == "__main__":
    run_script(load_and_evaluate_fastflow, "load_and_evaluate_fastflow.py")
