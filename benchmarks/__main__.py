"""Run the benchmarks; see --help."""

from __future__ import annotations

import importlib
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from benchmarks.inputs import Settings

# In the order in which they run; each is a module with `run(inputs) -> Report`.
STAGES = ("embedding", "coreset", "search", "metrics", "overlays", "maps", "latency", "jobs", "startup", "methods")
SIZES, QUICK_SIZES = (54, 150, 289), (2, 4)


@click.command()
@click.argument("stages", nargs=-1, type=click.Choice(STAGES))
@click.option("--sizes", default=None, metavar="N,N,...", help="Numbers of training images.  [default: 54,150,289]")
@click.option("--device", default="cpu", show_default=True, type=click.Choice(("cpu", "cuda")), help="Where to run.")
@click.option("--repeats", default=None, type=click.IntRange(min=1), help="Runs of each way.  [default: 5]")
@click.option("--quick", is_flag=True, help="Tiny inputs: whether all of it works, not how fast it is.")
@click.option(
    "--data",
    default=None,
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Data set in MPDD's layout with the category metal_plate; otherwise images are drawn.",
)
@click.option("--whole_reference", is_flag=True, help="Never extrapolate the reference of the coreset.")
@click.option(
    "--output",
    default=None,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Markdown file to write; if it has marks, between them.",
)
def main(
    stages: tuple[str, ...],
    sizes: str | None,
    device: str,
    repeats: int | None,
    quick: bool,
    data: Path | None,
    whole_reference: bool,
    output: Path | None,
) -> None:
    """Measure STAGES (all by default) against their references and print ratios, memory and differences."""
    import torch

    from benchmarks.inputs import Settings

    if device == "cuda" and not torch.cuda.is_available():
        raise click.UsageError("--device cuda: there is no CUDA device here")
    with tempfile.TemporaryDirectory(prefix="benchmarks_") as scratch:
        settings = Settings(
            device=torch.device(device),
            sizes=_sizes(sizes, quick),
            repeats=repeats or (2 if quick else 5),
            quick=quick,
            scratch=Path(scratch),
            data=data,
            whole_reference=whole_reference,
        )
        measure(stages or STAGES, settings, output)


def _sizes(text: str | None, quick: bool) -> tuple[int, ...]:
    if text is None:
        return QUICK_SIZES if quick else SIZES
    try:
        sizes = tuple(sorted({int(size) for size in text.split(",")}))
    except ValueError:
        sizes = (0,)
    if sizes[0] < 1:
        raise click.UsageError(f"--sizes must be numbers of images with commas between, got {text!r}")
    return sizes


def measure(stages: tuple[str, ...], settings: Settings, output: Path | None) -> None:
    """Run stages, print their tables, and write them to a Markdown file."""
    from benchmarks import report as reports
    from benchmarks.inputs import Inputs
    from benchmarks.machine import describe, measure_floors
    from benchmarks.measure import Report

    if output is not None:
        try:
            reports.around(output)  # better now than after ten minutes
        except (OSError, ValueError) as error:
            raise click.UsageError(f"--output: {error}") from error
    floors = measure_floors(settings.device, quick=settings.quick)
    inputs = Inputs(settings, floors)
    report = Report()
    for stage in STAGES:
        if stage not in stages:
            continue
        begin = time.perf_counter()
        report.add(importlib.import_module(f"benchmarks.{stage}").run(inputs))
        click.echo(f"{stage}: done in {time.perf_counter() - begin:.0f} s", err=True)
    machine = describe(settings.device)
    if settings.quick:
        machine.append(("note", "quick run on tiny inputs: the figures say nothing"))
    tables = reports.tables(report, floors, machine, inputs.source)
    for table in tables:
        click.echo(reports.as_text(table))
    if output is not None:
        reports.write(output, "\n".join(map(reports.as_markdown, tables)))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
