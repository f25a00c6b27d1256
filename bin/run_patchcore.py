#!/usr/bin/env python
"""Train PatchCore on good images of parts and evaluate it; see --help."""

from patchcore.cli.scripts import run_patchcore

if __name__ == "__main__":
    run_patchcore()
