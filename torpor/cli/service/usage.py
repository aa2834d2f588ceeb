"""`torpor usage`: what the last hours cost, and for whom; a tenant's key sees its own."""

import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import orjson
import typer

from torpor.cli.job.submit import seconds
from torpor.cli.options import ApiOption, DataDir, Json

if TYPE_CHECKING:
    from torpor.client import AsyncClient

_FORBIDDEN: Final = 403
_BY_DAY: Final = "/v1/organization/usage/completions"


class Group(StrEnum):
    """The fields that the rows of a day can be grouped by."""

    KEY = "key"
    MODEL = "model"


_GROUPS: Final = {Group.KEY: "api_key_id", Group.MODEL: "model"}


def usage(
    since: Annotated[str, typer.Option(help="How far back: 90m, 24h (at most 192h).")] = "24h",
    own: Annotated[
        bool,
        typer.Option(
            "--own", help="Only your tenant, with its limits; all that most keys may see."
        ),
    ] = False,
    days: Annotated[
        int, typer.Option(min=0, max=31, help="Your tenant's last days instead, a row a day.")
    ] = 0,
    by: Annotated[
        list[Group] | None, typer.Option(help="With --days: a row a key, or a model. Repeatable.")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="With --days: CSV.")] = False,
    api: ApiOption = "",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Show GPU time, tokens and cost by model and tenant; per 1,000 tokens all included."""
    from torpor.cli.client import ask
    from torpor.cli.errors import UsageError
    from torpor.cli.view.screen import print_json

    if days:
        return _report_days(days, by or [], as_csv, as_json, api, data_dir)
    if as_csv or by:
        raise UsageError("--csv and --by go with --days")
    query = {"since_s": str(int(seconds(since or "0s", "--since")))}
    usage = ask(api, data_dir, lambda client: _asked(client, query, own))
    if as_json:
        print_json(usage)
    elif usage["object"] == "usage":
        _draw(usage, since)
    else:
        _draw_own(usage, since)


def _report_days(
    days: int, by: list[Group], as_csv: bool, as_json: bool, api: str, data_dir: Path | None
) -> None:
    from torpor.cli.client import ask
    from torpor.cli.view.screen import print_json

    groups = ",".join(_GROUPS[each] for each in by)
    query = {"limit": str(days), "format": "csv" if as_csv else "json"}
    if groups:
        query["group_by"] = groups
    raw = ask(api, data_dir, lambda client: client.call_raw("GET", _BY_DAY, query=query))
    if as_csv:
        sys.stdout.write(raw.decode())
    elif as_json:
        print_json(orjson.loads(raw))
    else:
        _draw_days(orjson.loads(raw), by)


def _draw_days(page: dict[str, Any], by: list[Group]) -> None:
    from torpor.cli.view.screen import stdout
    from torpor.cli.view.table import number, table

    figures = (
        "jobs",
        "input tokens",
        "cached",
        "output tokens",
        "thought",
        "saved",
        "GPU, s",
        "cost",
    )
    rows = table("day", *by, *figures, numbers=figures, title="Used by your tenant, UTC")
    for bucket in page["data"]:
        day = time.strftime("%Y-%m-%d", time.gmtime(bucket["start_time"]))
        for used in bucket["results"]:
            saved = used["saved"]
            rows.add_row(
                day,
                *(used[_GROUPS[each]] or "none" for each in by),
                number(used["num_model_requests"]),
                number(used["input_tokens"]),
                number(used.get("input_cached_tokens", 0)),
                number(used["output_tokens"]),
                number(used["thought_tokens"]),
                number(saved["input_tokens"] + saved["output_tokens"]),
                number(used["gpu_seconds"], 1),
                number(used["cost"], 4),
            )
    stdout.print(rows)


async def _asked(client: "AsyncClient", query: dict[str, str], own: bool) -> dict[str, Any]:
    """The usage of every tenant, or of the caller's own, with its limits."""
    from torpor.client import TorporError

    if not own:
        try:
            return dict(await client.call("GET", "/v1/usage", query=query))
        except TorporError as error:
            if error.status != _FORBIDDEN:
                raise
    tenant = await client.call("GET", "/v1/tenant")
    used = await client.call("GET", "/v1/tenant/usage", query=query)
    return {
        **used,
        "tenant": tenant["id"],
        "limits": tenant["limits"],
        "budgets": tenant.get("budgets", []),
    }


