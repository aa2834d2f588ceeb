"""`torpor dead-letters`: list, show, redrive and discard dead letters."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torpor.cli.catalog import epilog
from torpor.cli.errors import UsageError, UserError
from torpor.cli.options import ApiOption, Cursor, DataDir, JobId, Json, Limit

if TYPE_CHECKING:
    from torpor.client import AsyncClient

dead_letters = typer.Typer(no_args_is_help=True)
JobIds = Annotated[list[str], typer.Argument(help="Ids of dead letters.")]


@dead_letters.command(name="list", epilog=epilog("torpor dead-letters list --limit 50"))
def list_dead_letters(
    limit: Limit = 20,
    cursor: Cursor = "",
    api: ApiOption = "",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """List dead letters, newest first."""
    from torpor.cli.client import ask, flags_of
    from torpor.cli.view.screen import print_json, stderr, stdout
    from torpor.cli.view.table import table

    query = {"limit": str(limit)} | ({"cursor": cursor} if cursor else {})
    page = ask(api, data_dir, lambda client: client.call("GET", "/v1/dead-letters", query=query))
    if as_json:
        print_json(page)
        return
    shown = table("id", "attempts", "model", "reason", numbers=("attempts",))
    for job in page["data"]:
        error = job.get("error") or {}
        shown.add_row(job["id"], str(len(job["attempts"])), job["model"], error.get("message", ""))
    stdout.print(shown if page["data"] else "no dead letters")
    if more := page.get("next_cursor"):
        same = flags_of(api, data_dir)
        stderr.print(f"more: torpor dead-letters list --cursor {more}{same}", style="dim")


@dead_letters.command(epilog=epilog("torpor dead-letters show job_0123"))
def show(job_id: JobId, api: ApiOption = "", data_dir: DataDir = None) -> None:
    """Show one as JSON: reason, attempts and the original request."""
    from torpor.cli.client import ask
    from torpor.cli.view.screen import print_json

    path = f"/v1/dead-letters/{job_id}"
    print_json(ask(api, data_dir, lambda client: client.call("GET", path)), indent=2)


@dead_letters.command(
    epilog=epilog(
        "torpor dead-letters redrive job_0123",
        "torpor dead-letters redrive --all",
        "torpor dead-letters redrive job_0123 --request edited.json",
    )
)
def redrive(
    job_ids: Annotated[list[str] | None, typer.Argument(help="Ids; none with --all.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All of the tenant's dead letters.")
    ] = False,
    request: Annotated[
        str, typer.Option(help="A Batch line to run instead: a file, or - for standard input.")
    ] = "",
    api: ApiOption = "",
    data_dir: DataDir = None,
) -> None:
    """Queue dead letters again, under the same ids."""
    from torpor.cli.client import ask
    from torpor.cli.job.request import read_json

    if bool(job_ids) == everything:
        raise UsageError("name the dead letters to redrive, or --all of them")
    edited = read_json(request, "--request") if request else None
    if edited is not None and len(job_ids or []) != 1:
        raise UsageError("--request replaces the request of exactly one dead letter")
    work = _redrive_all if everything else _redrive_each(job_ids or [], edited)
    ask(api, data_dir, work)


@dead_letters.command(epilog=epilog("torpor dead-letters discard job_0123"))
def discard(job_ids: JobIds, api: ApiOption = "", data_dir: DataDir = None) -> None:
    """Delete dead letters."""
    from torpor.cli.client import ask
    from torpor.cli.view.screen import stdout

    async def work(client: "AsyncClient") -> None:
        for job_id in job_ids:
            await client.call("DELETE", f"/v1/dead-letters/{job_id}")
            stdout.print(f"discarded {job_id}")

    ask(api, data_dir, work)


def _redrive_each(job_ids: list[str], edited: Any) -> "Callable[[AsyncClient], Awaitable[None]]":
    from torpor.cli.view.screen import stdout

    async def work(client: "AsyncClient") -> None:
        for job_id in job_ids:
            await client.call("POST", f"/v1/dead-letters/{job_id}/redrive", body=edited)
            stdout.print(job_id)

    return work


async def _redrive_all(client: "AsyncClient") -> None:
    """Call repeatedly with the server's cursor. Raises `UserError` when some are left, after printing the redriven
    ids.
    """
    from torpor.cli.view.screen import stdout
    from torpor.client import TorporError

    count = 0
    skipped: list[dict[str, str]] = []
    query: dict[str, str] = {}
    while True:
        try:
            answer = await client.call("POST", "/v1/dead-letters/redrive", query=query)
        except TorporError as error:
            raise UserError(f"stopped after {count} redriven: {error}") from error
        for job_id in answer["redriven"]:
            stdout.print(job_id)
        count += len(answer["redriven"])
        skipped += answer["skipped"]
        if not answer["has_more"]:
            break
        query = {"cursor": answer["next_cursor"]} if answer["next_cursor"] else {}
    if skipped:
        left = "".join(f"\n  {each['id']}: {each['reason']}" for each in skipped)
        raise UserError(f"{len(skipped)} were not redriven:{left}")
