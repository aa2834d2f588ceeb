"""`torpor down`: stops the stack of this machine."""

import os
import signal
import time
from typing import Annotated, Final

import typer

from torpor.cli.errors import UserError
from torpor.cli.options import DEFAULT_DATA_DIR, DataDir

_POLL_S: Final = 0.1


def down(
    data_dir: DataDir = None,
    now: Annotated[
        bool, typer.Option("--now", help="Do not let predictors finish what they do.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for its end.")] = 120,
) -> None:
    """Stop the stack of this machine; its state is kept."""
    from torpor.cli.view.screen import stderr
    from torpor.local.data_dir import owner_of

    folder = data_dir or DEFAULT_DATA_DIR
    owner = owner_of(folder)
    if not owner:
        raise UserError(f"no stack runs on {folder}")
    os.kill(owner, signal.SIGTERM)
    if now:
        time.sleep(_POLL_S)
        os.kill(owner, signal.SIGTERM)  # a second SIGTERM skips draining
    deadline = time.monotonic() + timeout
    while owner_of(folder) == owner:
        if time.monotonic() > deadline:
            raise UserError(f"process {owner} has not ended within {timeout:g} s")
        time.sleep(_POLL_S)
    stderr.print(f"stopped; state is kept in {folder}")
