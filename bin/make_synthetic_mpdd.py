"""Write a small synthetic data set in MPDD's layout, to try the toolkit where MPDD is not at hand."""

from __future__ import annotations

from pathlib import Path

import click

from patchcore.synthetic.generate import CATEGORIES, generate
from patchcore.types import PatchCoreError


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "-d",
    "categories",
    multiple=True,
    default=tuple(CATEGORIES),
    show_default=True,
    type=click.Choice(tuple(CATEGORIES)),
    help="A category to make; repeat for several.",
)
@click.option(
    "--num_train",
    default=20,
    show_default=True,
    type=click.IntRange(min=1),
    help="Good training images per category.",
)
@click.option(
    "--num_test_good",
    default=8,
    show_default=True,
    type=click.IntRange(min=1),
    help="Good test images per category.",
)
@click.option(
    "--num_per_defect",
    default=6,
    show_default=True,
    type=click.IntRange(min=1),
    help="Test images, each with its mask, for every kind of defect.",
)
@click.option(
    "--size",
    default=256,
    show_default=True,
    type=click.IntRange(min=64),
    help="Side of the square images in pixels.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="The same seed gives the same images.",
)
def main(
    out: Path,
    categories: tuple[str, ...],
    num_train: int,
    num_test_good: int,
    num_per_defect: int,
    size: int,
    seed: int,
) -> None:
    """Write a synthetic stand-in for MPDD to the folder OUT: drawn metal parts, good and faulty, with masks.

    The results on it say that the toolkit works, nothing about MPDD.
    """
    if len(set(categories)) < len(categories):
        raise click.UsageError(f"-d must name each category once, got {', '.join(categories)}")
    try:
        generate(
            out,
            categories=categories,
            num_train=num_train,
            num_test_good=num_test_good,
            num_per_defect=num_per_defect,
            size=size,
            seed=seed,
        )
    except (PatchCoreError, OSError) as error:
        raise click.ClickException(str(error)) from error
    for category in categories:
        defects = ", ".join(CATEGORIES[category].faults)
        click.echo(
            f"{out / category}: {num_train} good for training, {num_test_good} good for testing, "
            f"{num_per_defect} each with {defects}"
        )


if __name__ == "__main__":
    main()
