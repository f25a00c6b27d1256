#!/usr/bin/env python
"""Add images of good parts to a stored PatchCore model; see --help."""

from patchcore.cli.scripts import update_patchcore

if __name__ == "__main__":
    update_patchcore()
