"""Settings as frozen dataclasses, each spelt once: its type, default, range, help and option.

A field made with `setting` is all that is known of it. `check` holds a configuration to it, the command line makes
its options from it, and stored models are written and read by it.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What is known of a field beside its name, type and default.

    Attributes:
        help: what it does, for the command line.
        flags: its options; `--NAME` where there are none.
        argument: given by its place on the command line rather than by an option.
        choices: the values that a text may have.
        at_least, above, at_most, below: the range of a number.
        shown: what the help calls its default, where that is chosen later or has a name.
        variable: the environment variable that it may come from.
        decides: whether results depend on it; the others say where and how fast they are computed.
        on_load: whether it may be chosen anew for a stored model.
        by_category: whether a file may set it for each category.
        option: whether the command line offers it.
    """

    help: str = ""
    flags: tuple[str, ...] = ()
    argument: bool = False
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    shown: str | None = None
    variable: str | None = None
    decides: bool = True
    on_load: bool = False
    by_category: bool = False
    option: bool = True


def setting(default: Any = dataclasses.MISSING, help: str = "", **known: Any) -> Any:
    """A field of a configuration; `known` are the attributes of `Setting`."""
    return dataclasses.field(default=default, metadata={"setting": Setting(help=help, **known)})


def settings_of(config: Any) -> dict[str, Setting]:
    """Field name -> what is known of it, of a configuration or its class."""
    return {field.name: field.metadata.get("setting", Setting()) for field in dataclasses.fields(config)}


def types_of(config_class: type) -> dict[str, Any]:
    """Field name -> type, resolved."""
    return typing.get_type_hints(config_class)


def check(config: Any) -> None:
    """Hold a configuration to the types and ranges of its fields; to be called from `__post_init__`.

    Lists become tuples, whole numbers floats and texts paths where a field wants those.

    Raises:
        ValueError: names the field, what was expected and what came.
    """
    for name, known in settings_of(config).items():
        value = _fitted(name, getattr(config, name), types_of(type(config))[name])
        object.__setattr__(config, name, value)
        for item in value if isinstance(value, tuple) else (value,):
            if item is not None:
                _check_range(name, item, known)


def _fitted(name: str, value: Any, kind: Any) -> Any:
    """The value as its field's type."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        options = typing.get_args(kind)
        if value is None and type(None) in options:
            return None
        return _fitted(name, value, next(option for option in options if option is not type(None)))
    if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_fitted(name, item, typing.get_args(kind)[0]) for item in value)
    if type(value).__module__ == "numpy" and hasattr(value, "item"):
        value = value.item()  # a number of numpy's
    if type(value) is int and abs(value) >= 2**63:
        raise ValueError(f"{name} must be below 2**63, got {value!r:.80}")
    if kind is float and type(value) is int:
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is Path and isinstance(value, Path):
        return value
    if type(value) is not kind:
        expected = getattr(kind, "__name__", str(kind)) if typing.get_origin(kind) is None else "a list"
        raise ValueError(f"{name} must be {expected}, got {value!r:.80}")
    return value


def _check_range(name: str, value: Any, known: Setting) -> None:
    if known.choices and value not in known.choices:
        raise ValueError(f"{name} must be one of {', '.join(known.choices)}, got {value!r:.80}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    bounds = (
        (known.at_least, "at least", lambda bound: value >= bound),
        (known.above, "above", lambda bound: value > bound),
        (known.at_most, "at most", lambda bound: value <= bound),
        (known.below, "below", lambda bound: value < bound),
    )
    if not all(holds(bound) for bound, _, holds in bounds if bound is not None):
        wanted = " and ".join(f"{word} {bound:g}" for bound, word, _ in bounds if bound is not None)
        raise ValueError(f"{name} must be {wanted}, got {value}")


def to_plain(value: Any) -> Any:
    """Turn a configuration into dicts, lists, strings and numbers, as YAML and JSON hold them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def from_plain(config_class: type[Config], values: Mapping[str, Any]) -> Config:
    """Make a configuration, which checks itself, from settings by name, as `to_plain` gives them.

    Raises:
        ValueError: a name that is no setting, one that is missing, or a value that does not fit.
    """
    fields = {field.name: field for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    unknown = [name for name in values if name not in fields]
    if unknown:
        raise ValueError(f"no setting is called {unknown[0]!r:.80}; there are {', '.join(fields)}")
    missing = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in values]
    if missing:
        raise ValueError(f"the setting {missing[0]} is missing")
    return config_class(**values)


def split_settings(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plain settings that decide results, and those that say where and how fast these are computed."""
    known, plain = settings_of(config), to_plain(config)
    decisive = {name: value for name, value in plain.items() if known[name].decides}
    return decisive, {name: value for name, value in plain.items() if not known[name].decides}
