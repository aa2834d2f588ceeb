"""`torpor usage` (also `report`): what the last hours cost, and whom for."""

from typing import Annotated, Any

import typer

from torpor.cli.job.submit import seconds
from torpor.cli.options import ApiOption, DataDir, Json


def report(
    since: Annotated[str, typer.Option(help="How far back: 90m, 24h (at most 192h).")] = "24h",
    api: ApiOption = "",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Show GPU time, tokens and cost by model and tenant; per 1,000 tokens all included."""
    from torpor.cli.client import ask
    from torpor.cli.view.screen import print_json

    query = {"since_s": str(int(seconds(since or "0s", "--since")))}
    usage = ask(api, data_dir, lambda client: client.call("GET", "/v1/usage", query=query))
    if as_json:
        print_json(usage)
    else:
        _draw(usage, since)


def _draw(usage: dict[str, Any], since: str) -> None:
    from torpor.cli.view.screen import stderr, stdout
    from torpor.cli.view.table import number, table

    figures = (
        "jobs", "output tokens", "saved tokens", "busy, s", "idle, s", "waking, s", "wasted, s", "cost",
        "per 1,000 tokens", "busy only",
    )  # fmt: skip
    models = table("model", *figures, numbers=figures, title=f"GPU time of the last {since}")
    for name, row in [*sorted(usage["models"].items()), ("all", usage["total"])]:
        spent, cost = row["gpu_seconds"], row["cost"]
        models.add_row(
            name,
            number(row["jobs"]),
            number(row["output_tokens"]),
            number(row.get("saved_tokens", 0)),
            *(number(spent[part], 1) for part in ("busy", "idle", "waking", "wasted")),
            number(cost["total"], 4),
            number(cost["per_1k_output_tokens"], 4),
            number(cost["per_1k_output_tokens_busy_only"], 4),
        )
    stdout.print(models)
    shares = ("jobs", "output tokens", "saved tokens", "GPU, s", "cost", "all in")
    tenants = table("tenant", *shares, numbers=shares)
    for name, row in sorted(usage["tenants"].items(), key=lambda each: -each[1]["gpu_seconds"]):
        tenants.add_row(
            name,
            number(row["jobs"]),
            number(row["output_tokens"]),
            number(row.get("saved_tokens", 0)),
            number(row["gpu_seconds"], 1),
            number(row["cost"], 4),
            number(row["cost_all_in"], 4),
        )
    if usage["tenants"]:
        stdout.print(tenants)
    if not usage["price_per_gpu_hour"]:
        stderr.print("no price is set: TORPOR_GPU_PRICE_PER_HOUR of the api", style="dim")
