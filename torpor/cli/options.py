"""Options that many commands share.

Called by the commands. Fast to import, since every help imports it.
"""

from pathlib import Path
from typing import Annotated, Final

import typer

WHERE: Final = "Which Torpor"
"""The help panel of the options that select an api or a stack."""
DEFAULT_DATA_DIR: Final = Path(".torpor")

ApiOption = Annotated[
    str,
    typer.Option(
        "--api", envvar="TORPOR_API_URL", help="Address of the api.", rich_help_panel=WHERE
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        envvar="TORPOR_DATA_DIR",
        help="Folder of a stack on this machine (.torpor where one is).",
        rich_help_panel=WHERE,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]
JobId = Annotated[str, typer.Argument(help="The job's id.")]
Limit = Annotated[int, typer.Option(min=1, max=100, help="Rows at most.")]
Cursor = Annotated[str, typer.Option(help="Go on where an earlier list ended.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write to this file instead of the screen.")
]
