"""Imports point down only: each module may import those that stand in a row above its own, or are named there."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "patchcore"

# The floors from the bottom up: a room imports from its own and from lower floors' rooms, never from its neighbours'.
FLOORS = [
    {"types", "config"},
    {"system"},
    {"metrics", "scoring", "pictures", "backbones", "datasets", "synthetic"},
    {"features"},
    {"methods", "results", "evaluation"},
    {"experiment", "comparison"},
    {"cli"},
]


def floor_of(module: str) -> int:
    room = module.split(".")[0]
    for number, rooms in enumerate(FLOORS):
        if room in rooms:
            return number
    raise AssertionError(f"{module} stands on no floor: say in {__file__} where it belongs")


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
    for other in imported(modules()[module]):
        inside = module.split(".")[0] == other.split(".")[0]
        assert inside or floor_of(other) < floor_of(module), f"{module} imports {other}"


def test_methods_do_not_know_each_other():
    for module, path in modules().items():
        if module.startswith("methods."):
            others = {
                name.split(".")[1] for name in imported(path) if name.startswith("methods.") and name.count(".") > 1
            }
            assert others <= {module.split(".")[1]}, f"{module} imports methods {others}"
