"""`config.yaml`: the settings, the test images and the machine of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

import yaml

from patchcore.system.files import atomic_write
from patchcore.types import PatchCoreError

_DEEPEST = 20  # levels of nesting

# What every run says and of which type it is; a dict stands for settings by name.
_NEEDED: dict[str, Any] = {
    "id": str,
    "method": {"name": str, "title": str, "short_name": str},
    "run": {"seed": int, "log_group": str},
    "dataset": {"name": str, "path": str, "categories": list},
    "settings": {},
    "test_set": {},
    "environment": {"processor": str, "threads": str, "gpus": str},
}
_OPTIONAL = ("execution", "settings_by_category", "models", "overrides")  # settings by name where they are there
_TEST_SET = {"images": int, "fingerprint": str}
_MODEL = {"folder": str, "run": (str, NoneType)}


class _Dumper(yaml.SafeDumper):
    """Writes equal parts out each time, since `_Loader` knows no references."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class _Loader(yaml.SafeLoader):
    """Refuses what makes a small file large or deep, names that stand twice, and values that are told their type."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("a reference to another part, expected the part itself")
        if tag := getattr(self.peek_event(), "tag", None):
            raise yaml.YAMLError(f"the type {tag:.80}, expected a plain value")
        self.depth += 1
        if self.depth > _DEEPEST:
            raise yaml.YAMLError(f"nested more than {_DEEPEST} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise yaml.YAMLError(f"{repeated[0]!r:.80} stands twice")
        return super().construct_mapping(node, deep)


def write_yaml(path: Path, content: dict[str, Any]) -> None:
    """Write plain dicts, lists, strings and numbers as YAML, in their order."""
    text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)
    with atomic_write(path) as aside:
        aside.write_text(text, encoding="utf-8")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read settings by name, made of plain dicts, lists, strings and numbers, as JSON has them.

    Raises:
        PatchCoreError: the file is missing, not such YAML, or built to take all memory; it is named.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
        content = json.loads(json.dumps(content))  # YAML has more, such as dates
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise PatchCoreError(f"{path}: cannot read the settings: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise PatchCoreError(f"{path}: expected settings by name")
    return content


def read_config(path: Path) -> dict[str, Any]:
    """Read the `config.yaml` of a run.

    Raises:
        PatchCoreError: it is missing, damaged, or of an earlier version; it is named, with the setting.
    """
    config = read_yaml(path)
    _check(path, "", config, {**_NEEDED, **{name: {} for name in _OPTIONAL if name in config}})
    categories = config["dataset"]["categories"]
    if not (categories and all(isinstance(name, str) for name in categories)):
        raise PatchCoreError(f"{path}: damaged: dataset categories are {categories!r:.80}")
    _check(path, "test_set", config["test_set"], dict.fromkeys(rows_of(config), _TEST_SET))
    models = config.get("models", {})
    _check(path, "models", models, dict.fromkeys(models, _MODEL))
    return config


def rows_of(config: dict[str, Any]) -> list[str]:
    """The names of the rows that the finished run has in `results.csv`, without the mean."""
    return [row_name(config["dataset"]["name"], category) for category in config["dataset"]["categories"]]


def row_name(dataset: str, category: str) -> str:
    """The name of a category in the results: mpdd_metal_plate."""
    return f"{dataset}_{category}"


def _check(path: Path, place: str, found: Any, expected: Mapping[str, Any]) -> None:
    """See that settings are there and of their types; integers are as large as a seed at most."""
    if not isinstance(found, dict):
        raise PatchCoreError(f"{path}: damaged: {place} is {found!r:.80}, expected settings by name")
    for name, kind in expected.items():
        inner = f"{place} {name}".lstrip()
        if name not in found:
            raise PatchCoreError(f"{path}: {place or 'it'} has no {name}; was it made by an earlier version?")
        value = found[name]
        if isinstance(kind, dict):
            _check(path, inner, value, kind)
        elif not isinstance(value, kind) or isinstance(value, bool):
            raise PatchCoreError(f"{path}: damaged: {inner} is {value!r:.80}")
        elif isinstance(value, int) and abs(value) >= 2**63:
            raise PatchCoreError(f"{path}: damaged: {inner} is too large")
