#!/usr/bin/env python
"""Evaluate stored PatchCore models on good and defective images of parts; see --help."""

from patchcore.cli.scripts import load_and_evaluate_patchcore

if __name__ == "__main__":
    load_and_evaluate_patchcore()
