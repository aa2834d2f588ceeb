"""`torpor load`: a real load on a real Torpor, with a report."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import orjson
import typer
from rich.live import Live
from rich.table import Table

from torpor.cli.client import api_address, asked, checked_url
from torpor.cli.errors import UsageError, UserError
from torpor.cli.flags import with_options
from torpor.cli.options import DEFAULT_DATA_DIR, ApiOption, DataDir, Json
from torpor.cli.view.screen import stderr, stdout
from torpor.cli.view.table import number, table
from torpor.client import api_key
from torpor.load.growth import growing
from torpor.load.page import page
from torpor.load.run import Closed, Run
from torpor.load.sample import LoadSample, SampleOutcome
from torpor.load.schedule import Shape, parse_mix
from torpor.load.session import LoadPlan, Result, run_plan
from torpor.load.summary import percentiles
from torpor.load.watch import Watch
from torpor.local.data_dir import find_addresses
from torpor.simulator.load import Load
from torpor.simulator.trace import Trace, TraceError
from torpor.simulator.workload import Lengths, Profile, ProfileKind

_JSON: Final = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """What can be said on the command line, field by field."""

    profile: Annotated[
        ProfileKind, typer.Option(help="steady, step, burst, ramp or black-friday.")
    ] = ProfileKind.STEP
    trace: Annotated[
        Path | None, typer.Option(help="A trace as CSV (time, prompt and output tokens).")
    ] = None
    share: Annotated[int, typer.Option(min=1, help="Keep one row of the trace in so many.")] = 1
    speed: Annotated[float, typer.Option(min=0.01, help="Run the load's clock faster.")] = 1.0
    minutes: Annotated[float, typer.Option(min=0.05, help="How long, at most.")] = 1.0
    rate: Annotated[float, typer.Option(min=0, help="Base rate, requests a second.")] = 1.0
    peak: Annotated[float, typer.Option(min=0, help="Peak rate, requests a second.")] = 5.0
    users: Annotated[
        int, typer.Option(min=0, help="Closed loop with so many users instead of a rate.")
    ] = 0
    think: Annotated[float, typer.Option(min=0, help="Closed loop: pause between asks, s.")] = 0.0
    clients: Annotated[
        str, typer.Option(help="Kinds of clients and weights: async, sse, sync.")
    ] = "async:1,sse:1,sync:1"
    prompt_median: Annotated[float, typer.Option(min=1, help="Median prompt, tokens.")] = 100
    output_median: Annotated[float, typer.Option(min=1, help="Median answer, tokens.")] = 40
    prompt_cap: Annotated[int, typer.Option(min=1, help="Longest prompt, tokens.")] = 1024
    output_cap: Annotated[int, typer.Option(min=1, help="Longest answer, tokens.")] = 256
    patience: Annotated[float, typer.Option(min=1, help="A job unseen for so long is lost, s.")] = (
        900
    )
    seed: Annotated[int, typer.Option(help="The same seed gives the same load.")] = 0
    model: Annotated[str, typer.Option(help="Model; the first one served if empty.")] = ""
    soak: Annotated[
        bool, typer.Option("--soak", help="Fail when memory, files or keys grow; see the report.")
    ] = False
    as_json: Json = False
    html_file: Annotated[Path | None, typer.Option("--html", help="Write a page here.")] = None
    gpu_metrics: Annotated[str, typer.Option(help="Address of a dcgm-exporter.")] = ""
    key: Annotated[str, typer.Option(envvar="TORPOR_API_KEY", help="API key.")] = ""
    api: ApiOption = ""
    broker: Annotated[str, typer.Option(help="Address of the broker, for its metrics.")] = ""
    data_dir: DataDir = None


@with_options(LoadOptions)
def load(**given: Any) -> None:
    """Generate load on a Torpor and report what its clients saw. Exits 1 when a job was lost."""
    options = LoadOptions(**given)
    try:
        plan = _plan(options)
        result = asyncio.run(run_plan(plan, lambda run, watch: _show(run, watch, plan.title)))
    except (ValueError, TraceError) as error:
        raise UsageError(str(error)) from error
    _write(options, result)
    if options.as_json:
        stdout.print(orjson.dumps(result.report, option=_JSON).decode())
    else:
        _draw(result.report)
    grew = growing(result.report) if options.soak else []
    for line in grew:
        stderr.print(f"grows: {line}")
    if result.report["lost"] or grew:
        raise typer.Exit(1)


def _plan(options: LoadOptions) -> LoadPlan:
    """The load to run. Raises ValueError, TraceError or OSError for options that give none."""
    mix = parse_mix(options.clients)
    lengths = Lengths(prompt_median=options.prompt_median, output_median=options.output_median)
    load = Load(_source(options, lengths), options.seed)
    if options.trace is not None:
        next(load.requests(), None)  # what is wrong with it is known before anything is sent
    addresses = _addresses(options.api, options.broker, options.data_dir)
    closed = Closed(users=options.users, duration_s=options.minutes * 60, think_s=options.think)
    return LoadPlan(
        addresses=addresses,
        model=options.model or asyncio.run(_first_model(addresses["api"], options.key)),
        key=api_key(options.key),
        load=load,
        lengths=lengths,
        shape=Shape(
            mix=mix,
            speed=options.speed,
            prompt_cap=options.prompt_cap,
            output_cap=options.output_cap,
            seed=options.seed,
        ),
        closed=closed if options.users else None,
        until_s=options.minutes * 60,
        patience_s=options.patience,
        gpu_metrics=options.gpu_metrics,
    )


def _source(options: LoadOptions, lengths: Lengths) -> Trace | Profile:
    """When requests come: as a trace says, or as a profile does."""
    if options.trace is not None:
        return Trace(options.trace, share=options.share, seed=options.seed)
    speed = options.speed
    span_s = options.minutes * 60 * speed
    return Profile(options.profile, span_s, options.rate / speed, options.peak / speed, lengths)


def _write(options: LoadOptions, result: Result) -> None:
    """The report, where it was asked for."""
    if options.html_file is not None:
        text = page(result.report, result.samples, result.looks, datetime.now(UTC))
        options.html_file.write_text(text, encoding="utf-8")


def _addresses(api: str, broker: str, data_dir: Path | None) -> dict[str, str]:
    """Where to send and what to look at. A stack of the folder counts only if no api is named."""
    found = None if api else find_addresses(data_dir or DEFAULT_DATA_DIR)
    if found is None:
        named = checked_url(broker, "--broker") if broker else ""
        return {"api": api_address(api, data_dir), "broker": named}
    return {"api": found.api, "broker": found.broker, "activator": found.activator}


async def _first_model(address: str, key: str) -> str:
    if key:
        raise UsageError("name the --model: with a --key the list is not asked for")
    served = (await asked(address, lambda api: api.call("GET", "/v1/models")))["data"]
    if not served:
        raise UserError(f"no model is served at {address}")
    return str(served[0]["id"])


async def _show(run: Run, watch: Watch, title: str) -> None:
    """A live view on a terminal; a line every ten seconds elsewhere."""
    if stderr.is_terminal:
        with Live(console=stderr, refresh_per_second=2) as live:
            while True:
                live.update(_progress(run.samples, watch, title))
                await asyncio.sleep(0.5)
    while True:
        await asyncio.sleep(10)
        done = sum(s.outcome is SampleOutcome.COMPLETED for s in run.samples)
        stderr.print(f"{len(run.samples)} sent, {run.open} open, {done} completed")


def _progress(samples: list[LoadSample], watch: Watch, title: str) -> Table:
    done = [s for s in samples if s.outcome is SampleOutcome.COMPLETED]
    ended = [s for s in samples if s.ended_s]
    shown = Table(title=title, box=None, show_header=False)
    shown.add_row("sent", str(len(samples)))
    shown.add_row("open", str(len(samples) - len(ended)))
    shown.add_row("completed", str(len(done)))
    shown.add_row("anything else", str(len(ended) - len(done)))
    if found := percentiles(done[-200:], lambda s: s.total_s):
        text = f"p50 {found['p50']:.2f} s, p95 {found['p95']:.2f} s"
        shown.add_row("total of the last 200", text)
    if watch.looks:
        look = watch.looks[-1]
        shown.add_row("replicas ready", _number(look.ready))
        shown.add_row("waiting / in flight", f"{_number(look.depth)} / {_number(look.in_flight)}")
    return shown


def _draw(report: dict[str, Any]) -> None:
    columns = ("p50", "p95", "p99", "max", "count")
    rows = table("seconds", *columns, numbers=columns)
    for name, values in report["seconds"].items():
        if values:
            row = (number(values[column], 3) for column in columns[:-1])
            rows.add_row(name, *row, number(values["count"]))
    stdout.print(f"{report['setup']['title']}: {report['sent']} sent in {report['span_s']} s")
    outcomes = ", ".join(f"{n} {name}" for name, n in sorted(report["outcomes"].items()))
    stdout.print(f"{outcomes}; {report['lost']} lost")
    stdout.print(rows)
    rates, cost = report["throughput"], report["cost"]
    stdout.print(
        f"{rates['completed_per_s']} completed/s, {rates['output_tokens_per_s']} tokens/s; "
        f"{_number(cost['gpu_seconds'])} GPU-s, {_number(cost['per_1k_output_tokens'])} per 1,000"
    )
    for note in report["notes"]:
        stderr.print(note, style="dim")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4g}"
