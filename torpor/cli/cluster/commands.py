"""`torpor deploy` and the other commands on a cluster.

Mounted by the `torpor` application, each function as a command; `app` holds all of them as a group. It parses and
prints; decisions are in `knative.deploy`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Annotated, Final

import typer
from rich.text import Text

from knative.deploy.build import load
from knative.deploy.doctor import Severity, examine
from knative.deploy.doctor import report as doctor_view
from knative.deploy.emit import Resource
from knative.deploy.errors import ApplyRefused, NotReady
from knative.deploy.readiness import ObjectReadiness
from knative.deploy.rollout import canary as split
from knative.deploy.rollout import cluster_view, rollout, verdict
from knative.deploy.rollout import release as history
from knative.deploy.rollout.client import Cluster, Ref, connected
from knative.deploy.rollout.rollout import RolloutOptions, RolloutPlan, RolloutStep
from knative.deploy.rollout.wait import wait_until_ready
from torpor.cli.cluster.manifests import (
    DEFAULT_SOURCE,
    AsJson,
    Context,
    Namespace,
    doctor,
    render,
    run,
)
from torpor.cli.errors import UsageError
from torpor.cli.step_settings import refuse_wrong_steps
from torpor.cli.view.screen import stderr, stdout
from torpor.cli.view.table import table

app: Final = typer.Typer(
    name="cluster", help="Torpor on a Kubernetes cluster.", no_args_is_help=True
)
app.command()(render)
app.command()(doctor)

Source = Annotated[str, typer.Argument(help="A kustomize folder, a YAML file, or - .")]
Timeout = Annotated[float, typer.Option(min=1, help="Seconds to wait until all is ready.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
TakeOver = Annotated[bool, typer.Option(help="Take fields that another manager owns.")]
Model = Annotated[str, typer.Argument(help="The model: the InferenceService's name.")]


class _Lines:
    """Shows a deploy as lines: one an object, one a change of state."""

    def applied(self, step: RolloutStep) -> None:
        stderr.print(f"  {step.action:<7} {step.ref}")

    def waiting(self, ref: Ref, state: ObjectReadiness, stuck: Sequence[str]) -> None:
        word = ("ready", "green") if state.is_ready else f"waits: {state.reason}"
        stderr.print(Text.assemble(f"  {ref}: ", word))
        for reason in stuck:
            stderr.print(f"      {reason}", style="yellow")


@app.command()
def deploy(
    source: Source = DEFAULT_SOURCE,
    context: Context = None,
    namespace: Namespace = "torpor",
    dry_run: Annotated[bool, typer.Option(help="Show the difference and end.")] = False,
    yes: Yes = False,
    take_over: TakeOver = False,
    timeout: Timeout = 900,
    wait: Annotated[bool, typer.Option(help="Wait until everything is ready.")] = True,
    force: Annotated[bool, typer.Option(help="Deploy in spite of the doctor's errors.")] = False,
    canary: Annotated[
        float | None, typer.Option(min=0.4, max=99.6, help="Percent of jobs for a new version.")
    ] = None,
    model: Annotated[str, typer.Option(help="The model that the canary is of.")] = "thinker",
    image: Annotated[str | None, typer.Option(help="The new version's image.")] = None,
    model_uri: Annotated[str | None, typer.Option(help="The new version's weights.")] = None,
    traffic: Annotated[
        int | None,
        typer.Option(min=0, max=100, help="Percent of all calls for the new version, by KServe."),
    ] = None,
) -> None:
    """Apply manifests: doctor, dry run, difference, apply, wait."""
    if (image or model_uri) and canary is None and traffic is None:
        raise UsageError("--image and --model-uri are of a new version: add --canary or --traffic")
    if canary is not None and traffic is not None:
        raise UsageError("give --canary or --traffic, not both")

    async def work() -> None:
        resources = await load(source)
        change = split.Change(image=image, model_uri=model_uri)
        if canary is not None:
            resources = split.with_canary(resources, model, canary, change)
        terms = RolloutOptions(namespace, take_over, timeout, f"deploy of {source}")
        async with connected(context) as cluster:
            if traffic is not None:
                known = await history.releases(cluster, namespace)
                before = known[-1].resources if known else ()
                resources = split.with_traffic(resources, model, traffic, change, before)
            await asyncio.to_thread(refuse_wrong_steps, [] if force else resources)
            _refuse_errors(resources, force=force)
            await _deploy(cluster, resources, terms, dry_run=dry_run, yes=yes, wait=wait)

    run(work)


def _refuse_errors(resources: list[Resource], *, force: bool) -> None:
    report = examine(resources)
    if report.of(Severity.ERROR) and not force:
        doctor_view.show(report, stderr)
        raise ApplyRefused(
            "the doctor found errors; nothing was applied (--force applies all the same)"
        )


async def _deploy(
    cluster: Cluster,
    resources: list[Resource],
    terms: RolloutOptions,
    *,
    dry_run: bool,
    yes: bool,
    wait: bool,
) -> None:
    if missing := await rollout.missing_kinds(cluster, resources):
        raise ApplyRefused("\n".join(str(each) for each in missing))
    made = await rollout.plan(cluster, resources, terms)
    _show_plan(made)
    if dry_run or (made.is_empty and not made.takes_over):
        stderr.print("nothing to do" if made.is_empty else "dry run: nothing was applied")
        if made.is_empty:
            await _show_unready(cluster, terms.namespace)
        return
    if made.is_empty:
        await rollout.deploy(cluster, resources, terms, _Lines())
        stderr.print("nothing to do but to take over fields that others had set, as they are")
        return
    if not yes and not await asyncio.to_thread(typer.confirm, "apply?"):
        raise typer.Exit(1)
    made_release = await rollout.deploy(cluster, resources, terms, _Lines())
    stderr.print(f"release {made_release.number} applied")
    if wait:
        await wait_until_ready(cluster, resources, terms, _Lines())
        stderr.print("everything is ready", style="green")


async def _show_unready(cluster: Cluster, namespace: str) -> None:
    """Show what is deployed and not ready: an apply would not change it."""
    for row in await cluster_view.rows(cluster, namespace):
        if not row.state.is_ready:
            _Lines().waiting(row.ref, row.state, row.stuck)


def _show_plan(made: RolloutPlan) -> None:
    for step in made.steps:
        if step.difference:
            stdout.print(step.difference)
        elif step.action == "leave":
            stderr.print(f"left to the installer: {step.ref}")
    for ref in made.prune:
        stdout.print(f"- {ref} (was in the last release)")


@app.command()
def status(
    context: Context = None, namespace: Namespace = "torpor", as_json: AsJson = False
) -> None:
    """Show what is deployed, whether it is ready, and if not, why."""

    async def work() -> list[cluster_view.Row]:
        async with connected(context) as cluster:
            return await cluster_view.rows(cluster, namespace)

    found = run(work)
    if as_json:
        stdout.print_json(json.dumps([row.as_dict() for row in found]))
        return
    shown = table("what", "replicas", "state")
    for row in found:
        state = ("ready", "green") if row.state.is_ready else row.state.reason
        lines = Text("\n").join([Text.assemble(state), *map(Text, row.stuck)])
        shown.add_row(str(row.ref), row.replicas, lines)
    stdout.print(shown if found else f"nothing of Torpor's in namespace {namespace}")


@app.command()
def logs(
    component: Annotated[str, typer.Argument(help="api, broker, predictor or redis.")],
    context: Context = None,
    namespace: Namespace = "torpor",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come.")] = False,
    tail: Annotated[int, typer.Option(min=0, help="Lines to begin with.")] = 100,
) -> None:
    """Show the logs of all pods of a component."""

    async def work() -> None:
        count = 0
        async with connected(context) as cluster:
            async for pod, line in cluster_view.log_lines(
                cluster, namespace, component, follows=follow, tail=tail
            ):
                count += 1
                stdout.print(f"{pod} {line}")
        if not count:
            stderr.print(f"the pods of {component} have written no line")

    run(work)


@app.command()
def scale(
    model: Model,
    least: Annotated[int | None, typer.Option("--min", min=0)] = None,
    most: Annotated[int | None, typer.Option("--max", min=1)] = None,
    context: Context = None,
    namespace: Namespace = "torpor",
) -> None:
    """Set the bounds of a model's replicas until the next deploy; values.yaml is for good."""
    if least is None and most is None:
        raise UsageError("give --min, --max or both")
    if least is not None and most is not None and least > most:
        raise UsageError(f"--min {least} is over --max {most}")

    async def work() -> list[str]:
        async with connected(context) as cluster:
            return await cluster_view.set_bounds(cluster, namespace, model, least, most)

    for line in run(work):
        stdout.print(line)


