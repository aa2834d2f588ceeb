"""`torpor approvals`: calls of tools that wait for a person."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from torpor.cli.catalog import epilog
from torpor.cli.errors import UsageError, UserError
from torpor.cli.options import ApiOption, DataDir, Json, Limit

approvals = typer.Typer(no_args_is_help=True)
ApprovalId = Annotated[str, typer.Argument(help="The approval's id, as `list` shows it.")]
_MOST = 100


@approvals.command(name="list", epilog=epilog("torpor approvals list"))
def list_approvals(
    limit: Limit = 20, api: ApiOption = "", data_dir: DataDir = None, as_json: Json = False
) -> None:
    """List the calls that wait, with what they would do."""
    from eventing.job.tools.fence import visible
    from torpor.cli.view.screen import print_json, stdout
    from torpor.cli.view.table import first_words, table

    page = _call(api, data_dir, "GET", f"/v1/approvals?limit={limit}")
    if as_json:
        print_json(page)
        return
    shown = table("id", "asked", "tool", "why", "arguments")
    for one in page["data"]:
        tool = f"{one['server']}: {one['tool']}"
        asked = " ".join(each["message"] for each in one.get("questions", ()))
        shown.add_row(
            one["id"],
            one["kind"],
            tool,
            first_words(asked or one["reason"]),
            visible(one["arguments"]),  # whole: what is cut off could be what matters
        )
    stdout.print(shown if page["data"] else "nothing waits for a person")


@approvals.command(epilog=epilog("torpor approvals approve mcpr_0123_1_0"))
def approve(
    approval_id: ApprovalId,
    run_again: Annotated[
        bool, typer.Option("--run-again", help="Run a call again that may have happened.")
    ] = False,
    it_ran: Annotated[str, typer.Option(help="It did happen, and this was its result.")] = "",
    content: Annotated[str, typer.Option(help="What the tool asks for, as JSON.")] = "",
    api: ApiOption = "",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Let a call run, or give a tool what it asks for."""
    said, kind = _content(content), _kind(api, data_dir, approval_id)
    if (run_again or it_ran) and kind != "doubt":
        raise UsageError("--run-again and --it-ran are for a call that may have happened")
    if content and kind != "input":
        raise UsageError("--content is for a tool that asks for something")
    if run_again and it_ran:
        raise UsageError("--run-again and --it-ran exclude each other")
    match kind:
        case "doubt" if it_ran:
            body: dict[str, Any] = {"decision": "it_ran", "output": it_ran}
        case "doubt" if run_again:
            body = {"decision": "run_again"}
        case "doubt":
            raise UsageError("the call may have happened: say --run-again or --it-ran RESULT")
        case "input":
            body = {"action": "accept", "content": said}
        case _:
            body = {"approve": True}
    _decide(api, data_dir, approval_id, body, as_json)


@approvals.command(epilog=epilog('torpor approvals deny mcpr_0123_1_0 --reason "too dear"'))
def deny(
    approval_id: ApprovalId,
    reason: Annotated[str, typer.Option(help="What the model is told.")] = "",
    api: ApiOption = "",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Do not let a call run; a call that may have happened is given up."""
    match _kind(api, data_dir, approval_id):
        case "doubt":
            body: dict[str, Any] = {"decision": "give_up"}
        case "input":
            body = {"action": "decline"}
        case _:
            body = {"approve": False, "reason": reason}
    _decide(api, data_dir, approval_id, body, as_json)


def _kind(api: str, data_dir: Path | None, approval_id: str) -> str:
    """What is asked; empty for what does not wait any more."""
    path = f"/v1/approvals?limit={_MOST}"
    page = _call(api, data_dir, "GET", path)
    while not (found := [one["kind"] for one in page["data"] if one["id"] == approval_id]):
        if not page["next_cursor"]:
            return ""
        page = _call(api, data_dir, "GET", f"{path}&cursor={page['next_cursor']}")
    return str(found[0])


def _content(text: str) -> Any:
    try:
        return json.loads(text or "{}")
    except ValueError as error:
        raise UsageError(f"--content: {error}") from error


def _decide(
    api: str, data_dir: Path | None, approval_id: str, body: dict[str, Any], as_json: bool
) -> None:
    from torpor.cli.view.screen import print_json, stdout

    prefix, _, rest = approval_id.partition("_")
    job, is_approval = f"job_{rest.partition('_')[0]}", prefix == "mcpr" and "_" in rest
    if not is_approval:
        raise UsageError(f"{approval_id} is no id of an approval: `torpor approvals list` has them")
    path = f"/v1/jobs/{job}/approvals/{approval_id}"
    decided = _call(api, data_dir, "POST", path, body)
    said = f"{decided['server']}: {decided['tool']} is {decided['state']}"
    if "approve" in body and body["approve"] == (decided["state"] == "denied"):
        raise UserError(f"it was decided before, and the first decision holds: {said}")
    if as_json:
        print_json(decided)
        return
    stdout.print(said)


def _call(api: str, data_dir: Path | None, method: str, path: str, body: Any = None) -> Any:
    from torpor.cli.client import ask

    return ask(api, data_dir, lambda client: client.call(method, path, body=body))
