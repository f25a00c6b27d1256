"""Is the stated share of good parts rejected, and no more? On drawn scores, drawn patches, and photos; see --help."""

from __future__ import annotations

from pathlib import Path

import click

# Of photos for training, in the order of the tables.
NUMBERS = (10, 25, 50, 200)
FEWEST_JUDGED = 20  # good images that a split leaves to judge


@click.command()
@click.option(
    "--data",
    multiple=True,
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Folder of a category in MPDD's layout, such as mpdd/metal_plate, whose images are split and judged; repeat"
    " for several. Then nothing is drawn.",
)
@click.option(
    "-p", "fraction", default=0.1, show_default=True, type=click.FloatRange(0, 1, min_open=True), help="Patches kept."
)
@click.option("--splits", default=10, show_default=True, type=click.IntRange(2), help="Random splits of the images.")
@click.option("--quick", is_flag=True, help="A few repetitions: whether all of it works.")
def main(data: tuple[Path, ...], fraction: float, splits: int, quick: bool) -> None:
    """Print Markdown tables of realised rates of false rejects: drawn for some minutes, or of photos with --data."""
    from benchmarks import report

    def show(table: report.Table) -> None:
        click.echo(report.as_markdown(table))

    if not data:
        from benchmarks.drawn_patches import duplicates_table, left_out_table
        from benchmarks.drawn_scores import ensembles_table, rates_table

        show(rates_table(20 if quick else 4000))
        show(ensembles_table(2 if quick else 200))
        show(left_out_table({10: 2} if quick else {10: 100, 20: 40, 50: 40, 200: 15}, retrained_up_to=20))
        show(duplicates_table(*((30, 2) if quick else (60, 40))))
    for folder in data:
        from benchmarks.left_out import Thinning
        from benchmarks.real_sets import embed, seeds_table, splits_table

        images, thinning = embed(folder.parent, folder.name), Thinning(fraction=fraction)
        show(seeds_table(images, thinning))
        most = len(images.train) + len(images.good) - FEWEST_JUDGED
        if numbers := [n for n in NUMBERS if n <= most]:
            show(splits_table(images, thinning, numbers, splits))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.false_rejects")
