#!/usr/bin/env python
"""Compare the runs in a results folder: tables, costs, plots and recommendations; see --help."""

from patchcore.cli.compare import compare_results

if __name__ == "__main__":
    compare_results(prog_name="compare_results.py")