def _draw_own(usage: dict[str, Any], since: str) -> None:
    from torpor.cli.view.screen import stdout
    from torpor.cli.view.table import number, table

    total = usage["total"]
    shares = ("jobs", "input tokens", "output tokens", "GPU, s", "cost", "all in")
    tenant = table("tenant", *shares, numbers=shares, title=f"The last {since}")
    tenant.add_row(
        usage["tenant"],
        number(total["jobs"]),
        number(total["input_tokens"]),
        number(total["output_tokens"]),
        number(total["gpu_seconds"], 1),
        number(total["cost"], 4),
        number(total["cost_all_in"], 4),
    )
    stdout.print(tenant)
    limits = table("limit", "used", "of", numbers=("used", "of"))
    for name, use in usage["limits"].items():
        limits.add_row(name, number(use["used"]), number(use["limit"]) if use["limit"] else "none")
    stdout.print(limits)
    for each in usage["budgets"]:
        _draw_budget(each)


def _draw_budget(budget: dict[str, Any]) -> None:
    from torpor.cli.view.screen import stdout
    from torpor.cli.view.table import number, table

    shares = ("budget", "soft", "spent", "held", "left")
    rows = table(f"{budget['of']}, {budget['period']}", *shares, numbers=shares)
    amounts = [budget[n] for n in ("budget", "soft_budget", "spent", "held", "left")]
    rows.add_row(budget["currency"], *("none" if a is None else number(a, 4) for a in amounts))
    stdout.print(rows)


def _draw_services(usage: dict[str, Any]) -> None:
    from torpor.cli.view.screen import stdout
    from torpor.cli.view.table import number, table

    services, each = usage["services"], usage["cost_per_1k_output_tokens"]
    figures = ("CPU, s", "commands", "cost", "per 1,000 tokens")
    rows = table("beside GPUs", *figures, numbers=figures)
    api, store = services["api_cpu_seconds"], services["store_cpu_seconds"]
    rows.add_row("api", number(api, 1), "", "", "")
    rows.add_row("store", number(store, 1), number(services["store_commands"]), "", "")
    cost = number(services["cost"], 4)
    rows.add_row("both", number(api + store, 1), "", cost, number(each["services"], 4))
    paid = number(usage["providers_cost"], 4)
    rows.add_row("providers", "", "", paid, number(each["providers"], 4))
    total = number(each["total"], 4)
    rows.add_row("all, GPUs too", "", "", "", total)
    stdout.print(rows)


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
    _draw_answers(usage["models"])
    _draw_audits(usage.get("audits") or {})
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
    if "services" in usage:  # not of an older api
        _draw_services(usage)
    if not usage["price_per_gpu_hour"]:
        stderr.print("no price is set: TORPOR_GPU_PRICE_PER_HOUR of the api", style="dim")


def _draw_answers(models: dict[str, Any]) -> None:
    """Answers of stand-ins, withheld ones and those asked again, of the models that had any."""
    from torpor.cli.view.screen import stdout
    from torpor.cli.view.table import number, table

    kinds = {"by a stand-in": "stood_in", "withheld": "withheld", "asked again": "asked_again"}
    answers = table("answers", *kinds, numbers=tuple(kinds))
    for name, row in sorted(models.items()):
        counts = [row.get(kind, 0) for kind in kinds.values()]
        if any(counts):
            answers.add_row(name, *(number(count) for count in counts))
    if answers.row_count:
        stdout.print(answers)


def _draw_audits(models: dict[str, Any]) -> None:
    """How often answers say what their passages do not, of the models whose answers are audited."""
    from torpor.cli.view.screen import stdout
    from torpor.cli.view.table import number, table

    figures = ("audited", "unsupported, %", "95 % from", "to", "kappa")
    answers = table("answers", "critic", *figures, numbers=figures)
    for name, row in sorted(models.items()):
        shares = [row["rate"], row["low"], row["high"]]
        answers.add_row(
            name,
            row["critic"],
            number(row["audited_jobs"]),
            *(number(None if each is None else 100 * each, 1) for each in shares),
            number(row["kappa"], 2),
        )
    if models:
        stdout.print(answers)
