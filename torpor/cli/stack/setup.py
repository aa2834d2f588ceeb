"""`torpor setup`: installs the engine and the embedded store."""

import shlex
import sys
from enum import StrEnum
from importlib.metadata import version
from typing import Annotated

import typer


class Machine(StrEnum):
    """The hardware of the engine."""

    CPU = "cpu"  #: vLLM's CPU build
    GPU = "gpu"  #: vLLM for NVIDIA GPUs


def setup(
    machine: Annotated[Machine, typer.Argument(help="cpu or gpu.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the commands and end.")] = False,
) -> None:
    """Install the engine and the embedded store into this Python's environment."""
    from torpor.cli.errors import UserError
    from torpor.cli.view.screen import stdout
    from torpor.local.install import run, steps

    todo = steps(machine, sys.executable, [f"torpor[{machine}]=={version('torpor')}"])
    if dry_run:
        for step in todo:
            stdout.print("\n  or ".join(shlex.join(command) for command in step.commands))
        return
    if problem := run(todo):
        raise UserError(problem)
