"""Jobs from the command line: submit, watch, list, cancel."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.table import Column, Table

from torpor.cli.client import Api, api_address, connected
from torpor.cli.errors import UserError
from torpor.cli.view.life import life_lines, whole_life
from torpor.cli.view.screen import JobScreen, stdout
from torpor.local.settings import StackSettings

ApiOption = Annotated[
    str, typer.Option("--api", envvar="TORPOR_API_URL", help="Address of the api.")
]
DataDir = Annotated[Path, typer.Option(envvar="TORPOR_DATA_DIR", help="Where a local stack lives.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
DEFAULT_DATA_DIR = StackSettings.model_fields["data_dir"].default


def submit(
    prompt: Annotated[
        str, typer.Argument(help="The prompt; - or nothing reads standard input.")
    ] = "-",
    model: Annotated[
        str, typer.Option(envvar="TORPOR_MODEL", help="Model name; the first one served if empty.")
    ] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 256,
    priority: Annotated[str, typer.Option(help="interactive, default or batch.")] = "default",
    wait: Annotated[
        bool, typer.Option("--wait", help="Stay and show the answer as it comes.")
    ] = False,
    api: ApiOption = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: Json = False,
) -> None:
    """Hand over a prompt; prints the job's id, or with --wait the answer."""
    text = sys.stdin.read() if prompt == "-" else prompt
    job = asyncio.run(
        _submit(api_address(api, data_dir), text, model, max_tokens, priority, wait and not as_json)
    )
    if as_json and wait:
        job = asyncio.run(_until_end(api_address(api, data_dir), job["id"]))
    if as_json:
        stdout.print(orjson.dumps(job).decode())
    elif not wait:
        stdout.print(job["id"])
    _exit_like(job)


def watch(
    job_id: Annotated[str, typer.Argument(help="The job's id.")],
    api: ApiOption = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: Json = False,
) -> None:
    """Show a job's life as it goes on, then each step with its time, webhooks included."""
    job = asyncio.run(_watch(api_address(api, data_dir), job_id, as_json))
    _exit_like(job)


def list_jobs(
    state: Annotated[str, typer.Option(help="Only jobs in this state.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20,
    api: ApiOption = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: Json = False,
) -> None:
    """List jobs, newest first."""
    query = {"limit": str(limit)} | ({"state": state} if state else {})
    page = asyncio.run(_call(api_address(api, data_dir), "GET", "/v1/jobs", query))
    if as_json:
        stdout.print(orjson.dumps(page).decode())
        return
    whole = max((len(job["id"]) for job in page["data"]), default=0)  # half an id is none
    table = Table(Column("id", min_width=whole), *("state", "model", "tokens", "total"), box=None)
    for job in page["data"]:
        total = (job.get("timings") or {}).get("total_ms")
        seconds = f"{total / 1000:.2f} s" if total else ""
        table.add_row(job["id"], job["state"], job["model"], str(job["token_count"]), seconds)
    stdout.print(table)


def cancel(
    job_id: Annotated[str, typer.Argument(help="The job's id.")],
    api: ApiOption = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: Json = False,
) -> None:
    """Cancel a job; one that has ended stays as it is."""
    job = asyncio.run(_call(api_address(api, data_dir), "DELETE", f"/v1/jobs/{job_id}"))
    stdout.print(orjson.dumps(job).decode() if as_json else job["state"])


async def _submit(
    address: str, text: str, model: str, max_tokens: int, priority: str, is_followed: bool
) -> dict[str, Any]:
    async with connected(address) as api:
        job = await submit_chat(api, text, model=model, max_tokens=max_tokens, priority=priority)
        if not is_followed:
            return job
        screen = JobScreen()
        screen.line(f"accepted {job['id']}")
        try:
            return await screen.follow(api.events(job["id"]))
        except asyncio.CancelledError:
            screen.line(f"the job goes on: torpor watch {job['id']}, or torpor cancel {job['id']}")
            raise


async def submit_chat(
    api: Api, text: str, *, model: str = "", priority: str = "default", **sampling: float
) -> dict[str, Any]:
    """Submit one chat message as a job, `sampling` as OpenAI names it; what the api answered."""
    if not model:
        served = (await api.call("GET", "/v1/models"))["data"]
        if not served:
            raise UserError(f"no model is served at {api.address}")
        model = served[0]["id"]
    messages = [{"role": "user", "content": text}]
    body = {"model": model, "messages": messages, **sampling}
    line = {"url": "/v1/chat/completions", "body": body, "priority": priority}
    accepted: dict[str, Any] = await api.call("POST", "/v1/jobs", body=line)
    return accepted


async def _watch(address: str, job_id: str, as_json: bool) -> dict[str, Any]:
    async with connected(address) as api:
        if not as_json:
            screen = JobScreen()
            ended = await screen.follow(api.events(job_id))
            screen.life(life_lines(await whole_life(api, job_id)))
            return ended
        last: dict[str, Any] = {}
        async for name, data in api.events(job_id):
            stdout.print(orjson.dumps({"event": name, "data": data}).decode())
            last = data if name == "result" else last
        return last


async def _until_end(address: str, job_id: str) -> dict[str, Any]:
    async with connected(address) as api:
        async for name, data in api.events(job_id):
            if name == "result":
                result: dict[str, Any] = data
                return result
    raise UserError(f"the job {job_id} was deleted")


async def _call(address: str, method: str, path: str, query: dict[str, str] | None = None) -> Any:
    async with connected(address) as api:
        return await api.call(method, path, query=query)


def _exit_like(job: dict[str, Any]) -> None:
    """Exit 1 when the job did not end well."""
    if job.get("state") in ("failed", "cancelled"):
        raise typer.Exit(1)
