"""`torpor simulate` and `torpor plan`: try a scaling policy before anyone pays for a GPU.

Mounted by the `torpor` application. It must not know how the model works: it parses and prints.
"""

from pathlib import Path
from typing import Annotated

import typer

from knative.autoscaling.setting import RefusedSettingsError, duration_s
from knative.cli.errors import UserError
from knative.cli.screen import stderr, stdout
from knative.simulator import command
from knative.simulator.black_friday import write_story
from knative.simulator.command import Settings
from knative.simulator.page import page
from knative.simulator.plan import Target, Tried, best
from knative.simulator.report import as_json, as_table, seconds
from knative.simulator.trace import TraceError
from knative.simulator.workload import ProfileKind

app = typer.Typer(help="Simulate scaling policies.", no_args_is_help=True)

TracePath = Annotated[
    Path | None, typer.Option(help="A CSV with time, prompt and output tokens, one request a row.")
]
Share = Annotated[int, typer.Option(min=1, help="Keep one row in so many, at random.")]
Hours = Annotated[float | None, typer.Option(min=0.01, help="Repeat the trace for so long.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same run.")]
ProfileName = Annotated[ProfileKind | None, typer.Option(help="A made load instead of a trace.")]
Minutes = Annotated[float, typer.Option(min=0.1, help="How long the profile lasts.")]
BaseRate = Annotated[float, typer.Option(min=0, help="Requests a second, at rest.")]
PeakRate = Annotated[float, typer.Option(min=0, help="Requests a second, at the peak.")]
Engine = Annotated[str, typer.Option(help="cpu-small, gpu-assumed, or a YAML file of speeds.")]
Concurrency = Annotated[int, typer.Option(min=0, help="Requests at once per replica.")]
ColdStart = Annotated[float, typer.Option(min=0, help="Seconds from asked to ready.")]
Provision = Annotated[float, typer.Option(min=0, help="Seconds until a new node is there.")]
WarmNodes = Annotated[int, typer.Option(min=0, help="Nodes that are always there, and paid.")]
GpusPerNode = Annotated[int, typer.Option(min=1, help="Replicas a node holds.")]
Timeout = Annotated[float | None, typer.Option(min=0, help="Seconds that a client waits.")]
Preemptions = Annotated[float, typer.Option(min=0, help="Lost nodes per replica and hour.")]
Tail = Annotated[float, typer.Option(min=0, help="Idle seconds after the last request.")]
Price = Annotated[float, typer.Option(min=0, help="Price of a GPU for an hour.")]
Wait = Annotated[str, typer.Option(help="The p95 wait to keep, such as 30s.")]


def simulate(
    trace: TracePath = None,
    profile: ProfileName = None,
    policy: Annotated[
        list[str] | None, typer.Option(help="kpa, keda, work or fixed:N; may be repeated.")
    ] = None,
    manifest: Annotated[
        list[Path] | None, typer.Option(help="A manifest with scaling in it; may be repeated.")
    ] = None,
    compare: Annotated[bool, typer.Option(help="kpa, keda and work side by side.")] = False,
    share: Share = 1,
    hours: Hours = None,
    seed: Seed = 0,
    minutes: Minutes = 60,
    base_rate: BaseRate = 0.1,
    peak_rate: PeakRate = 2.0,
    engine: Engine = "gpu-assumed",
    concurrency: Concurrency = 16,
    cold_start: ColdStart = 30,
    provision: Provision = 0,
    warm_nodes: WarmNodes = 0,
    gpus_per_node: GpusPerNode = 1,
    timeout: Timeout = None,
    preemptions: Preemptions = 0,
    tail: Tail = 600,
    gpu_price: Price = 4.5,
    p95_wait: Wait = "60s",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the report as JSON; - is the screen.")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="Write a page with plots.")
    ] = None,
) -> None:
    """Run a load through scaling policies and say what it costs and who waits."""
    settings = Settings(
        trace=trace,
        profile=profile,
        minutes=minutes,
        base_per_s=base_rate,
        peak_per_s=peak_rate,
        share=share,
        hours=hours,
        seed=seed,
        engine=engine,
        concurrency=concurrency,
        cold_start_s=cold_start,
        provision_s=provision,
        warm_nodes=warm_nodes,
        gpus_per_node=gpus_per_node,
        timeout_s=timeout,
        preemptions_per_hour=preemptions,
        tail_s=tail,
        gpu_price=gpu_price,
        p95_wait_s=_duration(p95_wait),
        policies=command.POLICIES if compare else tuple(policy or ("kpa",)),
        manifests=tuple(manifest or ()),
    )
    try:
        load, scenario, reports = command.simulate_all(settings)
    except (RefusedSettingsError, TraceError, OSError) as error:
        raise UserError(str(error)) from error
    notes = command.notes(load, scenario, settings)
    if json_file == Path("-"):
        stdout.print(as_json(reports), markup=False, end="")
        return
    stdout.print(as_table(reports, title=load.title))
    for note in notes[1:]:
        stderr.print(note, style="dim", markup=False)
    if json_file is not None:
        json_file.write_text(as_json(reports), encoding="utf-8")
    if html_file is not None:
        html_file.write_text(page(load.title, notes, reports), encoding="utf-8")


