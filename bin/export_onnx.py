#!/usr/bin/env python
"""Write a stored model as one ONNX graph; see --help."""

from patchcore.cli.scripts import export_onnx

if __name__ == "__main__":
    export_onnx()
