#!/usr/bin/env python
"""Write a small synthetic data set in MPDD's layout, to try the toolkit where MPDD is not at hand; see --help."""

from patchcore.cli.scripts import make_synthetic_mpdd

if __name__ == "__main__":
    make_synthetic_mpdd()
