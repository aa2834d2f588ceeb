"""`torpor status`: replicas, queue and store of the stack on this machine."""

from typing import Annotated, Any

import typer

from torpor.cli.errors import UserError
from torpor.cli.options import DEFAULT_DATA_DIR, WHERE, DataDir, Json


def status(
    data_dir: DataDir = None,
    as_json: Json = False,
    cluster: Annotated[
        str,
        typer.Option(
            help="Namespace of a cluster to look at, instead of this machine.",
            rich_help_panel=WHERE,
        ),
    ] = "",
    context: Annotated[
        str | None, typer.Option(help="The kubeconfig context.", rich_help_panel=WHERE)
    ] = None,
) -> None:
    """Show replicas, queue and addresses of the stack on this machine, or what a cluster has."""
    import asyncio

    from torpor.cli.client import asked
    from torpor.cli.view.screen import print_json
    from torpor.local.data_dir import find_addresses

    where = cluster or ("torpor" if context else "")
    if where:
        from torpor.cli.cluster import commands

        commands.status(context=context, namespace=where, as_json=as_json)
        return
    folder = data_dir or DEFAULT_DATA_DIR
    found = find_addresses(folder)
    if found is None:
        raise UserError(
            f"no stack runs on {folder}; start one with `torpor up`, or name its --data-dir"
        )
    seen = asyncio.run(asked(found.activator, lambda stack: stack.call("GET", "/status")))
    if as_json:
        print_json(seen)
    else:
        _draw(seen)


def _draw(seen: dict[str, Any]) -> None:
    from torpor.cli.view.screen import stdout

    stdout.print(f"api        {seen['addresses']['api']}")
    stdout.print(f"broker     {seen['addresses']['broker']}/")
    for model in seen["models"]:
        _draw_model(model)


def _draw_model(seen: dict[str, Any]) -> None:
    from torpor.cli.view.screen import stdout
    from torpor.cli.view.table import number, state, table

    replicas, queue, activator = seen["replicas"], seen["queue"], seen["activator"]
    waiting = ", ".join(f"{lane} {n}" for lane, n in queue["waiting"].items())
    stdout.print(f"model      {seen['model']}", style="bold")
    stdout.print(
        f"queue      {waiting}; in delivery {queue['pending']}, to be retried {queue['retrying']}"
    )
    stdout.print(f"activator  holds {activator['waiting']}, in predictors {activator['in_flight']}")
    stdout.print(f"replicas   {replicas['ready']} ready of {replicas['wanted']} wanted")
    if replicas["last_failure"]:
        stdout.print(f"failure    {replicas['last_failure']}", style="red")
    rows = table(
        "replica", "state", "in flight", "ready after, s", numbers=("in flight", "ready after, s")
    )
    for r in replicas["list"]:
        after = number(r["ready_after_s"] or None, 2)
        rows.add_row(r["id"], state(r["state"]), str(r["in_flight"]), after)
    if replicas["list"]:
        stdout.print(rows)
