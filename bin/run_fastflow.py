#!/usr/bin/env python
"""Train FastFlow on good images of parts and evaluate it; see --help."""

from patchcore.cli.scripts import run_fastflow

if __name__ == "__main__":
    run_fastflow()
