"""MPDD, Metal Parts Defect Detection (Jezek et al. 2021)."""

NAME = "mpdd"

CATEGORIES = (
    "bracket_black",
    "bracket_brown",
    "bracket_white",
    "connector",
    "metal_plate",
    "tubes",
)
