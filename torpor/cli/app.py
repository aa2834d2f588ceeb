"""Builds the command line application. Called by the console script `torpor`.

A command's module is imported only when that command is called: all of them together take two seconds, mostly for
the Kubernetes client. Exit codes of every command: 0 done, 1 failed, 2 usage error, 130 interrupted
(docs/reference/cli.md). Must not know the commands.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Final

import typer

from torpor.cli.catalog import COMMANDS, Entry, epilog
from torpor.cli.errors import UsageError, UserError

_FAILED: Final = 1
_WRONG_USAGE: Final = 2
_INTERRUPTED: Final = 130
_MISSING: Final = "this command needs {name}, which is not installed: {how}"
_HOW: Final = {
    "kubernetes": "pip install 'torpor[deploy]'",
    "grpc": "pip install 'torpor[scaler]'",
}


def assembled(asked: str = "") -> typer.Typer:
    """The application with the called command, and only the names of the others; with all of them when none is
    called.
    """
    app = typer.Typer(
        name="torpor",
        help="Serverless, scale-to-zero inference for slow-thinking language models.",
        epilog=epilog('torpor up --detach && torpor submit --wait "Why is the sky blue?"'),
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for name, entry in COMMANDS.items():
        command = _loaded(entry) if asked in ("", name) else _named_only(entry)
        group, foot = entry.group, epilog(*entry.examples)
        if isinstance(command, typer.Typer):
            app.add_typer(
                command, name=name, help=entry.summary, epilog=foot, rich_help_panel=group
            )
        else:
            app.command(name=name, epilog=foot, rich_help_panel=group)(command)
    return app


def main() -> None:
    """Run a command; an expected error is one line, not a stack trace."""
    status = 0
    try:
        status = _run(_asked(sys.argv, os.environ))
    except* KeyboardInterrupt:
        status = _INTERRUPTED
    except* Exception as group:
        for error in _flat(group):
            status = max(status, _report_error(error))
    if status:  # not inside `except*`, where the exit would be wrapped in a group
        sys.exit(status)


def _run(asked: str) -> int:
    """The exit code of a command that returned normally."""
    command = typer.main.get_command(assembled(asked or "-"))
    # Not imported for a command that logs nothing: it takes a tenth of a second.
    with _logs_on_standard_error() if "structlog" in sys.modules else nullcontext():
        ended = command.main(prog_name="torpor", standalone_mode=False)
    return ended if isinstance(ended, int) else 0


@contextmanager
def _logs_on_standard_error() -> Iterator[None]:
    """What a command prints may be read by a script: log lines go to standard error, and only errors. Commands that
    serve set up logs of their own.
    """
    import structlog

    before = structlog.get_config()
    structlog.configure(
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
    )
    try:
        yield
    finally:
        structlog.configure(**before)


def _report_error(error: BaseException) -> int:
    """Print an error in one line; gives the exit code. A bug keeps its stack trace."""
    from pydantic import ValidationError

    match error:
        case UsageError():
            return _say(str(error), _WRONG_USAGE)
        case _ if hasattr(error, "format_message"):  # typer's own: it knows which command it was
            return _say(_usage(error), _WRONG_USAGE)
        case _ if type(error).__name__ == "Abort":
            return _INTERRUPTED
        case ModuleNotFoundError() if (name := (error.name or "").partition(".")[0]) in _HOW:
            return _say(_MISSING.format(name=name, how=_HOW[name]), _FAILED)
        case ValidationError():
            wrong = (f"TORPOR_{e['loc'][0]}".upper() + f": {e['msg']}" for e in error.errors())
            return _say("; ".join(wrong), _WRONG_USAGE)
        case _ if isinstance(error, (UserError, OSError)) or _has_user_message(error):
            return _say(_words(error), _FAILED)
    raise error


def _has_user_message(error: BaseException) -> bool:
    """True for an error whose message is meant for the user."""
    from torpor.client import TorporError
    from torpor.local.errors import StackError

    return isinstance(error, (StackError, TorporError))


def _say(text: str, status: int) -> int:
    from torpor.cli.view.screen import stderr

    stderr.print(f"torpor: {text.strip()}", style="red")
    return status


def _usage(error: Any) -> str:
    """Typer's message in one line, with where to read more."""
    context = getattr(error, "ctx", None)
    if not (text := " ".join(error.format_message().split())):  # no arguments: it shows the help
        return context.get_help() if context else ""
    where = context.command_path if context else "torpor"
    return f"{text.rstrip('.')} (see {where} --help)"


def _show_version(is_asked: bool) -> None:
    if not is_asked:
        return
    try:
        typer.echo(f"torpor {version('torpor')}")
    except PackageNotFoundError:
        typer.echo("torpor, not installed: run from its source")
    raise typer.Exit


def _root(
    is_version_asked: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", is_eager=True, callback=_show_version
        ),
    ] = False,
) -> None:
    """The options before a command."""


def _asked(argv: list[str], environ: Any) -> str:
    """The command's name on the command line, or on the one that a shell is completing."""
    words = environ.get("_TYPER_COMPLETE_ARGS") or environ.get("COMP_WORDS") or ""
    given = words.split() if "_TORPOR_COMPLETE" in environ else argv
    return next((word for word in given[1:] if word in COMMANDS), "")


def _loaded(entry: Entry) -> Any:
    module, _, function = entry.target.partition(":")
    return getattr(import_module(f"torpor.cli.{module}"), function)


def _named_only(entry: Entry) -> Callable[[], None]:
    """A placeholder in the list of commands; never run."""

    def command() -> None:
        raise AssertionError("a command that was not asked for ran")

    command.__doc__ = entry.summary
    return command


def _words(error: BaseException) -> str:
    """The error for the user; an operating system error (a full disk, a forbidden folder) by name and path."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


def _flat(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """The errors in nested exception groups."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _flat(error)
        else:
            yield error
