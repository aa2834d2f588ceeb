"""`torpor status`: replicas, queue and store of the stack on this machine."""

import asyncio
from typing import Annotated, Any

import orjson
import typer
from rich.table import Table

from torpor.cli.client import connected
from torpor.cli.errors import UserError
from torpor.cli.jobs import DEFAULT_DATA_DIR, DataDir, Json
from torpor.cli.view.screen import stdout
from torpor.local.data_dir import find_addresses


def status(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: Json = False,
    cluster: Annotated[
        str, typer.Option(help="Namespace of a cluster to look at, instead of this machine.")
    ] = "",
) -> None:
    """Show replicas, queue and addresses of the stack on this machine, or what a cluster has."""
    if cluster:
        from torpor.cli import deploy  # half a second that a look at this machine need not take

        deploy.status(namespace=cluster, as_json=as_json)
        return
    found = find_addresses(data_dir)
    if found is None:
        raise UserError(
            f"no stack runs on {data_dir}; start one with `torpor up`, or name its --data-dir"
        )
    seen = asyncio.run(_ask(found.activator))
    if as_json:
        stdout.print(orjson.dumps(seen).decode())
    else:
        _draw(seen)


async def _ask(address: str) -> dict[str, Any]:
    async with connected(address) as stack:
        seen: dict[str, Any] = await stack.call("GET", "/status")
        return seen


def _draw(seen: dict[str, Any]) -> None:
    replicas, queue, activator = seen["replicas"], seen["queue"], seen["activator"]
    stdout.print(f"api {seen['addresses']['api']}   broker {seen['addresses']['broker']}/")
    waiting = ", ".join(f"{lane} {n}" for lane, n in queue["waiting"].items())
    stdout.print(
        f"queue    {waiting}; in delivery {queue['pending']}, to be retried {queue['retrying']}"
    )
    stdout.print(f"activator  holds {activator['waiting']}, in predictors {activator['in_flight']}")
    stdout.print(f"replicas {replicas['ready']} ready of {replicas['wanted']} wanted")
    if replicas["last_failure"]:
        stdout.print(f"last failure: {replicas['last_failure']}")
    table = Table("replica", "state", "in flight", "woke in", box=None)
    for r in replicas["list"]:
        table.add_row(
            r["id"],
            r["state"],
            str(r["in_flight"]),
            f"{r['ready_after_s']} s" if r["ready_after_s"] else "",
        )
    if replicas["list"]:
        stdout.print(table)
