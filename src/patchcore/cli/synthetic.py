"""Drawing a synthetic data set from the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from patchcore.cli.errors import OneLineCommand
from patchcore.synthetic.generate import generate
from patchcore.synthetic.parts import CATEGORIES


def _number(name: str, default: int, least: int, text: str) -> Callable:
    return click.option(f"--{name}", default=default, show_default=True, type=click.IntRange(min=least), help=text)


@click.command(cls=OneLineCommand)
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
@_number("num_train", 20, 1, "Good training images per category.")
@_number("num_test_good", 8, 1, "Good test images per category.")
@_number("num_per_defect", 6, 1, "Test images, each with its mask, for every kind of defect.")
@_number("size", 256, 64, "Side of the square images in pixels.")
@_number("seed", 0, 0, "The same seed gives the same images.")
def make_synthetic_mpdd(out: Path, categories: tuple[str, ...], **numbers: int) -> None:
    """Write a synthetic stand-in for MPDD to the folder OUT: drawn metal parts, good and faulty, with masks.

    The results on it say that the toolkit works, nothing about MPDD.
    """
    if len(set(categories)) < len(categories):
        raise click.UsageError(f"-d must name each category once, got {', '.join(categories)}")
    generate(out, categories=categories, **numbers)
    for category in categories:
        defects = ", ".join(CATEGORIES[category].faults)
        click.echo(
            f"{out / category}: {numbers['num_train']} good for training, {numbers['num_test_good']} good for testing, "
            f"{numbers['num_per_defect']} each with {defects}"
        )
