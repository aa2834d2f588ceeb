"""`torpor files`: upload, list, read and delete files."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torpor.cli.catalog import epilog
from torpor.cli.errors import UsageError
from torpor.cli.options import ApiOption, DataDir, Json, Limit, Output

if TYPE_CHECKING:
    from torpor.client import AsyncClient

files = typer.Typer(no_args_is_help=True)
FileId = Annotated[str, typer.Argument(help="The file's id.")]


@files.command(epilog=epilog("torpor files upload requests.jsonl"))
def upload(
    path: Annotated[Path, typer.Argument(help="The file.")],
    purpose: Annotated[str, typer.Option(help="As OpenAI names it.")] = "batch",
    api: ApiOption = "",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Upload a file and print its id."""
    from torpor.cli.client import ask
    from torpor.cli.view.screen import print_json, stdout

    content = content_of(path)
    card = ask(api, data_dir, lambda client: send(client, path.name, content, purpose))
    if as_json:
        print_json(card)
    else:
        stdout.print(card["id"])


@files.command(name="list", epilog=epilog("torpor files list"))
def list_files(
    limit: Limit = 20, api: ApiOption = "", data_dir: DataDir = None, as_json: Json = False
) -> None:
    """List files, newest first."""
    from torpor.cli.client import ask
    from torpor.cli.view.screen import print_json, stdout
    from torpor.cli.view.table import moment, number, table

    query = {"limit": str(limit)}
    page = ask(api, data_dir, lambda client: client.call("GET", "/v1/files", query=query))
    if as_json:
        print_json(page)
        return
    shown = table("id", "name", "bytes", "purpose", "uploaded", numbers=("bytes",))
    for card in page["data"]:
        at = moment(card["created_at"] * 1000, time.time())
        shown.add_row(card["id"], card["filename"], number(card["bytes"]), card["purpose"], at)
    stdout.print(shown if page["data"] else "no files")


@files.command(epilog=epilog("torpor files read file-0123 -o answers.jsonl"))
def read(
    file_id: FileId, output: Output = None, api: ApiOption = "", data_dir: DataDir = None
) -> None:
    """Read a file's content."""
    from torpor.cli.client import ask

    write(ask(api, data_dir, lambda client: fetch(client, file_id)), output)


@files.command(epilog=epilog("torpor files delete file-0123"))
def delete(file_id: FileId, api: ApiOption = "", data_dir: DataDir = None) -> None:
    """Delete a file."""
    from torpor.cli.client import ask
    from torpor.cli.view.screen import stdout

    ask(api, data_dir, lambda client: client.call("DELETE", f"/v1/files/{file_id}"))
    stdout.print(f"deleted {file_id}")


def content_of(path: Path) -> bytes:
    """The file's bytes. Raises `UsageError` when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


async def send(client: "AsyncClient", name: str, content: bytes, purpose: str) -> Any:
    """Upload a file; gives its metadata."""
    import aiohttp
    import orjson

    form = aiohttp.FormData()
    form.add_field("purpose", purpose)
    form.add_field("file", content, filename=name, content_type="application/octet-stream")
    return orjson.loads(await client.call_raw("POST", "/v1/files", data=form))


async def fetch(client: "AsyncClient", file_id: str) -> bytes:
    """A file's content."""
    return await client.call_raw("GET", f"/v1/files/{file_id}/content")


def write(content: bytes, output: Path | None) -> None:
    """Write to the file, or to the screen as text without control characters."""
    from torpor.cli.view.screen import stdout

    if output is not None:
        output.write_bytes(content)
    elif sys.stdout.isatty():
        stdout.print(content.decode(errors="replace"), end="")
    else:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
