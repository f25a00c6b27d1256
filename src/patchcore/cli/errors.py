"""Commands that end with one line where others end with a traceback."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from patchcore import __version__
from patchcore.types import PatchCoreError

HELP = {"help_option_names": ["-h", "--help"]}

Made = TypeVar("Made")


class OneLineCommand(click.Command):
    """A command that ends with one line and exit code 1 (2 for usage) instead of a traceback, unless `--debug`."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{**settings, "context_settings": HELP})
        click.version_option(__version__, prog_name="patchcore")(self)

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        arguments = list(args or sys.argv[1:])
        debug = "--debug" in arguments
        try:
            code = super().main(arguments, prog_name, **{**extra, "standalone_mode": False})
        except click.Abort:
            click.echo("interrupted", err=True)
            code = 130
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            hint = f" (see {context.command_path} --help)" if context else ""
            click.echo(f"error: {_one_line(_misplaced(error) or error.format_message())}{hint}", err=True)
            code = error.exit_code
        except Exception as error:  # the last place where an error can still be told in one line
            if debug:
                traceback.print_exc()
            known = isinstance(error, PatchCoreError)
            hint = "" if known or debug else " (--debug shows where)"
            click.echo(f"error: {'' if known else f'{type(error).__name__}: '}{_one_line(str(error))}{hint}", err=True)
            code = 1
        sys.exit(code if isinstance(code, int) else 0)


class OneLineGroup(OneLineCommand, click.Group):
    """A group of stages that ends like a `OneLineCommand`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] in self.commands and {"-h", "--help"} & set(args):
            args.insert(0, "RESULTS_PATH")  # the help of a stage needs no results folder
        return super().parse_args(ctx, args)


def run_as_process(command: OneLineCommand) -> NoReturn:
    """Run a command as a process of its own, and leave at once when it has ended.

    Taking torch apart at the interpreter's end takes half a second, of no use to anybody: all files are closed by then.
    """
    try:
        command(prog_name=Path(sys.argv[0]).name)
    except SystemExit as ended:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # who read it has gone
                stream.flush()
        os._exit(ended.code if isinstance(ended.code, int) else 0)
    raise AssertionError("a OneLineCommand ends with SystemExit")


def as_usage_error(make: Callable[..., Made], *args: Any, **settings: Any) -> Made:
    """What `make` returns; a ValueError that it raises is a wrong use of the command line."""
    try:
        return make(*args, **settings)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _misplaced(error: click.ClickException) -> str | None:
    """What to say of an option that stands behind the wrong stage; None for any other error."""
    if not isinstance(error, click.NoSuchOption) or error.ctx is None:
        return None
    group = (error.ctx.parent or error.ctx).command
    stages = dict(getattr(group, "commands", {}))
    for name, command in stages.items():
        if command is not error.ctx.command and _has_option(command, error.option_name):
            return f"{error.option_name} is an option of the stage {name}: put it behind that word"
    if group is not error.ctx.command and _has_option(group, error.option_name):
        return f"{error.option_name} is an option of the run: put it in front of the results folder"
    return None


def _has_option(command: click.Command, name: str) -> bool:
    return any(name in parameter.opts for parameter in command.params if not getattr(parameter, "hidden", False))


def _one_line(text: str) -> str:
    return " ".join(text.split())