@app.command()
def promote(
    model: Model,
    context: Context = None,
    namespace: Namespace = "torpor",
    prometheus: Annotated[
        str, typer.Option(help="Where Prometheus answers from here.")
    ] = "http://127.0.0.1:9090",
    window: Annotated[str, typer.Option(help="How far back to look.")] = "15m",
    min_requests: Annotated[int, typer.Option(min=1, help="Fewer are not enough to decide.")] = 50,
    error_rise: Annotated[float, typer.Option(min=0, max=1)] = 0.02,
    latency_ratio: Annotated[float, typer.Option(min=1)] = 1.25,
    now: Annotated[bool, typer.Option(help="Without looking at the figures.")] = False,
    take_over: TakeOver = False,
    timeout: Timeout = 900,
) -> None:
    """Promote the canary if its errors and latency allow; withdraw it if they are worse."""
    limits = verdict.CanaryLimits(min_requests, error_rise, latency_ratio)

    async def work() -> None:
        async with connected(context) as cluster:
            known = await history.releases(cluster, namespace)
            current = list(known[-1].resources) if known else []
            better = split.promoted(current, model)
            decision = verdict.CanaryDecision.PROMOTE
            if not now and split.is_traffic_split(current):
                raise NotReady("a traffic split has no separate figures; use --now")
            if not now:
                decision = await _judge(prometheus, model, window, limits)
            if decision is verdict.CanaryDecision.WAIT:
                raise NotReady("too early to decide; try again later, or use --now")
            is_better = decision is verdict.CanaryDecision.PROMOTE
            resources = better if is_better else split.without_canary(current, model)
            note = f"{decision} of the canary of {model}"
            terms = RolloutOptions(namespace, take_over, timeout, note)
            await rollout.deploy(cluster, resources, terms, _Lines())
            await wait_until_ready(cluster, resources, terms, _Lines())
            if not is_better:
                raise NotReady("the canary was withdrawn")

    run(work)


