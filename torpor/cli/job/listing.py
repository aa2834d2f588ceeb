"""`torpor jobs`, `cancel` and `retry`."""

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from torpor.cli.catalog import epilog
from torpor.cli.errors import UsageError, UserError
from torpor.cli.options import ApiOption, Cursor, DataDir, JobId, Json, Limit

if TYPE_CHECKING:
    from torpor.client import AsyncClient

_STATES: Final = ("queued", "in_progress", "completed", "failed", "cancelled", "incomplete")
_ABREAST: Final = 8
"""Number of concurrent requests for jobs' prompts."""
_PAGES_SEARCHED: Final = 20
_PAGE: Final = 50

jobs = typer.Typer(invoke_without_command=True)
State = Annotated[str, typer.Option(help=f"Only these, by comma: {', '.join(_STATES)}.")]
Search = Annotated[
    str,
    typer.Option(
        help=f"Only with these words in id, prompt, model or metadata ({20 * 50:,} newest)."
    ),
]


@jobs.callback()
def list_jobs(
    context: typer.Context,
    state: State = "",
    search: Search = "",
    limit: Limit = 20,
    cursor: Cursor = "",
    api: ApiOption = "",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """List jobs, newest first."""
    from torpor.cli.client import ask, flags_of
    from torpor.cli.view.screen import print_json, stderr

    if context.invoked_subcommand:
        return
    if wrong := [each for each in state.split(",") if state and each not in _STATES]:
        raise UsageError(f"--state: {wrong[0]!r} is none of {', '.join(_STATES)}")
    query = {"cursor": cursor} | ({"state": state} if state else {})
    query = {name: value for name, value in query.items() if value}
    page = ask(api, data_dir, lambda client: _page(client, query, search, limit, not as_json))
    if as_json:
        print_json(page)
        return
    _draw(page["data"])
    if page["next_cursor"] and page["data"]:
        same = flags_of(api, data_dir) + (f" --state {state}" if state else "")
        stderr.print(f"more: torpor jobs --cursor {page['next_cursor']}{same}", style="dim")


@jobs.command(name="retry", epilog=epilog("torpor jobs retry job_0123"))
def retry(
    job_id: JobId, api: ApiOption = "", data_dir: DataDir = None, as_json: Json = False
) -> None:
    """Run a job again: a dead letter under its id, any other as a new job."""
    from torpor.cli.client import ask
    from torpor.cli.view.screen import print_json, stdout

    job = ask(api, data_dir, lambda client: _retry(client, job_id))
    if as_json:
        print_json(job)
    else:
        stdout.print(job["id"])


def cancel(
    job_id: JobId, api: ApiOption = "", data_dir: DataDir = None, as_json: Json = False
) -> None:
    """Cancel a job; one that has ended stays as it is."""
    from torpor.cli.client import ask
    from torpor.cli.view.screen import print_json, stdout

    job = ask(api, data_dir, lambda client: client.cancel(job_id))
    if as_json:
        print_json(job.data)
    else:
        stdout.print(job.state)


async def _retry(api: "AsyncClient", job_id: str) -> dict[str, Any]:
    job = await api.call("GET", f"/v1/jobs/{job_id}", query={"include": "request"})
    if job["state"] in ("queued", "in_progress"):
        raise UserError(f"{job_id} has not ended: it is {job['state']}")
    if job.get("is_dead_letter"):
        path = f"/v1/dead-letters/{job_id}/redrive"
        return dict(await api.call("POST", path))
    line = {**job["request"], "priority": job["priority"], "metadata": job["metadata"]}
    return dict(await api.call("POST", "/v1/jobs", body=line))


async def _page(
    api: "AsyncClient", query: dict[str, str], search: str, limit: int, with_prompts: bool
) -> dict[str, Any]:
    """A page of jobs, each with its `prompt` if wanted, or the first `limit` that contain the words."""
    found: list[dict[str, Any]] = []
    cursor, pages = query.get("cursor", ""), 0
    while pages < _PAGES_SEARCHED or not search:
        pages += 1
        size = _PAGE if search else limit - len(found)  # a page is short where few are in the state
        more = {"cursor": cursor} if cursor else {}
        if with_prompts and not search:
            more["include"] = "prompt"
        page = await api.call("GET", "/v1/jobs", query={**query, **more, "limit": str(size)})
        rows = await _with_prompts(api, page["data"]) if search or with_prompts else page["data"]
        found += [row for row in rows if _matches(row, search)]
        cursor = page["next_cursor"]
        if not cursor or len(found) >= limit:
            break
    return {"object": "list", "data": found[:limit], "next_cursor": cursor}


async def _with_prompts(api: "AsyncClient", rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with their prompts; a job deleted meanwhile has none."""
    from torpor.client import TorporError

    room = asyncio.Semaphore(_ABREAST)

    async def filled(row: dict[str, Any]) -> dict[str, Any]:
        if "prompt" in row:  # an api that shows it in its lists
            return row
        async with room:
            try:
                job = await api.call("GET", f"/v1/jobs/{row['id']}", query={"include": "request"})
            except TorporError:
                return row
        return {**row, "prompt": prompt_of(job["request"]["body"])}

    return await asyncio.gather(*(filled(row) for row in rows))


def prompt_of(body: dict[str, Any]) -> str:
    """The last user message, as text."""
    asked = body.get("prompt") or body.get("input") or ""
    if messages := body.get("messages"):
        asked = messages[-1].get("content") or ""
    if isinstance(asked, list):
        parts = (part.get("text", "") if isinstance(part, dict) else str(part) for part in asked)
        return " ".join(part for part in parts if part)
    return str(asked)


def _matches(row: dict[str, Any], search: str) -> bool:
    if not search:
        return True
    where = [row["id"], row["model"], row.get("prompt", ""), row.get("custom_id") or ""]
    where += [*row["metadata"], *row["metadata"].values()]
    return search.casefold() in "\n".join(map(str, where)).casefold()


def _draw(rows: list[dict[str, Any]]) -> None:
    from torpor.cli.view.screen import stderr, stdout
    from torpor.cli.view.table import first_words, moment, number, state, table

    if not rows:
        stderr.print("no jobs")
        return
    shown = table(
        "id",
        "submitted",
        "state",
        "model",
        "tokens",
        "total",
        "prompt",
        numbers=("tokens", "total"),
    )
    for job in rows:
        total = (job.get("timings") or {}).get("total_ms")
        shown.add_row(
            job["id"],
            moment(job["created_ms"], time.time()),
            state(job["state"]),
            job["model"],
            number(job["token_count"]),
            f"{total / 1000:,.2f} s" if total else "",
            first_words(job.get("prompt", "")),
        )
    stdout.print(shown)
