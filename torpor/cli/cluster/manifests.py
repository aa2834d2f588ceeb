"""`torpor render` and `doctor`: manifests, without a cluster.

Mounted by the `torpor` application. It parses and prints; decisions are in `knative.deploy`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer
import yaml
from rich.table import Table

from knative.deploy import timeouts
from knative.deploy.build import load
from knative.deploy.doctor import examine
from knative.deploy.doctor import report as doctor_view
from knative.deploy.emit import Resource
from knative.deploy.errors import DeployError
from knative.deploy.render.render import differences, write
from knative.deploy.values import Values, ValuesError, load_values
from torpor.cli.errors import UserError
from torpor.cli.step_settings import refuse_wrong_steps, wrong_step
from torpor.cli.view.screen import stderr, stdout

Folder = Annotated[Path, typer.Option(help="The manifests folder.")]
Context = Annotated[str | None, typer.Option(help="The kubeconfig context; in-cluster without.")]
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="Where Torpor lives.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]

T = TypeVar("T")

DEFAULT_FOLDER: Final = Path("manifests")
DEFAULT_SOURCE: Final = "manifests/overlays/queue"


def run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What `work` gives; its refusals as one clear line."""
    try:
        return asyncio.run(work())
    except DeployError as error:
        raise UserError(str(error)) from error


def _values(folder: Path) -> Values:
    try:
        return load_values(folder / "values.yaml")
    except ValuesError as error:
        raise UserError(str(error)) from error


def render(
    folder: Folder = DEFAULT_FOLDER,
    check: Annotated[bool, typer.Option(help="Change nothing; fail on a difference.")] = False,
    explain: Annotated[bool, typer.Option(help="Show every derived number and why.")] = False,
) -> None:
    """Write the manifests from values.yaml: every timeout follows from max_job_seconds."""
    values = _values(folder)
    if explain:
        _explain(values)
        return
    if said := wrong_step(yaml.safe_dump(values.pipelines)) if values.pipelines else "":
        raise UserError(f"{folder / 'values.yaml'}: {said}")
    found = differences(folder, values) if check else write(folder, values)
    for difference in found:
        stdout.print(f"{difference.kind:<8} {difference.path}")
    if check and found:
        raise UserError(f"{len(found)} files differ from the values: run `torpor render`")
    stderr.print(f"{folder}: {'as rendered' if not found else f'{len(found)} files written'}")


def _explain(values: Values) -> None:
    table = Table("what", "seconds", "from", "why", "source")
    for name, seconds, why in timeouts.explain(timeouts.derive(values)):
        table.add_row(name, str(seconds), why.formula, why.reason, why.source)
    stdout.print(table)


def doctor(
    sources: Annotated[
        list[str] | None, typer.Argument(help="Folders and files, examined together.")
    ] = None,
    live: Annotated[
        bool, typer.Option(help="Examine the cluster; of SOURCE only what is not in it yet.")
    ] = False,
    max_job_seconds: Annotated[int | None, typer.Option(min=1, help="Instead of the set.")] = None,
    cold_start_seconds: Annotated[int | None, typer.Option(min=1, help="The worst wake.")] = None,
    strict: Annotated[bool, typer.Option(help="Fail on warnings and open demands too.")] = False,
    context: Context = None,
    namespace: Namespace = "torpor",
    as_json: AsJson = False,
) -> None:
    """Find settings that would cut off, lose or duplicate a job, kill a busy pod, or keep one from starting."""

    async def gather() -> list[Resource]:
        found = [r for source in sources or [] for r in await load(source)]
        if live:
            async with connected(context) as cluster:
                seen = await cluster_view.snapshot(cluster, namespace)
            found = cluster_view.over(seen, found)
        return found

    if live:
        from knative.deploy.rollout import cluster_view
        from knative.deploy.rollout.client import connected
    if not sources and not live:
        sources = [DEFAULT_SOURCE]
    resources = run(gather)
    report = examine(resources, job_s=max_job_seconds, cold_start_s=cold_start_seconds)
    if as_json:
        stdout.print_json(json.dumps([finding.as_dict() for finding in report.findings]))
    else:
        doctor_view.show(report, stdout)
    refuse_wrong_steps(resources)
    raise typer.Exit(report.exit_status(is_strict=strict))
