"""`torpor batch`: many requests as one file."""

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from torpor.cli.catalog import epilog
from torpor.cli.errors import UsageError, UserError
from torpor.cli.options import ApiOption, DataDir, Json, Limit, Output
from torpor.cli.service.files import content_of, fetch, send, write

if TYPE_CHECKING:
    from torpor.client import AsyncClient

batch = typer.Typer(no_args_is_help=True)
BatchId = Annotated[str, typer.Argument(help="The batch's id.")]
_FINAL: Final = ("completed", "failed", "expired", "cancelled")
_POLL_S: Final = 1.0


@batch.command(
    epilog=epilog("torpor batch submit requests.jsonl", "torpor batch submit - --wait < r.jsonl")
)
def submit(
    path: Annotated[Path, typer.Argument(help="Lines of an OpenAI Batch; - is standard input.")],
    endpoint: Annotated[str, typer.Option(help="Of all lines; the first line's if empty.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Stay, then print the answers.")] = False,
    output: Output = None,
    api: ApiOption = "",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Upload the lines and start the batch; prints its id, or with --wait the answers."""
    from torpor.cli.client import ask
    from torpor.cli.view.screen import print_json, stdout

    source = Path("/dev/stdin") if path == Path("-") else path
    content = content_of(source)
    where = endpoint or _endpoint_of(content, path)

    async def work(client: "AsyncClient") -> dict[str, Any]:
        name = "requests.jsonl" if path == Path("-") else path.name
        card = await send(client, name, content, "batch")
        body = {"input_file_id": card["id"], "endpoint": where, "completion_window": "24h"}
        made: dict[str, Any] = await client.call("POST", "/v1/batches", body=body)
        if not wait:
            return made
        made = await _until_final(client, made["id"])
        if not as_json:
            await _write_results(client, made, output)
        return made

    made = ask(api, data_dir, work)
    if as_json:
        print_json(made)
    elif not wait:
        stdout.print(made["id"])
    _exit_like(made)


@batch.command(name="list", epilog=epilog("torpor batch list"))
def list_batches(
    limit: Limit = 20, api: ApiOption = "", data_dir: DataDir = None, as_json: Json = False
) -> None:
    """List batches, newest first."""
    from torpor.cli.client import ask
    from torpor.cli.view.screen import print_json, stdout
    from torpor.cli.view.table import moment, number, state, table

    query = {"limit": str(limit)}
    page = ask(api, data_dir, lambda client: client.call("GET", "/v1/batches", query=query))
    if as_json:
        print_json(page)
        return
    counts = ("lines", "done", "failed")
    shown = table("id", "created", "state", *counts, "endpoint", numbers=counts)
    for one in page["data"]:
        c = one["request_counts"]
        row = (number(c[name]) for name in ("total", "completed", "failed"))
        at = moment(one["created_at"] * 1000, time.time())
        shown.add_row(one["id"], at, state(one["status"]), *row, one["endpoint"])
    stdout.print(shown if page["data"] else "no batches")


@batch.command(epilog=epilog("torpor batch show batch_0123"))
def show(batch_id: BatchId, api: ApiOption = "", data_dir: DataDir = None) -> None:
    """Show a batch as JSON."""
    from torpor.cli.client import ask
    from torpor.cli.view.screen import print_json

    path = f"/v1/batches/{batch_id}"
    print_json(ask(api, data_dir, lambda client: client.call("GET", path)), indent=2)


@batch.command(epilog=epilog("torpor batch results batch_0123 -o answers.jsonl"))
def results(
    batch_id: BatchId, output: Output = None, api: ApiOption = "", data_dir: DataDir = None
) -> None:
    """Wait for a batch and print its answers; lines that failed go to standard error."""
    from torpor.cli.client import ask

    async def work(client: "AsyncClient") -> dict[str, Any]:
        made = await _until_final(client, batch_id)
        await _write_results(client, made, output)
        return made

    _exit_like(ask(api, data_dir, work))


@batch.command(epilog=epilog("torpor batch cancel batch_0123"))
def cancel(batch_id: BatchId, api: ApiOption = "", data_dir: DataDir = None) -> None:
    """Cancel a batch; what is done is kept."""
    from torpor.cli.client import ask
    from torpor.cli.view.screen import stdout

    path = f"/v1/batches/{batch_id}/cancel"
    stdout.print(ask(api, data_dir, lambda client: client.call("POST", path))["status"])


def _endpoint_of(content: bytes, path: Path) -> str:
    import orjson

    first = content.removeprefix(b"\xef\xbb\xbf").lstrip().split(b"\n", 1)[0]
    try:
        return str(orjson.loads(first)["url"])
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: the first line names no url; is it an OpenAI Batch?") from error


async def _until_final(client: "AsyncClient", batch_id: str) -> dict[str, Any]:
    from torpor.cli.view.screen import stderr

    said = ""
    while True:
        made: dict[str, Any] = await client.call("GET", f"/v1/batches/{batch_id}")
        counts = made["request_counts"]
        text = f"{made['status']}, {counts['completed'] + counts['failed']} of {counts['total']}"
        if text != said:
            said = text
            stderr.print(text, style="dim")
        if made["status"] in _FINAL:
            return made
        await asyncio.sleep(_POLL_S)


async def _write_results(client: "AsyncClient", made: dict[str, Any], output: Path | None) -> None:
    from torpor.cli.view.screen import stderr

    if made.get("output_file_id"):
        write(await fetch(client, made["output_file_id"]), output)
    if made.get("error_file_id") and made["request_counts"]["failed"]:
        content = await fetch(client, made["error_file_id"])
        stderr.print(content.decode(errors="replace"), end="")
    for error in (made.get("errors") or {}).get("data", []):
        stderr.print(f"line {error.get('line')}: {error.get('message')}")


def _exit_like(made: dict[str, Any]) -> None:
    """Exit 1 when the batch or one of its lines failed."""
    if made["status"] in ("failed", "expired", "cancelled"):
        raise UserError(f"the batch {made['id']} ended as {made['status']}")
    if made["status"] == "completed" and made["request_counts"]["failed"]:
        raise UserError(f"{made['request_counts']['failed']} lines of {made['id']} failed")
