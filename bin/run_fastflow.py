#!/usr/bin/env python
"""Train FastFlow on good images of parts and evaluate it; see --help."""

from patchcore.cli.fastflow import run_fastflow
from patchcore.cli.run import run_script

if __name__ == "__main__":
    run_script(run_fastflow, "run_fastflow.py")
