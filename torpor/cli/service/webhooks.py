"""`torpor webhooks`: endpoints and deliveries."""

import time
from typing import Annotated, Any

import typer

from torpor.cli.catalog import epilog
from torpor.cli.options import ApiOption, DataDir, Json, Limit

webhooks = typer.Typer(no_args_is_help=True)
EndpointId = Annotated[str, typer.Argument(help="The receiver's id.")]


@webhooks.command(
    epilog=epilog("torpor webhooks add https://example.com/hook --event response.completed")
)
def add(
    url: Annotated[str, typer.Argument(help="Where the receiver listens.")],
    event: Annotated[
        list[str] | None, typer.Option(help="Type of event; may be repeated, all without.")
    ] = None,
    name: Annotated[str, typer.Option(help="A name for people.")] = "",
    api: ApiOption = "",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Register a receiver; prints its id and, once, its signing secret."""
    body: dict[str, Any] = {"url": url, "name": name}
    if event:
        body["event_types"] = event
    _show_secret(_call(api, data_dir, "POST", "", body), as_json)


@webhooks.command(name="list", epilog=epilog("torpor webhooks list"))
def list_webhooks(
    limit: Limit = 20, api: ApiOption = "", data_dir: DataDir = None, as_json: Json = False
) -> None:
    """List the receivers, oldest first."""
    from torpor.cli.view.screen import print_json, stdout
    from torpor.cli.view.table import table

    page = _call(api, data_dir, "GET", f"?limit={limit}")
    if as_json:
        print_json(page)
        return
    shown = table("id", "name", "address", "events")
    for one in page["data"]:
        events = ", ".join(one["event_types"])
        shown.add_row(one["id"], one["name"], one["url"], events)
    stdout.print(shown if page["data"] else "no receivers")


@webhooks.command(name="test", epilog=epilog("torpor webhooks test we_0123"))
def try_once(
    endpoint_id: EndpointId,
    event: Annotated[str, typer.Option(help="Its type; the receiver's first without.")] = "",
    api: ApiOption = "",
    data_dir: DataDir = None,
) -> None:
    """Send a receiver a sample event now, and show its answer."""
    from torpor.cli.view.screen import print_json

    kind = event or _call(api, data_dir, "GET", f"/{endpoint_id}")["event_types"][0]
    print_json(_call(api, data_dir, "POST", f"/{endpoint_id}/test", {"event_type": kind}))


@webhooks.command(epilog=epilog("torpor webhooks rotate we_0123"))
def rotate(
    endpoint_id: EndpointId, api: ApiOption = "", data_dir: DataDir = None, as_json: Json = False
) -> None:
    """Make a new signing secret; the old one signs beside it for a while."""
    _show_secret(_call(api, data_dir, "POST", f"/{endpoint_id}/rotate_secret", {}), as_json)


@webhooks.command(epilog=epilog("torpor webhooks delete we_0123"))
def delete(endpoint_id: EndpointId, api: ApiOption = "", data_dir: DataDir = None) -> None:
    """Delete a receiver."""
    from torpor.cli.view.screen import stdout

    _call(api, data_dir, "DELETE", f"/{endpoint_id}")
    stdout.print(f"deleted {endpoint_id}")


@webhooks.command(epilog=epilog("torpor webhooks deliveries --limit 50"))
def deliveries(
    limit: Limit = 20, api: ApiOption = "", data_dir: DataDir = None, as_json: Json = False
) -> None:
    """List deliveries with their outcome, newest first."""
    from torpor.cli.view.screen import print_json, stdout
    from torpor.cli.view.table import moment, number, state, table

    page = _call(api, data_dir, "GET", f"?limit={limit}", where="webhook_deliveries")
    if as_json:
        print_json(page)
        return
    shown = table("id", "created", "state", "tries", "event", "of", "to", numbers=("tries",))
    for one in page["data"]:
        at, tries = moment(one["created_ms"], time.time()), number(len(one["tries"]))
        cells = (one["type"], one["data"]["id"], one["url"])
        shown.add_row(one["id"], at, state(one["state"]), tries, *cells)
    stdout.print(shown if page["data"] else "no deliveries")


def _call(
    api: str, data_dir: Any, method: str, path: str, body: Any = None, where: str = ""
) -> Any:
    from torpor.cli.client import ask

    whole = f"/v1/{where or 'webhook_endpoints'}{path}"
    return ask(api, data_dir, lambda client: client.call(method, whole, body=body))


def _show_secret(made: dict[str, Any], as_json: bool) -> None:
    from torpor.cli.view.screen import print_json, stderr, stdout

    if as_json:
        print_json(made)
        return
    stdout.print(f"{made['id']} {made['signing_secret']}")
    stderr.print("the secret is shown this once")
