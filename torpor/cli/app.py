"""Puts the commands together. Called by the console script `torpor`.

A command's module is imported when it is asked for: all of them together take two seconds, most of
it for the Kubernetes client, which `torpor submit` has no use for. Must not know what a command
does.
"""

import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Final

import typer

from torpor.cli.errors import UserError
from torpor.cli.view.screen import stderr
from torpor.local.errors import StackError

_COMMANDS: Final = {
    "up": "up",
    "demo": "demo",
    "submit": "jobs",
    "watch": "jobs",
    "jobs": "jobs:list_jobs",
    "cancel": "jobs",
    "status": "status",
    "dead-letters": "dead_letters",
    "keys": "keys",
    "top": "top",
    "report": "report",
    "load": "load",
    "simulate": "simulate",
    "plan": "simulate",
    "black-friday": "simulate",
    "render": "deploy",
    "doctor": "deploy",
    "deploy": "deploy",
    "logs": "deploy",
    "scale": "deploy",
    "promote": "deploy",
    "rollback": "deploy",
    "delete": "deploy",
}
"""Where each command is, in the order of the help: its module here, and its function where that has
another name.
"""


def assembled(asked: str = "") -> typer.Typer:
    """The application with the command that was asked for; with all of them when that is none."""
    app = typer.Typer(
        name="torpor",
        help="Serverless, scale-to-zero inference for slow-thinking language models.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(_nothing)  # else an application of one command would take its name for a prompt
    for name in (asked,) if asked in _COMMANDS else _COMMANDS:
        module, _, function = _COMMANDS[name].partition(":")
        command = getattr(import_module(f"torpor.cli.{module}"), function or _identifier(name))
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name=name)(command)
    return app


def main() -> None:
    """Run a command; what a person can mend is one clear line, not a stack trace."""
    status = 0
    try:
        assembled(next(iter(sys.argv[1:]), ""))()
    except* (UserError, StackError, OSError) as group:
        for error in _flat(group):
            stderr.print(f"torpor: {_words(error)}", style="red")
        status = 1
    except* KeyboardInterrupt:
        status = 130
    if status:  # not above: an exit inside `except*` would itself be wrapped and shown
        sys.exit(status)


def _nothing() -> None:
    """No flag stands before a command."""


def _identifier(name: str) -> str:
    return name.replace("-", "_")


def _words(error: BaseException) -> str:
    """The error for a person; the system's own (a full disk, a folder that may not be written) by
    name and place.
    """
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


def _flat(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """The errors in a group of groups: each task group on the way up adds a layer."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _flat(error)
        else:
            yield error
