"""`torpor tools`: the tool servers of a tenant, what they offer, and a person's word about a list that changed."""

from pathlib import Path
from typing import Annotated, Any

import typer

from torpor.cli.catalog import epilog
from torpor.cli.errors import UserError
from torpor.cli.options import ApiOption, DataDir, Json

tools = typer.Typer(no_args_is_help=True)


@tools.command(name="list", epilog=epilog("torpor tools list"))
def list_tools(api: ApiOption = "", data_dir: DataDir = None, as_json: Json = False) -> None:
    """List the tool servers and their tools, as jobs last read them."""
    from eventing.job.tools.fence import visible
    from torpor.cli.view.screen import print_json, stdout
    from torpor.cli.view.table import table

    page = _call(api, data_dir, "GET", "/v1/tools")
    if as_json:
        print_json(page)
        return
    shown = table("server", "tool", "effect", "approval", "what it says of itself")
    for server in page["data"]:
        if server["kind"] == "function":
            words = (server["effect"], server["approval"], visible(server["description"]))
            shown.add_row(server["label"], server["label"], *words)
        for tool in server["tools"] or ():
            words = (tool["effect"], tool["approval"], visible(tool["description"]))
            shown.add_row(server["label"], visible(tool["name"]), *words)
        if server["kind"] != "function" and not server["tools"]:
            shown.add_row(server["label"], "", "", server["approval"], "no job has read its list")
    stdout.print(shown if page["data"] else "no tool servers")
    for server in page["data"]:
        if server["changes"]:
            stdout.print(f"{server['label']} is not used: its tools changed ({_words(server)})")
            stdout.print(f"accept them: torpor tools accept {server['label']}")


@tools.command(epilog=epilog("torpor tools accept weather"))
def accept(
    label: Annotated[str, typer.Argument(help="The server's label, as `list` shows it.")],
    api: ApiOption = "",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Let jobs use a tool server's list that changed, as it is now."""
    from torpor.cli.view.screen import print_json, stdout

    servers = _call(api, data_dir, "GET", "/v1/tools")["data"]
    found = next((each for each in servers if each["label"] == label), None)
    if found is None:
        known = ", ".join(each["label"] for each in servers) or "none"
        raise UserError(f"no tool server {label}; there are: {known}")
    if found["kind"] == "function":
        raise UserError(
            f"{label} is a function: tools.yaml defines it, and there is no list to accept"
        )
    if not found["digest"]:
        raise UserError(f"no job has read the list of {label}; the first one that does pins it")
    body = {"digest": found["digest"]}
    accepted = _call(api, data_dir, "POST", f"/v1/tools/{label}/accept", body)
    if as_json:
        print_json(accepted)
        return
    stdout.print(f"{label}: accepted" + (f" ({_words(found)})" if found["changes"] else ""))


def _words(server: dict[str, Any]) -> str:
    """What became of the server's tools."""
    from eventing.job.tools.fence import visible

    said = ((word, names) for word, names in server["changes"].items() if names)
    return "; ".join(f"{word}: {', '.join(map(visible, names))}" for word, names in said)


def _call(api: str, data_dir: Path | None, method: str, path: str, body: Any = None) -> Any:
    from torpor.cli.client import ask

    return ask(api, data_dir, lambda client: client.call(method, path, body=body))
