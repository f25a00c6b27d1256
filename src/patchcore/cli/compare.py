"""The comparison of finished runs from the command line."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import click

from patchcore.cli.errors import OneLineCommand


@click.command(cls=OneLineCommand)
@click.argument("results_path", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--output",
    default=Path("report"),
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for report.html, report.md and tables/*.csv; an earlier report there is replaced.",
)
@click.option(
    "--reference",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Published results to show beside the measured ones, such as configs/published_mpdd.json; a name that ships"
    " with the toolkit is found from everywhere.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def compare_results(results_path: Path, output: Path, reference: Path | None, debug: bool) -> None:
    """Compare all finished runs below RESULTS_PATH: tables, costs, plots and recommendations.

    Runs that differ in nothing but their seed are pooled; runs on different test images are kept apart.
    """
    from patchcore.comparison.report import make_report
    from patchcore.comparison.write import format_terminal, write_report
    from patchcore.system.files import shipped

    if reference and not reference.exists():
        with suppress(FileNotFoundError):
            reference = shipped(reference.name)
    report = make_report(results_path, reference)
    write_report(report, output)
    text = f"{format_terminal(report)}\n\nreport: {output / 'report.html'}"
    click.echo(text.encode("utf-8", "backslashreplace").decode("utf-8"))  # names of files may hold other bytes
