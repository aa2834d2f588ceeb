"""`torpor logs`: the logs of a stack's parts, on this machine or on a cluster."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import typer

from torpor.cli.errors import UsageError, UserError
from torpor.cli.options import DEFAULT_DATA_DIR, WHERE, DataDir

_POLL_S: Final = 0.2


def logs(
    part: Annotated[
        str,
        typer.Argument(
            help="api, broker, store, parent, predictor or stack; all without. "
            "On a cluster api, broker, predictor or redis."
        ),
    ] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come.")] = False,
    tail: Annotated[int, typer.Option(min=0, help="Lines to begin with, of each.")] = 100,
    data_dir: DataDir = None,
    cluster: Annotated[
        str,
        typer.Option(help="Namespace of a cluster to look at instead.", rich_help_panel=WHERE),
    ] = "",
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="The same.", rich_help_panel=WHERE)
    ] = "",
    context: Annotated[
        str | None, typer.Option(help="The kubeconfig context.", rich_help_panel=WHERE)
    ] = None,
) -> None:
    """Show the logs of a part of the stack on this machine, or of a cluster."""
    where = cluster or namespace or ("torpor" if context else "")
    if where:
        from torpor.cli.cluster import commands

        if not part:
            raise UsageError("name the component: api, broker, predictor or redis")
        commands.logs(part, context=context, namespace=where, follow=follow, tail=tail)
        return
    folder = (data_dir or DEFAULT_DATA_DIR) / "logs"
    _show(folder, part, follow=follow, tail=tail)


def _show(folder: Path, part: str, *, follow: bool, tail: int) -> None:
    from torpor.cli.view.screen import stdout

    files = _files(folder, part)
    if not files:
        raise UserError(f"no log of {part or 'a stack'} in {folder}; name its --data-dir")
    places: dict[Path, int] = {}
    while True:
        for path in _files(folder, part):
            lines, places[path] = _new(path, places.get(path), tail)
            for line in lines:
                stdout.print(f"{path.stem} {line}" if len(files) > 1 else line)
        if not follow:
            return
        time.sleep(_POLL_S)


def _files(folder: Path, part: str) -> list[Path]:
    """The log files of a part, of all its processes, oldest first."""
    found = [path for path in folder.glob("*.log") if _is_of(path.stem, part)]
    return sorted(found, key=lambda path: path.stat().st_mtime)


def _is_of(name: str, part: str) -> bool:
    return not part or name == part or name.startswith(f"{part}-")


def _new(path: Path, place: int | None, tail: int) -> tuple[Iterator[str], int]:
    """The lines after a position in the file, or the last lines for None; and the position after them."""
    with path.open("rb") as log:
        log.seek(place or 0)
        content = log.read()
    whole = content[: content.rfind(b"\n") + 1]
    lines = whole.decode(errors="replace").splitlines()
    return iter(lines if place is not None else lines[len(lines) - min(tail, len(lines)) :]), (
        place or 0
    ) + len(whole)