async def _judge(
    prometheus: str, model: str, window: str, limits: verdict.CanaryLimits
) -> verdict.CanaryDecision:
    stable, fresh = await asyncio.gather(
        verdict.measure(prometheus, model, window),
        verdict.measure(prometheus, split.canary_name(model), window),
    )
    found = verdict.judge(stable, fresh, limits)
    stderr.print(f"{found.decision}: {found.reason}")
    return found.decision


@app.command()
def rollback(
    to: Annotated[int | None, typer.Option(min=1, help="A release's number.")] = None,
    context: Context = None,
    namespace: Namespace = "torpor",
    take_over: TakeOver = False,
    timeout: Timeout = 900,
    yes: Yes = False,
) -> None:
    """Deploy the release before this one again; a canary or a split is withdrawn by it."""
    if not yes and not typer.confirm(
        f"go back to {f'release {to}' if to else 'the last release'}?"
    ):
        raise typer.Exit(1)

    async def work() -> None:
        terms = RolloutOptions(namespace, take_over, timeout)
        async with connected(context) as cluster:
            made = await rollout.roll_back(cluster, terms, _Lines(), to=to)
            await wait_until_ready(cluster, list(made.resources), terms, _Lines())
            stderr.print(f"release {made.number}: {made.note}", style="green")

    run(work)


@app.command()
def delete(
    context: Context = None,
    namespace: Namespace = "torpor",
    data: Annotated[bool, typer.Option(help="The disks, Secrets and namespace too.")] = False,
    yes: Yes = False,
) -> None:
    """Delete what was deployed; disks and Secrets stay unless --data."""
    what = "everything, with all jobs and keys" if data else "all but disks and Secrets"
    if not yes and not typer.confirm(f"delete {what} in namespace {namespace}?"):
        raise typer.Exit(1)

    async def work() -> list[Ref]:
        async with connected(context) as cluster:
            return await rollout.remove(
                cluster, RolloutOptions(namespace), _Lines(), with_data=data
            )

    for ref in run(work):
        stderr.print(f"  kept    {ref}")