def plan(
    trace: TracePath = None,
    profile: ProfileName = None,
    p95_wait: Wait = "30s",
    gpu_price: Price = 4.5,
    warm_start: Annotated[
        float | None, typer.Option(min=0, help="Cold start with a warm parent; tried as well.")
    ] = None,
    share: Share = 1,
    hours: Hours = None,
    seed: Seed = 0,
    minutes: Minutes = 60,
    base_rate: BaseRate = 0.1,
    peak_rate: PeakRate = 2.0,
    engine: Engine = "gpu-assumed",
    concurrency: Concurrency = 16,
    cold_start: ColdStart = 30,
    provision: Provision = 0,
    tail: Tail = 600,
) -> None:
    """Search for the cheapest scaling that keeps a p95 wait, and print the manifest for it."""
    settings = Settings(
        trace=trace,
        profile=profile,
        minutes=minutes,
        base_per_s=base_rate,
        peak_per_s=peak_rate,
        share=share,
        hours=hours,
        seed=seed,
        engine=engine,
        concurrency=concurrency,
        cold_start_s=cold_start,
        provision_s=provision,
        tail_s=tail,
        gpu_price=gpu_price,
        p95_wait_s=_duration(p95_wait),
    )
    try:
        with stderr.status("trying policies") as status:
            tried = command.plan_all(
                settings, warm_start, lambda one: status.update(f"tried {one.candidate.name}")
            )
    except (RefusedSettingsError, TraceError, OSError) as error:
        raise UserError(str(error)) from error
    _print_plan(tried, Target(settings.p95_wait_s))


def black_friday(
    folder: Annotated[Path, typer.Argument(help="Where the plots go.")] = Path("docs/images"),
) -> None:
    """Replay a retail peak: an HPA on CPU beside KEDA on queue depth and p95, with plots."""
    stdout.print(write_story(folder))


app.command()(simulate)
app.command()(plan)
app.command(name="black-friday")(black_friday)


def _print_plan(tried: list[Tried], target: Target) -> None:
    chosen = best(tried, target)
    if chosen is None:
        closest = min(tried, key=lambda one: one.report.wait_s.p95)
        raise UserError(
            f"none of {len(tried)} settings keeps a p95 wait of {target.p95_wait_s:g} s; the "
            f"closest is {closest.candidate.name} with {seconds(closest.report.wait_s.p95)}"
        )
    meeting = [one for one in tried if one.meets(target)]
    title = f"{len(meeting)} of {len(tried)} settings keep p95 wait {target.p95_wait_s:g} s"
    stdout.print(as_table([one.report for one in meeting[:4]], title=title))
    stderr.print(f"cheapest: {chosen.candidate.name}, cost {chosen.report.cost:.3f}")
    if chosen.candidate.patch is not None:
        stdout.print(chosen.candidate.patch_text, markup=False, end="")


def _duration(text: str) -> float:
    try:
        return duration_s(text)
    except ValueError as error:
        raise UserError(f"{text!r} is no duration; write it as 30s, 2m or 1h") from error
