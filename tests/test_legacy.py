"""The original's pickled parameters: plain values come out, nothing is ever run."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from patchcore.methods.patchcore.legacy import MAX_BYTES, read_original_params
from patchcore.types import PatchCoreError

PARAMS = {
    "backbone.name": "wideresnet50",
    "layers_to_extract_from": ["layer2", "layer3"],
    "input_shape": (3, 224, 224),
    "pretrain_embed_dimension": 1024,
    "target_embed_dimension": 384,
    "patchsize": 5,
    "patchstride": 1,
    "anomaly_scorer_num_nn": 3,
}


class Runs:
    """What a hostile pickle looks like: unpickling it calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "patchcore_params.pkl"


def refusal(path: Path) -> str:
    with pytest.raises(PatchCoreError) as error:
        read_original_params(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("layers", [["layer2", "layer3"], ("layer2", "layer3")])
def test_plain_parameters_come_out_of_every_protocol(path, protocol, layers):
    path.write_bytes(pickle.dumps({**PARAMS, "layers_to_extract_from": layers}, protocol=protocol))
    assert read_original_params(path) == {
        "backbone": "wideresnet50",
        "layers": ("layer2", "layer3"),
        "imagesize": 224,
        "pretrain_embed_dimension": 1024,
        "target_embed_dimension": 384,
        "patchsize": 5,
        "num_nn": 3,
    }


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("place", ["value", "whole"])
def test_a_malicious_pickle_is_refused_and_not_run(path, tmp_path, protocol, place):
    trace = tmp_path / "was run"
    evil = Runs(os.system, f"touch '{trace}'")
    content = {**PARAMS, "patchsize": evil} if place == "value" else evil
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    assert "it holds an object" in refusal(path)
    assert not trace.exists()
    pickle.loads(path.read_bytes())  # the pickle is a working one
    assert trace.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'true'\ntR.",  # GLOBAL, REDUCE
        b"(ios\nsystem\n.",  # INST
        b"(cos\nsystem\no.",  # OBJ
        b"\x80\x02cos\nsystem\n)\x81.",  # NEWOBJ
        b"\x80\x02\x82\x01.",  # EXT1, an object by number
        b"Psomething\n.",  # PERSID
        b"\x80\x02K\x01Q.",  # BINPERSID
        b"\x80\x02}}b.",  # BUILD
        pickle.dumps(b"bytes"),
        pickle.dumps(bytearray(b"bytes")),
        pickle.dumps({1, 2}),
    ],
)
def test_only_plain_values_are_admitted(path, data):
    path.write_bytes(data)
    assert "only plain containers, strings and numbers" in refusal(path)


def test_the_unpickler_itself_looks_up_no_name(monkeypatch, path):
    monkeypatch.setattr("patchcore.methods.patchcore.legacy.pickletools.genops", lambda data: [])
    path.write_bytes(pickle.dumps(os.system))
    assert "it names posix.system" in refusal(path) or os.name != "posix"
    path.write_bytes(b"Psomething\n.")
    assert "an object outside" in refusal(path)


@pytest.mark.parametrize("value", [np.int64(3), np.float32(3), np.array([3]), OrderedDict(a=1), Path("a")])
def test_numpy_and_other_objects_are_refused_with_the_reason(path, value):
    path.write_bytes(pickle.dumps({**PARAMS, "patchsize": value}))
    assert "it holds an object" in refusal(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no pickle at all",
        pickle.dumps(PARAMS)[:-20],
        b"\x80\x04.",  # STOP with nothing built
        b"\x80\x04\x94.",  # remembers nothing
        b"\x80\x04}a.",  # appends to nothing
        b"\x80\x04}]K\x01s.",  # a list as key
        b"\x80\x02j\x00\x00\x00\x01.",  # what was never remembered
        b"\x80\xff.",  # a protocol to come
        b"L" + b"9" * 6000 + b"L\n.",  # more digits than Python converts
    ],
)
def test_damage_is_told_in_one_line(path, data):
    path.write_bytes(data)
    assert "expected the original's pickled parameters" in refusal(path)


def test_sizes_are_bounded(path):
    path.write_bytes(pickle.dumps({**PARAMS, "backbone.name": "x" * MAX_BYTES}))
    assert f"larger than {MAX_BYTES} bytes" in refusal(path)
    path.write_bytes(b"\x80\x02Nr\xff\xff\xff\xff.")  # would allot room for four billion values
    assert "LONG_BINPUT 4294967295" in refusal(path)
    path.write_bytes(b"\x80\x04})" + b"\x85" * (MAX_BYTES - 10) + b"Ns.")  # a key nested thousands of tuples deep
    assert "expected the original's pickled parameters" in refusal(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patchstride": 2}, "patchstride must be 1, got 2"),
        ({"input_shape": (3, 224, 256)}, r"input_shape must be (3, S, S), got (3, 224, 256)"),
        ({"input_shape": (1, 224, 224)}, "input_shape must be (3, S, S), got (1, 224, 224)"),
        ({"input_shape": (3, 0, 0)}, "input_shape must be a positive whole number, got 0"),
        ({"input_shape": 224}, "input_shape must be (3, S, S), got 224"),
        ({"backbone.name": 5}, "backbone.name must be a name, got 5"),
        ({"layers_to_extract_from": []}, "layers_to_extract_from must be a list of names, got ()"),
        ({"layers_to_extract_from": "layer2"}, "layers_to_extract_from must be a list of names, got 'layer2'"),
        ({"layers_to_extract_from": [[[]]]}, "layers_to_extract_from must be a list of names, got (...)"),
        ({"patchsize": 3.0}, "patchsize must be a positive whole number, got 3.0"),
        ({"patchsize": True}, "patchsize must be a positive whole number, got True"),
        ({"patchsize": 10**3000}, "patchsize must be a positive whole number, got a value of type int"),
        ({"anomaly_scorer_num_nn": None}, "anomaly_scorer_num_nn must be a positive whole number, got None"),
        (
            {"target_embed_dimension": {}},
            "target_embed_dimension must be a positive whole number, got a value of type dict",
        ),
        ({"another": 1}, "it does not hold exactly"),
    ],
)
def test_wrong_values_are_named(path, change, message):
    path.write_bytes(pickle.dumps({**PARAMS, **change}))
    assert message in refusal(path)


def test_a_missing_value_and_a_missing_file_are_told(path):
    path.write_bytes(pickle.dumps({key: value for key, value in PARAMS.items() if key != "patchsize"}))
    assert "it does not hold exactly" in refusal(path)
    path.write_bytes(pickle.dumps([1]))
    assert "it does not hold exactly" in refusal(path)
    path.unlink()
    assert "cannot read the model" in refusal(path)
