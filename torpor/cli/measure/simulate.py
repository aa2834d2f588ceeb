"""`torpor simulate` and `torpor plan`: evaluate scaling policies in simulation.

Mounted by the `torpor` application. It parses and prints; `torpor.simulator` does the work.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from eventing.telemetry.cost import FREE, TokenPrice
from knative.autoscaling.setting import RefusedSettingsError, duration_s
from knative.deploy.errors import BuildError
from torpor.cli.errors import UsageError, UserError
from torpor.cli.flags import with_options
from torpor.cli.options import Json
from torpor.cli.view.screen import stderr, stdout
from torpor.simulator import command
from torpor.simulator.black_friday import write_report
from torpor.simulator.candidate import Place
from torpor.simulator.command import Settings
from torpor.simulator.engine_file import read_engine
from torpor.simulator.plan import Tried, WaitTarget, best
from torpor.simulator.report.page import page, verdict
from torpor.simulator.report.report import as_json, as_table, seconds
from torpor.simulator.trace import TraceError
from torpor.simulator.workload import ProfileKind
from torpor.tool_loops import JobsError, loop_notes, measured, read_jobs

app = typer.Typer(help="Simulate scaling policies.", no_args_is_help=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldOptions:
    """Options of both commands: the load, the engine and the cluster."""

    trace: Annotated[
        Path | None,
        typer.Option(help="A CSV with time, prompt and output tokens, one request a row."),
    ] = None
    profile: Annotated[ProfileKind | None, typer.Option(help="A made load instead of a trace.")] = (
        None
    )
    share: Annotated[int, typer.Option(min=1, help="Keep one row in so many, at random.")] = 1
    hours: Annotated[float | None, typer.Option(min=0.01, help="Repeat the trace for so long.")] = (
        None
    )
    seed: Annotated[int, typer.Option(help="The same seed gives the same run.")] = 0
    minutes: Annotated[float, typer.Option(min=0.1, help="How long the profile lasts.")] = 60
    base_rate: Annotated[float, typer.Option(min=0, help="Requests a second, at rest.")] = 0.1
    peak_rate: Annotated[float, typer.Option(min=0, help="Requests a second, at the peak.")] = 2.0
    engine: Annotated[
        str, typer.Option(help="cpu-small, gpu-assumed, or a YAML file of speeds.")
    ] = "gpu-assumed"
    concurrency: Annotated[int, typer.Option(min=0, help="Requests at once per replica.")] = 16
    cold_start: Annotated[float, typer.Option(min=0, help="Seconds from asked to ready.")] = 30
    provision: Annotated[float, typer.Option(min=0, help="Seconds until a new node is there.")] = 0
    warm_nodes: Annotated[
        int, typer.Option(min=0, help="Nodes that are always there, and paid.")
    ] = 0
    gpus_per_node: Annotated[int, typer.Option(min=1, help="Replicas a node holds.")] = 1
    timeout: Annotated[float | None, typer.Option(min=0, help="Seconds that a client waits.")] = (
        None
    )
    preemptions: Annotated[float, typer.Option(min=0, help="Lost nodes per replica and hour.")] = 0
    tail: Annotated[float, typer.Option(min=0, help="Idle seconds after the last request.")] = 600
    gpu_price: Annotated[float, typer.Option(min=0, help="Price of a GPU for an hour.")] = 4.5
    p95_wait: Annotated[str, typer.Option(help="The p95 wait to keep, such as 30s.")] = "60s"

    def settings(self, **more: Any) -> Settings:
        """The parsed settings. Raises `UserError` for an invalid duration."""
        return Settings(
            trace=self.trace,
            profile=self.profile,
            minutes=self.minutes,
            base_per_s=self.base_rate,
            peak_per_s=self.peak_rate,
            share=self.share,
            hours=self.hours,
            seed=self.seed,
            engine=self.engine,
            concurrency=self.concurrency,
            cold_start_s=self.cold_start,
            provision_s=self.provision,
            warm_nodes=self.warm_nodes,
            gpus_per_node=self.gpus_per_node,
            timeout_s=self.timeout,
            preemptions_per_hour=self.preemptions,
            tail_s=self.tail,
            gpu_price=self.gpu_price,
            p95_wait_s=_duration(self.p95_wait, "--p95-wait"),
            **more,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateOptions(WorldOptions):
    """Options of `torpor simulate` only."""

    policy: Annotated[
        list[str] | None, typer.Option(help="kpa, keda, work or fixed:N; may be repeated.")
    ] = None
    manifest: Annotated[
        list[Path] | None, typer.Option(help="A manifest, or a folder of them; may be repeated.")
    ] = None
    compare: Annotated[bool, typer.Option(help="kpa, keda and work side by side.")] = False
    as_json: Json = False
    html_file: Annotated[Path | None, typer.Option("--html", help="Write a page with plots.")] = (
        None
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions(WorldOptions):
    """Options of `torpor plan` only."""

    p95_wait: Annotated[str, typer.Option(help="The p95 wait to keep, such as 30s.")] = "30s"
    warm_start: Annotated[
        float | None, typer.Option(min=0, help="Cold start with a warm parent; tried as well.")
    ] = None
    model: Annotated[str, typer.Option(help="The model that the patch is for.")] = Place().model
    namespace: Annotated[str, typer.Option(help="Where its objects are.")] = Place().namespace
    cache_ttl: Annotated[
        str,
        typer.Option(help="Lifetime of kept answers, for a trace whose rows have a prompt_hash."),
    ] = "1h"
    input_price: Annotated[
        float, typer.Option(min=0, help="Of a provider, for a million tokens of prompts.")
    ] = 0
    output_price: Annotated[
        float, typer.Option(min=0, help="Of a provider, for a million tokens of answers.")
    ] = 0
    fallback_after: Annotated[
        str, typer.Option(help="How long a job waits here until the provider answers it.")
    ] = "10s"
    jobs: Annotated[
        Path | None,
        typer.Option(
            help="Jobs as GET /v1/jobs/ID shows them, one a line: what sleeping between their turns costs."
        ),
    ] = None


@with_options(SimulateOptions)
def simulate(**given: Any) -> None:
    """Simulate a load under scaling policies; reports cost and waits."""
    options = SimulateOptions(**given)
    settings = options.settings(
        policies=command.POLICIES if options.compare else tuple(options.policy or ("kpa",)),
        manifests=tuple(options.manifest or ()),
    )
    try:
        load, scenario, reports = command.simulate_all(settings)
    except (RefusedSettingsError, TraceError, BuildError) as error:
        raise UsageError(str(error)) from error
    notes = command.notes(load, scenario, settings)
    if options.as_json:
        stdout.print(as_json(reports), end="")
    else:
        stdout.print(as_table(reports, title=load.title))
        for note in notes[1:]:
            stderr.print(note, style="dim")
        if len(reports) > 1:
            stderr.print(verdict(reports, WaitTarget(settings.p95_wait_s)))
    if options.html_file is not None:
        target = WaitTarget(settings.p95_wait_s)
        html = page(load.title, notes, reports, target, datetime.now(UTC))
        options.html_file.write_text(html, encoding="utf-8")


@with_options(PlanOptions)
def plan(**given: Any) -> None:
    """Search for the cheapest scaling that keeps a p95 wait, and print the manifest for it."""
    options = PlanOptions(**given)
    settings, ttl_s = options.settings(), _duration(options.cache_ttl, "--cache-ttl")
    after_s = _duration(options.fallback_after, "--fallback-after")
    if options.jobs is not None:
        _print_loops(options.jobs, settings)
        if settings.trace is None and settings.profile is None:
            return
    try:
        with stderr.status("trying policies") as status:
            tried = command.plan_all(
                settings,
                options.warm_start,
                lambda one: status.update(f"tried {one.candidate.name}"),
            )
    except (RefusedSettingsError, TraceError, BuildError) as error:
        raise UsageError(str(error)) from error
    place = Place(options.model, options.namespace)
    chosen = _print_plan(tried, WaitTarget(settings.p95_wait_s), place)
    if note := command.prefix_note(settings):
        stderr.print(note)
    if note := command.cache_note(settings, chosen.candidate, chosen.report.cost, ttl_s):
        stderr.print(note)
    tokens = TokenPrice(input_per_1m=options.input_price, output_per_1m=options.output_price)
    if tokens != FREE:
        with stderr.status("trying a provider beside it"):
            said = (
                command.tier_note(settings, chosen, tokens),
                command.fallback_note(settings, tried, chosen, tokens, after_s),
            )
        for line in said:
            stderr.print(line)


def black_friday(
    folder: Annotated[Path, typer.Argument(help="Where the plots go.")] = Path("docs/images"),
) -> None:
    """Replay a retail peak: an HPA on CPU beside KEDA on queue depth and p95, with plots."""
    stdout.print(write_report(folder))


app.command()(simulate)
app.command()(plan)
app.command(name="black-friday")(black_friday)


def _print_plan(tried: list[Tried], target: WaitTarget, place: Place) -> Tried:
    chosen = best(tried, target)
    if chosen is None:
        closest = min(tried, key=lambda one: one.report.wait_s.p95)
        raise UserError(
            f"none of {len(tried)} settings keeps a p95 wait of {target.p95_wait_s:g} s; the "
            f"closest is {closest.candidate.name} with {seconds(closest.report.wait_s.p95)}"
        )
    meeting = [one for one in tried if one.meets(target)]
    title = f"{len(meeting)} of {len(tried)} settings keep p95 wait {target.p95_wait_s:g} s"
    stderr.print(as_table([one.report for one in meeting[:4]], title=title))
    stderr.print(f"cheapest: {chosen.candidate.name}, cost {chosen.report.cost:.3f}")
    for remark in chosen.candidate.remarks:
        stderr.print(remark)
    if text := chosen.candidate.patch_text(place):
        stderr.print("merge it into the rendered manifests: kustomize `patches: [{path: FILE}]`")
        stdout.print(text, end="")
    return chosen


def _print_loops(path: Path, settings: Settings) -> None:
    """What the turns of measured jobs cost between each other."""
    try:
        loops = measured(read_jobs(path))
    except JobsError as error:
        raise UsageError(str(error)) from error
    speed = read_engine(settings.engine).prefill_tokens_per_s
    for line in loop_notes(loops, settings.cold_start_s, speed, settings.gpu_price):
        stdout.print(line)


def _duration(text: str, flag: str) -> float:
    try:
        return duration_s(text)
    except ValueError as error:
        raise UsageError(f"{flag}: {text!r} is no duration; write it as 30s, 2m or 1h") from error
