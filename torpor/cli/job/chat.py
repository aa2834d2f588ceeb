"""`torpor chat`: turns with a model in the terminal."""

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torpor.cli.errors import UserError
from torpor.cli.options import ApiOption, DataDir

if TYPE_CHECKING:
    from torpor.client import AsyncClient


def chat(
    model: Annotated[
        str, typer.Option(envvar="TORPOR_MODEL", help="Model name; the first one served if empty.")
    ] = "",
    system: Annotated[str, typer.Option(help="A system message.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 512,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0 is greedy.")] = None,
    api: ApiOption = "",
    data_dir: DataDir = None,
) -> None:
    """Talk with a model, turn by turn; an empty line or Ctrl-D ends it."""
    from torpor.cli.client import ask

    sampling: dict[str, Any] = {"max_tokens": max_tokens}
    if temperature is not None:
        sampling["temperature"] = temperature
    options = {"model": model, "system": system, "body": sampling, "priority": "interactive"}
    ask(api, data_dir, lambda client: _talk(client, options))


async def _talk(api: "AsyncClient", options: Any) -> None:
    from torpor.cli.view.screen import JobScreen, stderr

    said: list[dict[str, str]] = []
    if sys.stdin.isatty():
        stderr.print("an empty line or Ctrl-D ends it", style="dim")
    while line := await asyncio.to_thread(_read):
        said.append({"role": "user", "content": line})
        job = await api.submit(said, **options)
        ended = await JobScreen().follow(api.stream(job.id))
        if ended.get("state") != "completed":
            raise UserError(f"the job {job.id} ended as {ended.get('state')}")
        said.append({"role": "assistant", "content": _answer(ended)})


def _read() -> str:
    """The next line, empty at the end. A script's lines come without a prompt."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


def _answer(job: dict[str, Any]) -> str:
    from torpor.client import Job

    return Job(job).text
