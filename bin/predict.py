#!/usr/bin/env python
"""Judge new images with a stored model; see --help."""

from patchcore.cli.scripts import predict

if __name__ == "__main__":
    predict()
