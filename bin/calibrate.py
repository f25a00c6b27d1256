#!/usr/bin/env python
"""Calibrate a stored model with images of good parts; see --help."""

from patchcore.cli.scripts import calibrate

if __name__ == "__main__":
    calibrate()
