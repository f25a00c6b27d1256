#!/usr/bin/env python
"""Train PatchCore on good images of parts and evaluate it; see --help."""

from patchcore.cli.patchcore import run_patchcore
from patchcore.cli.run import run_script

if __name__ == "__main__":
    run_script(run_patchcore, "run_patchcore.py")
