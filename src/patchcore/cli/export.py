"""The export of a stored model from the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from patchcore.cli.commands import start_logging
from patchcore.cli.errors import OneLineCommand


@click.command(cls=OneLineCommand)
@click.argument("model", type=click.Path(file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--weights_dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder with weight files, where they cannot be downloaded.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def export_onnx(model: Path, out: Path, weights_dir: Path | None, debug: bool) -> None:
    """Write the stored model in the folder MODEL as one ONNX graph to the new file OUT, which ends in .onnx.

    From RGB pixels to scores and maps; both are compared with the model's own before the file is left there. Needs
    the packages onnx and onnxruntime: pip install '.[export]'.
    """
    start_logging(debug)
    from patchcore.methods import export
    from patchcore.methods.loading import load

    export.check_target(out)  # before anything is loaded
    settings: dict[str, Any] = {"weights_dir": weights_dir} if weights_dir else {}
    detector = load(model, device="cpu", **settings)
    images = export.check_images(detector)
    with _quiet_stdout():
        deviation = export.export_onnx(detector, out, images)
    click.echo(
        f"{out}: {out.stat().st_size / 2**20:.1f} MiB; on {len(images)} images scores and maps are within"
        f" {deviation:.1g} of the model's"
    )


@contextmanager
def _quiet_stdout() -> Iterator[None]:
    """Keep off standard output what torch's exporter prints from C++ when it fails: the whole graph."""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
