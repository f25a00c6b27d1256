"""The floors of the house: imports point down, in no circle, and cost nothing that is not asked for."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "patchcore"
MOST_LINES = 400

# The floors from the bottom up: a room imports from its own and from lower floors' rooms, never from its neighbours'.
FLOORS = [
    {"types", "settings"},
    {"config"},
    {"system"},
    {"metrics", "scoring", "regions", "calibration", "pictures", "backbones", "datasets", "synthetic"},
    {"features"},
    {"methods", "results"},
    {"evaluation", "provenance", "suspects"},
    {"category_run"},
    {"experiment", "comparison", "inspection"},
    {"cli"},
]
# Each method has a room of its own in `methods`; the modules beside them serve all of them, and know none.
METHODS = {"patchcore", "fastflow"}
REGISTRY = "methods"  # the one module that knows all methods


def floor_of(module: str) -> int:
    room = module.split(".")[0]
    for number, rooms in enumerate(FLOORS):
        if room in rooms:
            return number
    raise AssertionError(f"{module} stands on no floor: say in {__file__} where it belongs")


def find_modules() -> dict[str, Path]:
    """Every module but `patchcore/__init__`, which imports the others when they are asked for."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name:
            found[name] = path
    return found


MODULES = find_modules()


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of what is imported anywhere in a tree: of modules, and of what is taken from them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports would escape these tests"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def imported(tree: ast.AST) -> set[str]:
    """Modules of the package that are imported anywhere in a tree."""
    names = {name.removeprefix("patchcore.") for name in imports(tree) if name.startswith("patchcore.")}
    return {name if name in MODULES else name.rpartition(".")[0] for name in names} - {""}


def parsed(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def on_import(module: str) -> set[str]:
    """Modules of the package that importing this one imports: not those in functions or for the type checker."""

    class Pruned(ast.NodeTransformer):
        def visit_FunctionDef(self, node):
            return None

        visit_AsyncFunctionDef = visit_Lambda = visit_FunctionDef

        def visit_If(self, node):
            if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
                return None
            return self.generic_visit(node)

    return imported(Pruned().visit(parsed(module)))


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module):
    for other in imported(parsed(module)):
        inside = module.split(".")[0] == other.split(".")[0]
        assert inside or floor_of(other) < floor_of(module), f"{module} imports {other}"


def test_no_floor_has_a_room_that_is_not_there():
    rooms = {module.split(".")[0] for module in MODULES}
    assert {room for floor in FLOORS for room in floor} == rooms


@pytest.mark.parametrize("module", sorted(set(MODULES) - {REGISTRY}))
def test_only_the_registry_and_its_own_room_know_a_method(module):
    """Who runs, stores, evaluates or compares names none, or a third would not need only its own files."""
    room, _, rest = module.partition(".")
    own = {rest.split(".")[0]} if room == "methods" else set()
    known = {name.split(".")[1] for name in imported(parsed(module)) if name.startswith("methods.")} & METHODS
    assert known <= own, f"{module} imports the methods {known - own}"


def test_the_registry_knows_all_methods():
    assert {path.parent.name for path in (SOURCE / "methods").glob("*/__init__.py")} == METHODS
    assert {name.split(".")[1] for name in imported(parsed(REGISTRY))} - {"method"} == METHODS


def test_methods_know_neither_the_command_line_nor_a_runs_folder():
    for module in MODULES:
        if module.split(".")[0] == "methods":
            rooms = {name.split(".")[0] for name in imported(parsed(module))}
            assert not rooms & {"cli", "results"}, module


def test_only_the_command_line_imports_click():
    users = {module for module in MODULES if any(name.split(".")[0] == "click" for name in imports(parsed(module)))}
    assert users
    assert {module.split(".")[0] for module in users} == {"cli"}


def test_no_import_leads_in_a_circle():
    edges = {module: on_import(module) for module in MODULES}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, f"a circle: {' -> '.join((*way[way.index(module) :], module))}"
        if module not in done:
            for other in sorted(edges[module]):
                visit(other, (*way, module))
            done.add(module)

    for module in sorted(MODULES):
        visit(module, ())
    assert done == set(MODULES)


@pytest.mark.parametrize("module", ["", *sorted(MODULES)])
def test_no_module_is_long(module):
    path = MODULES.get(module, SOURCE / "__init__.py")
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def loaded_by(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after some code."""
    program = f"import sys\n{code}\nimport json\nprint(json.dumps(list(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in json.loads(ended.stdout.splitlines()[-1])}


READ_WHERE_NO_MODEL_IS = """
from pathlib import Path
from patchcore.methods import METHODS
from patchcore.methods.stored_model import read_model
from patchcore.types import PatchCoreError
try:
    read_model(Path("nowhere"), METHODS)
except PatchCoreError:
    pass
"""


@pytest.mark.parametrize(
    "code",
    [
        "import patchcore; dir(patchcore); patchcore.__version__",
        "from patchcore.methods import METHODS",
        "from patchcore.config import RunConfig, DatasetConfig",
        READ_WHERE_NO_MODEL_IS,
    ],
)
def test_what_names_and_describes_costs_no_torch(code):
    loaded = loaded_by(code)
    assert "patchcore" in loaded
    heavy = {"torch", "timm", "faiss", "scipy", "matplotlib"} | ({"numpy"} if code.startswith("import") else set())
    assert not loaded & heavy


def test_what_is_asked_for_is_imported():
    import patchcore

    assert {"FastFlow", "PatchCore", "__version__", "load"} == set(patchcore.__all__) == set(dir(patchcore))
    for name in patchcore.__all__:
        assert getattr(patchcore, name).__class__ is not None
    with pytest.raises(AttributeError, match="no attribute 'PatchCor'"):
        patchcore.PatchCor  # noqa: B018
