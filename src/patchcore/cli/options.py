"""Options made from the fields of a configuration."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from patchcore.settings import Setting, settings_of, types_of


def parameters(
    config_class: type, names: Iterable[str] | None = None, *, shown: Mapping[str, str] | None = None
) -> list[click.Parameter]:
    """The arguments and options of the fields `names`, of all where there are none.

    Args:
        shown: field -> what its help calls the default, which is decided later: the option is None if not given.
    """
    shown = dict(shown or {})
    known, kinds = settings_of(config_class), types_of(config_class)
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    chosen = [name for name in (names or fields) if known[name].option]
    made: list[click.Parameter] = []
    for name in sorted(chosen, key=lambda name: not known[name].argument):
        kind, several = _item_type(kinds[name])
        if known[name].argument:
            made.append(_argument(name, known[name], kind, fields[name].default))
            continue
        default = fields[name].default
        if known[name].shown is not None:
            shown.setdefault(name, known[name].shown or "")
        made.append(_option(name, known[name], kind, several, default, shown.get(name)))
    return made


def names_stated(ctx: click.Context) -> frozenset[str]:
    """The names of the parameters that stand on the command line."""
    return frozenset(name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE)


class _OptionalArgument(click.Argument):
    """An argument that may be left out: the word that begins the next stage is not taken for it."""

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        stages = getattr(ctx.parent and ctx.parent.command, "commands", {})
        if opts.get(self.name) in stages:
            opts, args = dict(opts), [opts[self.name], *args]
            del opts[self.name]
        return super().handle_parse_result(ctx, opts, args)


def _argument(name: str, known: Setting, kind: type, default: Any) -> click.Argument:
    if default is dataclasses.MISSING:
        return click.Argument([name], type=_click_type(kind, known))
    return _OptionalArgument([name], type=_click_type(kind, known), default=default, required=False)


def _option(name: str, known: Setting, kind: type, several: bool, default: Any, shown: str | None) -> click.Option:
    flags = known.flags or (f"--{name}",)
    text = f"{known.help}  [${known.variable}]" if known.variable else known.help
    settings: dict[str, Any] = {"help": text, "envvar": known.variable, "multiple": several}
    if kind is bool:
        settings |= {"is_flag": True}
    else:
        settings |= {"type": _click_type(kind, known)}
    required = default is dataclasses.MISSING and shown is None
    if required:
        settings["required"] = True
    elif shown is not None:
        settings |= {"default": () if several else None, "help": f"{text}  [default: {shown}]"}
    else:
        settings |= {"default": default, "show_default": kind is not bool and default is not None}
    return click.Option([*flags, name], **settings)


def _item_type(kind: Any) -> tuple[type, bool]:
    """The plain type of a field, and whether it takes several values."""
    options = [option for option in typing.get_args(kind) if option not in (type(None), Ellipsis)]
    if typing.get_origin(kind) is tuple:
        return _item_type(options[0])[0], True
    return (options[0] if options else kind), False


def _click_type(kind: type, known: Setting) -> click.ParamType:
    if known.choices:
        return click.Choice(known.choices)
    if kind is Path:
        return click.Path(file_okay=False, path_type=Path)
    limits: dict[str, Any] = {
        "min": known.above if known.above is not None else known.at_least,
        "max": known.below if known.below is not None else known.at_most,
        "min_open": known.above is not None,
        "max_open": known.below is not None,
    }
    if kind is int:
        return click.IntRange(**limits)
    return click.FloatRange(**limits) if kind is float else click.STRING
