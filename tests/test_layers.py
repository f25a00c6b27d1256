"""Imports point down only: each module may import those that stand in a row above its own, or are named there."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "patchcore"

# From the bottom up. A module imports from lower rows only; modules of one row do not know each other.
ROWS = [
    {"types", "config"},
    {"runtime", "coreset", "efficientnet_lite0", "legacy", "png", "datasets.mpdd", "datasets.mvtec"},
    {"datasets", "pruned_search", "sampler"},
    {"datasets.folder", "datasets.synthetic", "backbones", "patches", "metrics", "scoring", "visualize"},
    {"features", "memory_bank", "patch_store", "model_files", "results"},
    {"feature_cache"},
    {"patchcore", "fastflow"},
    {"experiment", "comparison"},
    {"cli"},
]


def row_of(module: str) -> int:
    for row, modules in enumerate(ROWS):
        if module in modules or module.split(".")[0] in modules - {"datasets"}:
            return row
    raise AssertionError(f"{module} has no row in {__file__}: say where it belongs")


def modules() -> dict[str, Path]:
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name:
            found[name] = path
    return found


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "patchcore":
            base = node.module.removeprefix("patchcore").lstrip(".")
            for alias in node.names:
                full = f"{base}.{alias.name}".lstrip(".")
                names.add(full if full in modules() else base)
        elif isinstance(node, ast.Import):
            names |= {alias.name[10:] for alias in node.names if alias.name.startswith("patchcore.")}
    return names - {""}


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_point_down(module):
    package = module.split(".")[0]
    for other in imported(modules()[module]):
        inside = package not in ("datasets",) and other.split(".")[0] == package
        assert inside or row_of(other) < row_of(module), f"{module} imports {other}"
