"""The pickled parameters that the original implementation left beside its memory banks.

A pickle is a program, and `pickle.load` runs it. Here only the instructions that build numbers, strings, lists,
tuples and dicts are let through: all of a file's are looked at before the first is followed, and the unpickler
behind them looks up no name. The original's files need no others.
"""

from __future__ import annotations

import pickle
import pickletools
from io import BytesIO
from pathlib import Path
from typing import Any

from patchcore.types import PatchCoreError

PARAMS_FILE = "patchcore_params.pkl"
MAX_BYTES = 2**14  # real files have some 300; small enough that no nesting within can exhaust the stack

_PLAIN = {  # the names of pickletools
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK"),
    *("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
    *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("FLOAT", "BINFLOAT", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
}
_DAMAGE = (pickle.UnpicklingError, ValueError, TypeError, LookupError, AttributeError, EOFError, OverflowError)


_DIMENSIONS = ("pretrain_embed_dimension", "target_embed_dimension", "patchsize")
_KEYS = {
    *("backbone.name", "layers_to_extract_from", "input_shape", "patchstride", "anomaly_scorer_num_nn"),
    *_DIMENSIONS,
}


def read_original_params(path: Path) -> dict[str, Any]:
    """Read a `patchcore_params.pkl` without running anything from it.

    Returns:
        Settings of one member by this toolkit's names: `imagesize` is the side of the network's input (the size that
        images were resized to before is not in the file), `num_nn` what the file says, though the original scored with
        one neighbour whatever that is.

    Raises:
        PatchCoreError: the file cannot be read, is too large or damaged, holds anything but plain containers, strings
            and numbers (NumPy's included), or does not hold the parameters of a PatchCore model.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise PatchCoreError(f"{path}: cannot read the model: {error.strerror}") from error
    try:
        return _params(_unpickle(data))
    except _DAMAGE as error:
        raise PatchCoreError(f"{path}: expected the original's pickled parameters: {error}") from error


def _unpickle(data: bytes) -> Any:
    if len(data) > MAX_BYTES:
        raise ValueError(f"the file is larger than {MAX_BYTES} bytes")
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name not in _PLAIN:
            named = f" {' '.join(argument.split())}"[:80] if isinstance(argument, str) else ""
            raise ValueError(
                f"only plain containers, strings and numbers are read, and it holds an object ({opcode.name}{named});"
                " nothing of it was run"
            )
        if "PUT" in opcode.name and int(argument or 0) >= len(data):  # the unpickler allots room for that many values
            raise ValueError(f"{opcode.name} {argument} in a file of {len(data)} bytes")
    return _PlainUnpickler(BytesIO(data)).load()


class _PlainUnpickler(pickle.Unpickler):
    """The second lock: none of the instructions let through asks for these."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to an object outside of it")


def _params(stored: Any) -> dict[str, Any]:
    if not isinstance(stored, dict) or stored.keys() != _KEYS:
        raise ValueError(f"it does not hold exactly {', '.join(sorted(_KEYS))}")
    if stored["patchstride"] != 1:
        raise ValueError(f"patchstride must be 1, got {_shown(stored['patchstride'])}")
    layers, shape = stored["layers_to_extract_from"], stored["input_shape"]
    if not isinstance(layers, list | tuple) or not layers or not all(isinstance(layer, str) for layer in layers):
        raise ValueError(f"layers_to_extract_from must be a list of names, got {_shown(layers)}")
    if not isinstance(stored["backbone.name"], str):
        raise ValueError(f"backbone.name must be a name, got {_shown(stored['backbone.name'])}")
    plain = isinstance(shape, list | tuple) and len(shape) == 3 and all(type(side) is int for side in shape)
    if not plain or shape[0] != 3 or shape[1] != shape[2]:
        raise ValueError(f"input_shape must be (3, S, S), got {_shown(shape)}")
    return {
        "backbone": stored["backbone.name"],
        "layers": tuple(layers),
        "imagesize": _positive("input_shape", shape[1]),
        "num_nn": _positive("anomaly_scorer_num_nn", stored["anomaly_scorer_num_nn"]),
        **{name: _positive(name, stored[name]) for name in _DIMENSIONS},
    }


def _positive(name: str, value: Any) -> int:
    if type(value) is not int or not 0 < value < 2**31:
        raise ValueError(f"{name} must be a positive whole number, got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    """A value for a message; what is deep or long, or shared within itself, is told by its kind alone."""
    if isinstance(value, list | tuple) and len(value) <= 4:
        return f"({', '.join(_shown(item) if isinstance(item, int | str) else '...' for item in value)})"
    simple = value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**63)
    return (
        repr(value)
        if simple or (isinstance(value, str) and len(value) < 80)
        else f"a value of type {type(value).__name__}"
    )
