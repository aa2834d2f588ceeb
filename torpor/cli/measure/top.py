"""`torpor top`: queue, replicas, tokens, jobs and cost, refreshed live."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import aiohttp
import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from torpor.cli.client import api_address, checked_url
from torpor.cli.errors import UserError
from torpor.cli.options import DEFAULT_DATA_DIR, ApiOption, DataDir
from torpor.cli.view.screen import stdout
from torpor.load.watch import Scrape, scrape
from torpor.local.data_dir import find_addresses

_LANES = ("interactive", "default", "batch")


@dataclass(frozen=True, slots=True)
class TopView:
    """The figures of all parts at one moment."""

    at_s: float
    api: Scrape
    broker: Scrape
    activator: Scrape


def top(
    api: ApiOption = "",
    broker: Annotated[str, typer.Option(help="Address of the broker.")] = "",
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Show two looks apart and end.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Show queue, replicas, jobs and cost live. Ctrl-C ends it."""
    found = find_addresses(data_dir or DEFAULT_DATA_DIR)
    parts = {
        "api": api_address(api, data_dir),
        "broker": checked_url(broker, "--broker")
        if broker
        else (found.broker if found and not api else ""),
        "activator": found.activator if found and not api else "",
    }
    try:
        asyncio.run(_watch({name: at.rstrip("/") for name, at in parts.items()}, every, once))
    except KeyboardInterrupt:
        return


async def _watch(parts: Mapping[str, str], every_s: float, is_once: bool) -> None:
    async with aiohttp.ClientSession() as session:
        before = await _look(session, parts)
        if not before.api.values:
            raise UserError(f"no metrics at {parts['api']}/metrics; name a Torpor with --api")
        await asyncio.sleep(every_s)
        now = await _look(session, parts)
        if is_once:
            stdout.print(draw(before, now))
            return
        answered_s = now.at_s
        with Live(draw(before, now), console=stdout, auto_refresh=False, screen=True) as live:
            while True:
                await asyncio.sleep(every_s)
                before, now = now, await _look(session, parts)
                answered_s = now.at_s if now.api.values else answered_s
                live.update(draw(before, now, silent_s=now.at_s - answered_s), refresh=True)


async def _look(session: aiohttp.ClientSession, parts: Mapping[str, str]) -> TopView:
    names = ("api", "broker", "activator")
    seen = await asyncio.gather(*(scrape(session, parts[name]) for name in names))
    return TopView(asyncio.get_running_loop().time(), *seen)


def draw(before: TopView, now: TopView, *, silent_s: float = 0.0) -> RenderableType:
    """The whole screen; an unknown figure is a dash, and `silent_s` says why."""
    parts: list[RenderableType] = [_queue(now), _replicas(before, now), _jobs(before, now)]
    if endpoints := sorted(now.api.by("torpor_provider_breaker_open", "endpoint")):
        parts.append(_providers(now, endpoints))
    if tools := sorted(q for q in now.broker.by("torpor_queue_events", "queue") if _is_tool(q)):
        parts.append(_tools(now, tools))
    if silent_s:
        parts.insert(0, Text(f"the api has not answered for {silent_s:.0f} s", style="bold red"))
    return Group(*parts)


def _table(first: str, *columns: str) -> Table:
    """Rows are one line each, however narrow the terminal, so that the last ones stay visible."""
    table = Table(box=None, header_style="bold")
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, no_wrap=True, justify="right")
    return table


def _queue(now: TopView) -> Table:
    table = _table("queue", *_LANES)
    rows = {
        "waiting": "torpor_queue_depth",
        "oldest, s": "torpor_queue_oldest_age_seconds",
        "expected wait, s": "torpor_queue_expected_wait_seconds",
    }
    for title, name in rows.items():
        table.add_row(title, *(_text(now.broker.highest(name, lane=lane)) for lane in _LANES))
    return table


def _replicas(before: TopView, now: TopView) -> Table:
    table = _table("replicas", "")
    table.add_row("wanted", _text(now.activator.total("torpor_replicas_wanted")))
    table.add_row("ready", _text(now.api.total("torpor_replicas_ready")))
    table.add_row("waking", _text(now.api.total("torpor_replicas_waking")))
    table.add_row("jobs in flight", _text(now.broker.total("torpor_jobs_in_flight")))
    for state in ("busy", "idle", "waking"):
        table.add_row(
            f"GPUs {state}", _text(_rate(before, now, "torpor_gpu_seconds_total", state=state))
        )
    return table


def _jobs(before: TopView, now: TopView) -> Table:
    table = _table("jobs", "all", "a second")
    for title, name, labels in (
        ("accepted", "torpor_api_submits_total", {"outcome": "accepted"}),
        ("completed", "torpor_jobs_ended_total", {"state": "completed"}),
        ("failed", "torpor_jobs_ended_total", {"state": "failed"}),
        ("retries", "torpor_job_retries_total", {}),
        ("dead letters", "torpor_dead_letters_total", {}),
        ("by a stand-in", "torpor_fallback_jobs_total", {}),
        ("withheld", "torpor_withheld_jobs_total", {}),
        ("asked again", "torpor_job_attempts_total", {"outcome": "rejected"}),
        ("over a budget", "torpor_api_limited_total", {"limit": "budget_per_month"}),
        ("output tokens", "torpor_tokens_total", {"kind": "output"}),
        ("cost", "torpor_gpu_cost_total", {}),
    ):
        every = now.api.total(name, **labels)
        table.add_row(title, _text(every), _text(_rate(before, now, name, **labels)))
    return table


def _providers(now: TopView, endpoints: Sequence[str]) -> Table:
    """Breaker and limits of each endpoint; of several models with the same one, the worst."""
    table = _table("provider", "breaker", "pause, s", "requests left", "tokens left")
    for endpoint in endpoints:
        is_open = now.api.highest("torpor_provider_breaker_open", endpoint=endpoint)
        pause_s = now.api.highest("torpor_provider_throttled_seconds", endpoint=endpoint)
        left = (
            now.api.highest("torpor_provider_left", endpoint=endpoint, of=of)
            for of in ("requests", "tokens")
        )
        table.add_row(endpoint, "open" if is_open else "closed", _text(pause_s), *map(_text, left))
    return table


def _is_tool(queue: str) -> bool:
    return queue.startswith("tool-")


def _tools(now: TopView, queues: Sequence[str]) -> Table:
    """The calls of each tool server."""
    table = _table("tool", "calls", "to try again", "settled a minute")
    for queue in queues:
        found = (
            now.broker.highest(name, queue=queue)
            for name in (
                "torpor_queue_events",
                "torpor_queue_retrying",
                "torpor_queue_settled_per_minute",
            )
        )
        table.add_row(queue.removeprefix("tool-"), *map(_text, found))
    return table


def _rate(before: TopView, now: TopView, name: str, **labels: str) -> float | None:
    """The rate per second between two reads; None when one of them lacks it or a process was restarted."""
    first, last = before.api.total(name, **labels), now.api.total(name, **labels)
    if first is None or last is None or last < first or now.at_s <= before.at_s:
        return None
    return (last - first) / (now.at_s - before.at_s)


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4g}"
