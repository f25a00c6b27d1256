"""Data sets by name. Importing this costs no torch, so that `--help` answers at once."""

from __future__ import annotations

from patchcore.datasets import mpdd, mvtec

DATASETS: dict[str, tuple[str, ...]] = {
    mpdd.NAME: mpdd.CATEGORIES,
    mvtec.NAME: mvtec.CATEGORIES,
}
"""Data set name -> its official categories, in alphabetical order.

The names serve help texts and near-miss suggestions only: all data sets share one layout, that of
`patchcore.datasets.folder`, and any folder in it is accepted as a category, users' own parts included.
"""
