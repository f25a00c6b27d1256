"""Settings: the types and ranges of fields, and the way to plain values and back."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from patchcore.config import DatasetConfig, RunConfig
from patchcore.datasets.geometry import Geometry
from patchcore.methods import METHODS
from patchcore.methods.fastflow.config import FastFlowConfig
from patchcore.methods.patchcore.config import PatchCoreConfig
from patchcore.settings import Setting, check, from_plain, setting, settings_of, split_settings, to_plain


@dataclass(frozen=True, kw_only=True)
class Example:
    """A field of every kind that configurations have."""

    name: str = setting(help="What it is called.", choices=("one", "other"))
    path: Path = setting(Path("here"), decides=False)
    count: int = setting(1, at_least=1, below=10)
    share: float = setting(0.5, above=0, at_most=1)
    flag: bool = setting(False)
    optional: int | None = setting(None, at_least=2)
    place: Path | None = setting(None, decides=False)
    names: tuple[str, ...] = setting((), flags=("--name", "-n"))
    numbers: tuple[int, ...] = setting((0,), at_least=0)
    lists: tuple[tuple[str, ...], ...] = setting(())
    plain: float = 2.0

    def __post_init__(self) -> None:
        check(self)


def example(**settings):
    return Example(**{"name": "one", **settings})


# Types


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"share": 1}, 1.0),
        ({"plain": 3}, 3.0),
        ({"path": "a/b"}, Path("a/b")),
        ({"place": "a/b"}, Path("a/b")),
        ({"place": None}, None),
        ({"optional": None}, None),
        ({"optional": 2}, 2),
        ({"names": ["a", "b"]}, ("a", "b")),
        ({"numbers": [1, 2]}, (1, 2)),
        ({"lists": [["a"], ["b", "c"]]}, (("a",), ("b", "c"))),
        ({"lists": [("a",)]}, (("a",),)),
    ],
    ids=str,
)
def test_values_become_those_of_their_field(settings, expected):
    (name,) = settings
    value = getattr(example(**settings), name)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": 1}, "name must be str, got 1"),
        ({"name": None}, "name must be str, got None"),
        ({"name": Path("one")}, "name must be str, got PosixPath('one')"),
        ({"count": "1"}, "count must be int, got '1'"),
        ({"count": 1.0}, "count must be int, got 1.0"),
        ({"count": True}, "count must be int, got True"),
        ({"count": None}, "count must be int, got None"),
        ({"share": True}, "share must be float, got True"),
        ({"share": "0.5"}, "share must be float, got '0.5'"),
        ({"flag": 1}, "flag must be bool, got 1"),
        ({"flag": None}, "flag must be bool, got None"),
        ({"optional": False}, "optional must be int, got False"),
        ({"optional": "many"}, "optional must be int, got 'many'"),
        ({"path": 3}, "path must be Path, got 3"),
        ({"path": None}, "path must be Path, got None"),
        ({"names": "ab"}, "names must be a list, got 'ab'"),
        ({"names": {"a": 1}}, "names must be a list, got {'a': 1}"),
        ({"names": ["a", 1]}, "names must be str, got 1"),
        ({"numbers": [True]}, "numbers must be int, got True"),
        ({"lists": ["ab"]}, "lists must be a list, got 'ab'"),
        ({"lists": [[1]]}, "lists must be str, got 1"),
    ],
    ids=str,
)
def test_a_value_of_another_type_is_refused_with_what_was_expected(settings, message):
    with pytest.raises(ValueError) as refused:
        example(**settings)
    assert str(refused.value) == message


def test_a_long_value_is_cut_short_in_the_message():
    with pytest.raises(ValueError) as refused:
        example(count="9" * 1000)
    assert len(str(refused.value)) < 120


# Ranges


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "another"}, "name must be one of one, other, got 'another'"),
        ({"count": 0}, "count must be at least 1 and below 10, got 0"),
        ({"count": 10}, "count must be at least 1 and below 10, got 10"),
        ({"share": 0}, "share must be above 0 and at most 1, got 0.0"),
        ({"share": 1.5}, "share must be above 0 and at most 1, got 1.5"),
        ({"share": float("nan")}, "share must be finite, got nan"),
        ({"plain": float("inf")}, "plain must be finite, got inf"),
        ({"plain": float("-inf")}, "plain must be finite, got -inf"),
        ({"optional": 1}, "optional must be at least 2, got 1"),
        ({"numbers": [1, -1]}, "numbers must be at least 0, got -1"),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused_with_the_range(settings, message):
    with pytest.raises(ValueError) as refused:
        example(**settings)
    assert str(refused.value) == message


def test_the_ends_of_a_range_are_in_it_or_not_as_they_say():
    assert (example(count=1).count, example(count=9).count) == (1, 9)
    assert example(share=1).share == 1.0
    assert example(share=1e-300).share == 1e-300


def test_replacing_a_field_checks_it():
    with pytest.raises(ValueError, match="count must be at least 1"):
        dataclasses.replace(example(), count=0)


# What is known of fields


def test_what_is_known_of_a_field_is_that_of_the_field():
    known = settings_of(Example)
    assert list(known) == [field.name for field in dataclasses.fields(Example)]
    assert known["name"] == Setting(help="What it is called.", choices=("one", "other"))
    assert known["plain"] == Setting()
    assert settings_of(example()) == known


def test_settings_are_split_into_what_decides_and_what_does_not():
    decisive, others = split_settings(example(path="there"))
    assert others == {"path": "there", "place": None}
    assert decisive == {
        **{"name": "one", "count": 1, "share": 0.5, "flag": False, "optional": None, "names": [], "numbers": [0]},
        **{"lists": [], "plain": 2.0},
    }


# To plain values and back


def test_plain_values_are_dicts_lists_texts_and_numbers():
    value = {1: (Path("a"), example(names=("a",), place=Path("b"))), "none": None}
    plain = to_plain(value)
    assert plain["1"][0] == "a"
    assert plain["1"][1]["names"] == ["a"]
    assert plain["1"][1]["place"] == "b"
    assert plain["none"] is None
    assert json.loads(json.dumps(plain)) == plain


def test_a_class_is_no_configuration():
    assert to_plain(Example) is Example


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(ValueError) as refused:
        from_plain(Example, {"name": "one", "cuont": 1})
    names = ", ".join(field.name for field in dataclasses.fields(Example))
    assert str(refused.value) == f"no setting is called 'cuont'; there are {names}"


def test_a_missing_name_is_refused_and_a_default_taken():
    with pytest.raises(ValueError, match="the setting name is missing"):
        from_plain(Example, {"count": 1})
    assert from_plain(Example, {"name": "other"}) == example(name="other")


CONFIGURATIONS = [
    PatchCoreConfig(backbones=("a", "b"), layers=(("1", "2"), ("3",))),
    PatchCoreConfig(
        **{"backbones": ["a"], "layers": [["1"]], "num_nn": 5, "precision": "bfloat16", "weights": "random"},
        **{"faiss_on_gpu": True, "faiss_num_workers": 2, "weights_dir": Path("w"), "sampler": "random", "fraction": 1},
    ),
    PatchCoreConfig(backbones=("a",), layers=(("1",),), sampler=None, fraction=None),
    PatchCoreConfig(backbones=("a",), layers=(("1",),), sampler="identity"),
    FastFlowConfig(),
    FastFlowConfig(backbone="wide_resnet50_2", steps=3, tile=64, tile_stride=32, noise=0, class_specific=True),
    FastFlowConfig(backbone="cait_m48_448", layers=("blocks.1",), weights="random", checkpoint_seconds=0),
    RunConfig(results_path=Path("r")),
    RunConfig(results_path="r", gpu=[1, 0], seed=2**63 - 1, feature_cache="c", feature_cache_gib=1, save_model=True),
    DatasetConfig(name="mpdd", path="d", categories=["a", "b"], resize=256, imagesize=224),
    DatasetConfig(
        **{"name": "mvtec", "path": Path("d"), "categories": ("a",), "resize": 64, "imagesize": 64, "augment": True},
        **{"batch_size": 1, "num_workers": 0, "train_val_split": 0.1, "reduced_decoding": True},
    ),
    Geometry(resize=256, imagesize=224),
]


@pytest.mark.parametrize("config", CONFIGURATIONS, ids=lambda config: type(config).__name__)
def test_configurations_come_back_from_json(config):
    plain = json.loads(json.dumps(to_plain(config)))
    assert list(plain) == [field.name for field in dataclasses.fields(config)]
    assert from_plain(type(config), plain) == config


@pytest.mark.parametrize("config", CONFIGURATIONS, ids=lambda config: type(config).__name__)
def test_configurations_refuse_names_that_they_do_not_have(config):
    with pytest.raises(ValueError, match="no setting is called 'surprise'"):
        from_plain(type(config), {**to_plain(config), "surprise": 1})


# What the configurations refuse beside the ranges of their fields

RUN = {"results_path": "r"}
IMAGES = {"name": "mpdd", "path": "d", "categories": ("a",), "resize": 64, "imagesize": 64}
BANK = {"backbones": ("a",), "layers": (("1",),)}


@pytest.mark.parametrize(
    ("config_class", "settings", "message"),
    [
        (RunConfig, {**RUN, "seed": -1}, "seed must be at least 0"),
        (RunConfig, {**RUN, "seed": 2**63}, "seed must be"),
        (RunConfig, {**RUN, "gpu": [0, 0]}, "every --gpu once, got 0 0"),
        (RunConfig, {**RUN, "feature_cache_gib": 3}, "--feature_cache_gib has no effect without --feature_cache"),
        (RunConfig, {**RUN, "log_group": "a/b"}, "--log_group must be the name of a folder, got 'a/b'"),
        (RunConfig, {**RUN, "log_project": ".."}, "--log_project must be the name of a folder, got '..'"),
        (RunConfig, {**RUN, "log_project": ""}, "--log_project must be the name of a folder, got ''"),
        (DatasetConfig, {**IMAGES, "name": "mppd"}, "name must be one of mpdd, mvtec, folder, got 'mppd'"),
        (DatasetConfig, {**IMAGES, "categories": ()}, "at least one category is needed: -d NAME"),
        (DatasetConfig, {**IMAGES, "categories": ("b", "a", "b")}, "every category once, got more of b"),
        (DatasetConfig, {**IMAGES, "imagesize": 65}, "--imagesize 65 must be at most --resize 64"),
        (DatasetConfig, {**IMAGES, "train_val_split": 0}, "train_val_split must be above 0 and at most 1, got 0.0"),
        (DatasetConfig, {**IMAGES, "num_workers": -1}, "num_workers must be at least 0, got -1"),
        (PatchCoreConfig, {**BANK, "backbones": (), "layers": ()}, "at least one backbone is needed: -b NAME"),
        (PatchCoreConfig, {**BANK, "layers": ((),)}, "every backbone needs a layer"),
        (PatchCoreConfig, {**BANK, "layers": (("1",), ("2",))}, "every backbone needs a layer"),
        (PatchCoreConfig, {**BANK, "layers": ("layer2",)}, "layers must be a list, got 'layer2'"),
        (PatchCoreConfig, {**BANK, "fraction": 0}, "fraction must be above 0 and at most 1, got 0.0"),
        (PatchCoreConfig, {**BANK, "fraction": None}, "both or neither must be None"),
        (PatchCoreConfig, {**BANK, "sampler": "approx_greedy"}, "sampler must be one of approx_greedy_coreset"),
        (PatchCoreConfig, {**BANK, "precision": "auto"}, "precision must be one of float32, bfloat16, got 'auto'"),
        (FastFlowConfig, {"tile_stride": 3}, "tile_stride 3 needs a tile size: --tile"),
        (FastFlowConfig, {"tile": 16, "tile_stride": 17}, "tile_stride must be in [1, 16], the tile size"),
        (FastFlowConfig, {"brightness_jitter": 1}, "brightness_jitter must be at least 0 and below 1, got 1.0"),
        (FastFlowConfig, {"kernels": "5x5"}, "kernels must be one of 3x3, 3x3-1x1, got '5x5'"),
        (FastFlowConfig, {"top_share": float("nan")}, "top_share must be finite, got nan"),
        (Geometry, {"resize": 64, "imagesize": 65}, "imagesize"),
        (Geometry, {"resize": 0, "imagesize": 0}, "must be"),
    ],
    ids=str,
)
def test_configurations_refuse_what_does_not_go_together(config_class, settings, message):
    with pytest.raises(ValueError) as refused:
        from_plain(config_class, settings)
    assert message in str(refused.value)


def test_what_is_left_to_the_backbone_is_that_of_its_preset():
    assert FastFlowConfig(backbone="resnet18") == FastFlowConfig(steps=8, kernels="3x3", hidden_ratio=1.0)
    deit = FastFlowConfig(backbone="timm/deit_base_distilled_patch16_224", steps=4)
    assert (deit.steps, deit.kernels, deit.hidden_ratio, deit.layers) == (4, "3x3-1x1", 0.16, ("blocks.7",))


def test_identity_keeps_every_patch():
    assert PatchCoreConfig(**BANK, sampler="identity", fraction=0.1).fraction == 1.0


@pytest.mark.parametrize("config_class", [RunConfig, DatasetConfig, *(method.config for method in METHODS.values())])
def test_every_setting_is_keyword_only_and_says_what_it_does(config_class):
    for field in dataclasses.fields(config_class):
        known = settings_of(config_class)[field.name]
        assert field.kw_only
        assert known.help or known.argument or not known.option, field.name
