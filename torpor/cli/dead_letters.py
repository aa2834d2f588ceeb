"""`torpor dead-letters`: what was set aside, why, and a second chance for it."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.table import Table

from torpor.cli.client import Api, api_address, connected
from torpor.cli.errors import UserError
from torpor.cli.jobs import DEFAULT_DATA_DIR, ApiOption, DataDir, Json
from torpor.cli.view.screen import stdout

dead_letters = typer.Typer(
    name="dead-letters",
    help="Jobs that were set aside: look, redrive, discard.",
    no_args_is_help=True,
)
JobIds = Annotated[list[str], typer.Argument(help="Ids of dead letters.")]


@dead_letters.command(name="list")
def list_dead_letters(
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20,
    api: ApiOption = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: Json = False,
) -> None:
    """List dead letters, newest first."""
    query = {"limit": str(limit)}
    page = _with_api(api, data_dir, lambda a: a.call("GET", "/v1/dead-letters", query=query))
    if as_json:
        stdout.print(orjson.dumps(page).decode())
        return
    table = Table("id", "reason", "attempts", "model", box=None)
    for job in page["data"]:
        error = job.get("error") or {}
        table.add_row(job["id"], error.get("message", ""), str(len(job["attempts"])), job["model"])
    stdout.print(table if page["data"] else "no dead letters")


@dead_letters.command()
def show(job_id: str, api: ApiOption = "", data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Show one as JSON: reason, attempts and the original request."""
    path = f"/v1/dead-letters/{job_id}"
    found = _with_api(api, data_dir, lambda a: a.call("GET", path))
    stdout.print(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())


@dead_letters.command()
def redrive(
    job_ids: Annotated[list[str] | None, typer.Argument(help="Ids; none with --all.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every one of yours.")] = False,
    request: Annotated[
        str, typer.Option(help="A Batch line to run instead: a file, or - for standard input.")
    ] = "",
    api: ApiOption = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Queue dead letters again, under the same ids."""
    if bool(job_ids) == everything:
        raise UserError("name the dead letters to redrive, or --all of them")
    edited = _read(request) if request else None
    if edited is not None and len(job_ids or []) != 1:
        raise UserError("--request replaces the request of exactly one dead letter")
    work = _redrive_all if everything else _redrive_each(job_ids or [], edited)
    _with_api(api, data_dir, work)


@dead_letters.command()
def discard(job_ids: JobIds, api: ApiOption = "", data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Forget dead letters for good."""

    async def work(client: Api) -> None:
        for job_id in job_ids:
            await client.call("DELETE", f"/v1/dead-letters/{job_id}")
            stdout.print(f"discarded {job_id}")

    _with_api(api, data_dir, work)


def _redrive_each(job_ids: list[str], edited: Any) -> Callable[[Api], Awaitable[None]]:
    async def work(client: Api) -> None:
        for job_id in job_ids:
            await client.call("POST", f"/v1/dead-letters/{job_id}/redrive", body=edited)
            stdout.print(job_id)

    return work


async def _redrive_all(client: Api) -> None:
    """Call after call by the server's cursor. Raises `UserError` when some were left, after the ids
    of those that were redriven.
    """
    count = 0
    skipped: list[dict[str, str]] = []
    query: dict[str, str] = {}
    while True:
        try:
            answer = await client.call("POST", "/v1/dead-letters/redrive", query=query)
        except UserError as error:
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


def _read(source: str) -> Any:
    try:
        return orjson.loads(sys.stdin.read() if source == "-" else Path(source).read_text())
    except OSError as error:
        raise UserError(f"cannot read {source}: {error.strerror}") from error
    except orjson.JSONDecodeError as error:
        raise UserError(f"{source} is not JSON: {error.msg} at {error.pos}") from error


def _with_api(named: str, data_dir: Path, work: Callable[[Api], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with connected(api_address(named, data_dir)) as client:
            return await work(client)

    return asyncio.run(run())
