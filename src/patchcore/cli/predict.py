"""Judging new images from the command line."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from patchcore import methods
from patchcore.cli.commands import start_logging
from patchcore.cli.errors import OneLineCommand, as_usage_error
from patchcore.cli.options import names_stated, parameters
from patchcore.config import DatasetConfig, RunConfig

log = logging.getLogger(__name__)

_FOLDER = click.Path(file_okay=False, path_type=Path)


def _number_parameters() -> list[click.Parameter]:
    return [*parameters(RunConfig, ["false_rejects", "gpu"]), *parameters(DatasetConfig, ["batch_size"])]


@click.command(cls=OneLineCommand, params=_number_parameters())
@click.argument("model", type=_FOLDER)
@click.argument("paths", metavar="[PATH]...", nargs=-1, type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--output", type=_FOLDER, help="New folder for predictions.csv, regions.csv and, with --save_overlays, pictures."
)
@click.option("--save_overlays", is_flag=True, help="Draw the verdict and the anomalous regions on every image.")
@click.option(
    "--explain",
    is_flag=True,
    help="Draw beneath what the most anomalous places were compared with: the nearest good patches. PatchCore only.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON per image, as soon as it is judged.")
@click.option(
    "--threshold", type=float, help="Reject what scores above this.  [default: as --false_rejects and the model say]"
)
@click.option(
    "--watch",
    type=_FOLDER,
    help="Go on with every image that is written into this folder, until Ctrl-C; needs --output, and goes on with the"
    " predictions there.",
)
@click.option("--fail_on_reject", is_flag=True, help="Exit with 3 if an image is rejected.")
@click.option("--weights_dir", type=_FOLDER, help="Folder with weight files, where they cannot be downloaded.")
@click.option(
    "--resize",
    type=click.IntRange(min=1),
    help="Shorter side after resizing, for models of the original PatchCore.  [default: that of the model]",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def predict(ctx: click.Context, model: Path, paths: tuple[Path, ...], debug: bool, **options: Any) -> int:
    """Judge images with the model in the folder MODEL.

    PATH is an image, a folder that is searched for images, or - for a list of paths on standard input, one a line.
    Prints ACCEPT or REJECT for every image. A broken image does not stop the others; the exit code is then 1.
    """
    stated = names_stated(ctx)
    _refuse_without_effect(paths, stated, options)
    start_logging(debug)

    from patchcore.methods.stored_model import read_model

    stored = read_model(model, methods.METHODS, options["resize"])
    if options["resize"] not in (None, stored.geometry.resize):
        raise click.UsageError(
            f"--resize {options['resize']} contradicts the model, stored with {stored.geometry.resize}: leave it out"
        )
    if options["weights_dir"]:
        stored = as_usage_error(stored.with_settings, {"weights_dir": options["weights_dir"]})
    _explain_verdicts(stored, stated, options)
    return _predict(stored, paths, options)


def _refuse_without_effect(paths: tuple[Path, ...], stated: frozenset[str], options: dict[str, Any]) -> None:
    if not paths and not options["watch"]:
        raise click.UsageError("expected images: files, folders, - for a list on standard input, or --watch DIR")
    if len([path for path in paths if str(path) == "-"]) > 1:
        raise click.UsageError("- reads standard input, so it can be given once")
    for option in ("threshold", "false_rejects"):
        if options[option] is not None and not math.isfinite(options[option]):
            raise click.UsageError(f"--{option} must be a number, got {options[option]}")
    if {"threshold", "false_rejects"} <= stated:
        raise click.UsageError("--false_rejects has no effect with --threshold: give one of them")
    for option in ("save_overlays", "explain"):
        if options[option] and not options["output"]:
            raise click.UsageError(f"--{option} needs a folder for the pictures: --output DIR")
    if options["watch"]:
        _check_watched(options["watch"], options["output"])


def _check_watched(folder: Path, output: Path | None) -> None:
    if output is None:
        raise click.UsageError("--watch needs a folder for the predictions: --output DIR")
    if not folder.is_dir():
        raise click.UsageError(f"--watch {folder}: no such folder")
    if output.resolve().is_relative_to(folder.resolve()):
        raise click.UsageError(f"--output {output} must not lie in the watched folder, or its pictures would be judged")


def _explain_verdicts(stored: Any, stated: frozenset[str], options: dict[str, Any]) -> None:
    """Say where verdicts come from if not from the rate asked for; refuse what needs one where there is none."""
    calibration, threshold = stored.calibration, options["threshold"]
    if calibration is None:
        cure = f"calibrate it with bin/calibrate.py {stored.folder} GOOD_IMAGES"
        if threshold is None:
            for option in ("fail_on_reject", "false_rejects"):
                if option in stated:
                    raise click.UsageError(f"--{option} needs a calibration, which the model lacks: {cure}")
            log.warning("the model has no calibration, so there are scores but no verdicts: %s", cure)
    elif threshold is None and (rate := calibration.rate(options["false_rejects"])) > options["false_rejects"]:
        log.warning(
            "%d calibration images allow no lower rate of false rejects than 1/%d = %.3g: that is used, not %g",
            len(calibration),
            len(calibration) + 1,
            rate,
            options["false_rejects"],
        )


def _predict(stored: Any, paths: tuple[Path, ...], options: dict[str, Any]) -> int:
    from patchcore.features.workspace import Workspace
    from patchcore.inspection import report
    from patchcore.inspection.images import absolute, find_images
    from patchcore.inspection.inspector import Inspector
    from patchcore.inspection.overlays import Overlays
    from patchcore.inspection.watch import unjudged, watch
    from patchcore.results.predictions import OVERLAYS, PredictionFolder, refuse_used_folder
    from patchcore.system.devices import choose_devices

    output, watched = options["output"], options["watch"]
    if output and not watched:
        as_usage_error(refuse_used_folder, output)
    given = list(_read_paths(paths))
    if watched:  # who goes on may do so from another folder
        given, watched = [Path(absolute(path)) for path in given], Path(absolute(watched))
    devices, notice = choose_devices(options["gpu"])
    if notice:
        log.info(notice)
    detector = stored.method.detector_class.from_stored(stored, Workspace(devices))
    inspector = Inspector(
        detector,
        false_rejects=options["false_rejects"],
        threshold=options["threshold"],
        batch_size=options["batch_size"],
    )
    overlays = None
    if options["save_overlays"] or options["explain"]:
        shown = [*given, *([watched] if watched else [])]
        overlays = Overlays(output / OVERLAYS, shown, detector, explain=options["explain"])
    line = report.as_json if options["as_json"] else report.as_line
    with ExitStack() as stack:
        journal = _basis(stored, options) if watched else None
        folder = stack.enter_context(PredictionFolder(output, journal=journal)) if output else None
        ending = report.Report(folder=folder, overlays=overlays, show=lambda image: _show(line(image)))
        if folder and watched:
            stop = stack.enter_context(_interruption())
            images = unjudged(find_images(given), folder.holds)
            ending.add_all(inspector.inspect(image for image in images if not stop()))
            log.info("watching %s", watched)
            watch(watched, inspector, ending, judged=folder.holds, stop=stop)
        else:
            ending.add_all(inspector.inspect(find_images(given)))
    log.info(ending.summary())
    return ending.exit_code(fail_on_reject=options["fail_on_reject"])


def _basis(stored: Any, options: dict[str, Any]) -> dict[str, Any]:
    """What verdicts rest on, so that no watch goes on with others."""
    calibration = None if stored.calibration is None else stored.calibration.to_plain()
    model = json.dumps([stored.method.name, dict(stored.checksums), calibration], sort_keys=True)
    return {
        "model": hashlib.sha256(model.encode()).hexdigest(),
        **{name: options[name] for name in ("false_rejects", "threshold")},
    }


@contextmanager
def _interruption() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM asked to come to an end; a second one is not waited for."""
    asked: list[int] = []
    before: dict[int, Any] = {}

    def ask(number: int, frame: object) -> None:
        asked.append(number)
        signal.signal(number, before[number])

    for asking in (signal.SIGINT, signal.SIGTERM):
        before[asking] = signal.signal(asking, ask)
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _read_paths(paths: tuple[Path, ...]) -> Iterator[Path]:
    """The paths, with those on standard input in the place of -."""
    for path in paths:
        if str(path) != "-":
            yield path
            continue
        for line in sys.stdin.buffer.read().split(b"\n"):
            if name := os.fsdecode(line.rstrip(b"\r")):
                yield Path(name)


def _show(line: str) -> None:
    click.echo(line.encode("utf-8", "backslashreplace").decode("utf-8"))  # names of files may hold other bytes
