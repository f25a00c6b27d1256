"""`config.yaml`: what is read back, and what is said of damaged and hostile ones."""

import pytest
import yaml

from hand_made import write_run
from patchcore.results.config_file import read_config, read_yaml, rows_of, write_yaml
from patchcore.types import PatchCoreError

PLAIN = {
    "command": "x: y",
    "run": {"seed": 0, "path": "größe", "none": None, "share": 0.1, "on": True, "list": [1, [2]]},
}


def test_settings_by_the_byte_and_back(tmp_path):
    write_yaml(tmp_path / "config.yaml", PLAIN)
    assert (tmp_path / "config.yaml").read_bytes().decode() == (
        "command: 'x: y'\nrun:\n  seed: 0\n  path: größe\n  none: null\n  share: 0.1\n  'on': true\n"
        "  list:\n  - 1\n  - - 2\n"
    )
    assert read_yaml(tmp_path / "config.yaml") == PLAIN


def test_equal_parts_are_written_out(tmp_path):
    shared = {"a": [1, 2]}
    write_yaml(tmp_path / "config.yaml", {"x": shared, "y": shared})
    assert "&" not in (tmp_path / "config.yaml").read_text()
    assert read_yaml(tmp_path / "config.yaml") == {"x": shared, "y": shared}


LAUGHS = "\n".join(
    ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30))],
)
HOSTILE = {
    "no file": (None, "No such file"),
    "no YAML": ("a: [", "expected the node content"),
    "no UTF-8": (b"a: \xff", "utf-8"),
    "a list": ("[1, 2]", "expected settings by name"),
    "billion laughs": (LAUGHS, "a reference to another part"),
    "a list that holds itself": ("a: &a [*a]", "a reference to another part"),
    "deep lists": ("a: " + "[" * 100_000, "nested more than"),
    "deep settings": ("\n".join(" " * n + "a:" for n in range(3000)), "nested more than"),
    "a date": ("a: 2020-02-02", "not JSON serializable"),
    "a set": ("a: !!set {x}", "the type tag:yaml.org,2002:set"),
    "a date that is none": ("a: !!timestamp x", "the type tag:yaml.org,2002:timestamp"),
    "an object": ("a: !!python/object/apply:os.system [ls]", "the type tag:yaml.org,2002:python"),
    "one name twice": ("a: 1\nb: 2\na: 3", "'a' stands twice"),
    "a list as a name": ("? [1]\n: 2", "unhashable key"),
    "a long number": ("a: 1" + "0" * 5000, "limit (4300"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_damaged_and_hostile_settings_are_named(tmp_path, name):
    content, said = HOSTILE[name]
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PatchCoreError) as error:
        read_yaml(path)
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_config_of_a_run_is_read_whole(tmp_path):
    path = write_run(tmp_path / "run") / "config.yaml"
    config = read_config(path)
    assert config == yaml.safe_load(path.read_text(encoding="utf-8"))
    assert rows_of(config) == ["mpdd_plate", "mpdd_bracket"]


MODELS = {"plate": {"folder": "x", "run": None}, "bracket": {"folder": "x", "run": "id"}}
WRONG = {
    "no id": ({"id": None}, "it has no id; was it made by an earlier version?"),
    "no method": ({"method": None}, "it has no method; was it made by an earlier version?"),
    "no title": ({"method": {"name": "bank"}}, "method has no title; was it made by an earlier version?"),
    "a list of settings": ({"settings": [1]}, "damaged: settings is [1], expected settings by name"),
    "a seed of text": ({"run": {"seed": "0", "log_group": "g"}}, "damaged: run seed is '0'"),
    "a seed that is true": ({"run": {"seed": True, "log_group": "g"}}, "damaged: run seed is True"),
    "a huge seed": ({"run": {"seed": 10**40, "log_group": "g"}}, "damaged: run seed is too large"),
    "no test set": ({"test_set": {"mpdd_plate": {"images": 1, "fingerprint": "x"}}}, "test_set has no mpdd_bracket"),
    "other test sets": ({"test_set": [1]}, "damaged: test_set is [1]"),
    "models of text": ({"models": {"plate": "x"}}, "damaged: models plate is 'x', expected settings by name"),
    "a model without folder": ({"models": {"plate": {"run": None}}}, "models plate has no folder"),
    "a model of run 5": ({"models": {**MODELS, "plate": {"folder": "x", "run": 5}}}, "models plate run is 5"),
    "overrides of text": ({"overrides": "x"}, "damaged: overrides is 'x'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_run_that_lacks_what_the_comparison_needs_is_named(tmp_path, name):
    config, said = WRONG[name]
    path = write_run(tmp_path / "run", config=config) / "config.yaml"
    with pytest.raises(PatchCoreError) as error:
        read_config(path)
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)


def test_an_evaluation_names_its_models(tmp_path):
    path = write_run(tmp_path / "run", config={"models": MODELS, "overrides": {}}) / "config.yaml"
    assert read_config(path)["models"] == MODELS
