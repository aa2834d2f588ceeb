"""`torpor submit`: one job, with every option of a call."""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from torpor.cli.errors import UsageError
from torpor.cli.flags import with_options
from torpor.cli.options import ApiOption, DataDir, Json

if TYPE_CHECKING:
    from torpor.client import AsyncClient, Job

_ASK: Final = "What is asked"
_JOB: Final = "The job"


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitFlags:
    """The flags, one field each."""

    prompt: Annotated[
        str, typer.Argument(help="The prompt; - or nothing reads standard input.")
    ] = "-"
    model: Annotated[
        str,
        typer.Option(
            envvar="TORPOR_MODEL",
            help="Model name; the first one served if empty.",
            rich_help_panel=_ASK,
        ),
    ] = ""
    system: Annotated[str, typer.Option(help="A system message.", rich_help_panel=_ASK)] = ""
    image: Annotated[
        list[str] | None,
        typer.Option(help="An image: a file or an address; may be repeated.", rich_help_panel=_ASK),
    ] = None
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Longest answer in tokens (256).", rich_help_panel=_ASK),
    ] = None
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="0 is greedy.", rich_help_panel=_ASK)
    ] = None
    json_body: Annotated[
        str,
        typer.Option(
            help="More fields of the OpenAI call, as JSON: a file, - or the text itself. With "
            "`messages` in it no prompt is needed.",
            rich_help_panel=_ASK,
        ),
    ] = ""
    priority: Annotated[
        str, typer.Option(help="interactive, default or batch.", rich_help_panel=_JOB)
    ] = "default"
    metadata: Annotated[
        list[str] | None,
        typer.Option(help="name=value to find it by; may be repeated.", rich_help_panel=_JOB),
    ] = None
    webhook: Annotated[
        str, typer.Option(help="Webhook address for the end.", rich_help_panel=_JOB)
    ] = ""
    expires_after: Annotated[
        str,
        typer.Option(help="Give it up when not done in time: 30s, 10m.", rich_help_panel=_JOB),
    ] = ""
    idempotency_key: Annotated[
        str, typer.Option(help="The same key is the same job.", rich_help_panel=_JOB)
    ] = ""
    wait: Annotated[bool, typer.Option("--wait", help="Stay and show the answer as it comes.")] = (
        False
    )
    api: ApiOption = ""
    data_dir: DataDir = None
    as_json: Json = False


@with_options(SubmitFlags)
def submit(**given: Any) -> None:
    """Submit a prompt; prints the job's id, or with --wait the answer."""
    from torpor.cli.client import api_address, asked
    from torpor.cli.view.screen import print_json, stdout

    flags = SubmitFlags(**given)
    options = _options(flags)
    address = api_address(flags.api, flags.data_dir)
    prompt = _messages(flags, options["body"])

    async def work(api: "AsyncClient") -> dict[str, Any]:
        job = await api.submit(prompt, **options)
        if flags.wait:
            return await _followed(api, job, flags)
        return dict(job.data)

    job = asyncio.run(asked(address, work))
    if flags.as_json:
        print_json(job)
    elif not flags.wait:
        stdout.print(job["id"])
    exit_like(job)


def _messages(flags: SubmitFlags, body: dict[str, Any]) -> list[Any]:
    """The body's messages, followed by the prompt. Raises `UsageError`."""
    from torpor.cli.job.request import message, read_text

    given: list[Any] = body.pop("messages", None) or []
    if given and flags.prompt == "-":
        return given
    return [*given, message(read_text(flags.prompt), flags.image)]


def _options(flags: SubmitFlags) -> Any:
    """The options of the client. Raises `UsageError`."""
    from torpor.cli.job.request import image_url, pairs, read_json

    if flags.priority not in ("interactive", "default", "batch"):
        raise UsageError(f"--priority: {flags.priority!r} is none of interactive, default, batch")
    body = read_json(flags.json_body, "--json-body") if flags.json_body else {}
    if not isinstance(body, dict):
        raise UsageError("--json-body must be a JSON object")
    for image in flags.image or []:
        image_url(image)
    body.setdefault("max_tokens", flags.max_tokens or 256)
    if flags.max_tokens is not None:
        body["max_tokens"] = flags.max_tokens
    if flags.temperature is not None:
        body["temperature"] = flags.temperature
    return {
        "model": flags.model,
        "system": flags.system,
        "body": body,
        "priority": flags.priority,
        "metadata": pairs(flags.metadata, "--metadata"),
        "webhook": flags.webhook,
        "expires_after_s": seconds(flags.expires_after, "--expires-after"),
        "idempotency_key": flags.idempotency_key,
    }


def seconds(text: str, flag: str) -> float:
    """A duration such as 30s or 10m; 0 for none. Raises `UsageError`."""
    from knative.autoscaling.setting import duration_s

    try:
        found = duration_s(text) if text else 0.0
    except ValueError as error:
        raise UsageError(f"{flag}: {text!r} is no duration; write it as 30s, 10m or 1h") from error
    if text and found <= 0:
        raise UsageError(f"{flag}: {text!r} must be longer than nothing")
    return found


async def _followed(api: "AsyncClient", job: "Job", flags: SubmitFlags) -> dict[str, Any]:
    from torpor.cli.client import flags_of
    from torpor.cli.view.screen import JobScreen

    if flags.as_json:
        return dict((await ended(api, job.id)).data)
    screen = JobScreen()
    screen.line(f"accepted {job.id}")
    try:
        return await screen.follow(api.stream(job.id))
    except asyncio.CancelledError:
        same = flags_of(flags.api, flags.data_dir)
        words = f"torpor watch {job.id}{same}, or torpor cancel {job.id}{same}"
        screen.line(f"the job goes on: {words}")
        raise


async def ended(api: "AsyncClient", job_id: str) -> "Job":
    """The ended job."""
    from torpor.client import NotCompleted

    try:
        return await api.wait(job_id)
    except NotCompleted as error:
        return error.job


def exit_like(job: dict[str, Any]) -> None:
    """Exit 1 when the job was not completed."""
    if job.get("state") in ("failed", "cancelled"):
        raise typer.Exit(1)
