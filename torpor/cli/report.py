"""`torpor report`: what the last hours cost, and whom for."""

import asyncio
from typing import Annotated, Any

import orjson
import typer
from rich.table import Table

from knative.autoscaling.setting import duration_s
from torpor.cli.client import api_address, connected
from torpor.cli.errors import UserError
from torpor.cli.jobs import DEFAULT_DATA_DIR, ApiOption, DataDir, Json
from torpor.cli.view.screen import stderr, stdout


def report(
    since: Annotated[str, typer.Option(help="How far back: 90m, 24h (at most 192h).")] = "24h",
    api: ApiOption = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: Json = False,
) -> None:
    """Show GPU time, tokens and cost by model and tenant; per 1,000 tokens with everything in."""
    try:
        span_s = int(duration_s(since))
    except ValueError as error:
        raise UserError(f"{since!r} is no duration; write it as 90m or 24h") from error
    usage = asyncio.run(_ask(api_address(api, data_dir), span_s))
    if as_json:
        stdout.print(orjson.dumps(usage).decode())
    else:
        _draw(usage, since)


async def _ask(address: str, span_s: int) -> dict[str, Any]:
    async with connected(address) as api:
        usage: dict[str, Any] = await api.call("GET", "/v1/usage", query={"since_s": str(span_s)})
        return usage


def _draw(usage: dict[str, Any], since: str) -> None:
    table = Table(
        "model", "jobs", "output tokens", "busy s", "idle s", "waking s", "wasted s", "cost",
        "per 1k tokens", "busy only", box=None, title=f"GPU time of the last {since}",
    )  # fmt: skip
    for name, row in [*sorted(usage["models"].items()), ("all", usage["total"])]:
        seconds, cost = row["gpu_seconds"], row["cost"]
        table.add_row(
            name,
            str(row["jobs"]),
            str(row["output_tokens"]),
            *(f"{seconds[part]:.1f}" for part in ("busy", "idle", "waking", "wasted")),
            f"{cost['total']:.4f}",
            _money(cost["per_1k_output_tokens"]),
            _money(cost["per_1k_output_tokens_busy_only"]),
        )
    stdout.print(table)
    tenants = Table("tenant", "jobs", "output tokens", "GPU s", "cost", "all in", box=None)
    for name, row in sorted(usage["tenants"].items(), key=lambda each: -each[1]["gpu_seconds"]):
        tenants.add_row(
            name,
            str(row["jobs"]),
            str(row["output_tokens"]),
            f"{row['gpu_seconds']:.1f}",
            f"{row['cost']:.4f}",
            _money(row["cost_all_in"]),
        )
    if usage["tenants"]:
        stdout.print(tenants)
    if not usage["price_per_gpu_hour"]:
        stderr.print("no price is set: TORPOR_GPU_PRICE_PER_HOUR of the api", style="dim")


def _money(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
