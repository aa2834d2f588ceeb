"""Puts the commands together. Called by the console script `torpor`."""

import sys
from collections.abc import Iterator

import typer

from knative.cli import demo, deploy, jobs, load, report, simulate, status, top, up
from knative.cli.dead_letters import dead_letters
from knative.cli.errors import UserError
from knative.cli.keys import keys
from knative.cli.screen import stderr
from knative.local.errors import StackError

app = typer.Typer(
    name="torpor",
    help="Serverless, scale-to-zero inference for slow-thinking language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(up.up)
app.command()(demo.demo)
app.command()(jobs.submit)
app.command()(jobs.watch)
app.command(name="jobs")(jobs.list_jobs)
app.command()(jobs.cancel)
app.command()(status.status)
app.add_typer(dead_letters, name="dead-letters")
app.add_typer(keys, name="keys")
app.command()(top.top)
app.command()(report.report)
app.command()(load.load)
app.command()(simulate.simulate)
app.command()(simulate.plan)
app.command(name="black-friday")(simulate.black_friday)
for command in (
    deploy.render,
    deploy.doctor,
    deploy.deploy,
    deploy.logs,
    deploy.scale,
    deploy.promote,
    deploy.rollback,
    deploy.delete,
):
    app.command()(command)


def main() -> None:
    """Run a command; what a person can mend is one clear line, not a stack trace."""
    status = 0
    try:
        app()
    except* (UserError, StackError, OSError) as group:
        for error in _flat(group):
            stderr.print(f"torpor: {_words(error)}", style="red", markup=False, highlight=False)
        status = 1
    except* KeyboardInterrupt:
        status = 130
    if status:  # not above: an exit inside `except*` would itself be wrapped and shown
        sys.exit(status)


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
