"""`torpor up`: the embedded stack until Ctrl-C."""

import asyncio
import re
import signal
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from eventing import log
from knative.cli.errors import UserError
from knative.cli.screen import stderr
from knative.local.settings import AutoscalerKind, EngineKind, StackSettings
from knative.local.stack import Stack

_UNITS = {"": 1, "ms": 0.001, "s": 1, "m": 60, "h": 3600}
_default = {name: field.default for name, field in StackSettings.model_fields.items()}


def up(
    host: Annotated[
        str, typer.Option(envvar="TORPOR_HOST", help="Address of api and broker.")
    ] = _default["host"],
    port: Annotated[
        int, typer.Option(envvar="TORPOR_PORT", help="Port of the api; 0 takes a free one.")
    ] = _default["port"],
    broker_port: Annotated[
        int, typer.Option(envvar="TORPOR_BROKER_PORT", help="Port of the broker's ingress.")
    ] = _default["broker_port"],
    data_dir: Annotated[
        Path, typer.Option(envvar="TORPOR_DATA_DIR", help="State, models and logs.")
    ] = _default["data_dir"],
    redis_url: Annotated[
        str,
        typer.Option(
            envvar="TORPOR_REDIS_URL", help="Your own Redis instead of the embedded Valkey."
        ),
    ] = "",
    engine: Annotated[
        EngineKind, typer.Option(envvar="TORPOR_ENGINE", help="vllm, or the test engine.")
    ] = _default["engine"],
    model: Annotated[
        str, typer.Option(envvar="TORPOR_MODEL", help="A packaged model, a folder or a hub id.")
    ] = _default["model"],
    max_replicas: Annotated[
        int, typer.Option(envvar="TORPOR_MAX_REPLICAS", help="Most predictors at once.")
    ] = _default["max_replicas"],
    min_replicas: Annotated[
        int, typer.Option(envvar="TORPOR_MIN_REPLICAS", help="Predictors that never go.")
    ] = _default["min_replicas"],
    container_concurrency: Annotated[
        int,
        typer.Option(
            envvar="TORPOR_CONTAINER_CONCURRENCY", help="Jobs a predictor thinks about at once."
        ),
    ] = _default["container_concurrency"],
    window: Annotated[
        str,
        typer.Option(
            envvar="TORPOR_WINDOW",
            help="So long without work before the last predictor may go (6s to 1h).",
        ),
    ] = "60s",
    grace: Annotated[
        str, typer.Option(envvar="TORPOR_GRACE", help="Scale-to-zero grace after the window.")
    ] = "30s",
    time_scale: Annotated[
        float, typer.Option(envvar="TORPOR_TIME_SCALE", help="Run the autoscaler's clock faster.")
    ] = _default["time_scale"],
    autoscaler: Annotated[
        AutoscalerKind, typer.Option(envvar="TORPOR_AUTOSCALER", help="kpa or keda.")
    ] = _default["autoscaler"],
    warm_parent: Annotated[
        bool,
        typer.Option(
            envvar="TORPOR_WARM_PARENT", help="Keep vLLM imported, so that predictors wake faster."
        ),
    ] = _default["warm_parent"],
    max_job_seconds: Annotated[
        int, typer.Option(envvar="TORPOR_MAX_JOB_SECONDS", help="No job runs longer.")
    ] = _default["max_job_seconds"],
    lease: Annotated[
        str,
        typer.Option(
            envvar="TORPOR_LEASE", help="A predictor silent for so long has lost its job."
        ),
    ] = "30s",
    engine_args: Annotated[
        str,
        typer.Option(envvar="TORPOR_ENGINE_ARGS", help="More vLLM arguments, as vLLM names them."),
    ] = "",
    log_level: Annotated[
        str, typer.Option(envvar="TORPOR_LOG_LEVEL", help="DEBUG, INFO, WARNING or ERROR.")
    ] = "WARNING",
) -> None:
    """Run api, broker, store and predictors (from zero) on this machine until Ctrl-C."""
    settings = build_settings(
        host=host,
        port=port,
        broker_port=broker_port,
        data_dir=data_dir,
        redis_url=redis_url or None,
        engine=engine,
        model=model,
        max_replicas=max_replicas,
        min_replicas=min_replicas,
        container_concurrency=container_concurrency,
        window_s=seconds("--window", window),
        grace_s=seconds("--grace", grace),
        time_scale=time_scale,
        autoscaler=autoscaler,
        warm_parent=warm_parent,
        max_job_seconds=max_job_seconds,
        lease_s=seconds("--lease", lease),
        engine_args=engine_args,
        log_level=log_level,
    )
    log.configure("stack", level=settings.log_level)
    asyncio.run(_run(settings))


def build_settings(**values: Any) -> StackSettings:
    """Settings from flags; every flag that is out of range is named at once, with its range."""
    try:
        return StackSettings(**values)
    except ValidationError as error:
        wrong = [
            f"--{e['loc'][0]}: {e['msg']} (got {e['input']!r})".replace("_", "-")
            for e in error.errors()
        ]
        raise UserError("; ".join(wrong)) from error


def seconds(flag: str, text: str) -> float:
    """A duration as Knative writes it: 60s, 1m, 500ms, or a bare number of seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|)", text.strip())
    if not found:
        raise UserError(f"{flag}: {text!r} is no duration; write 60s, 1m or 500ms")
    return float(found[1]) * _UNITS[found[2]]


async def _run(settings: StackSettings) -> None:
    stack = Stack(settings, lambda line: stderr.print(f"[dim]·[/dim] {line}"))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stack.stop)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(stack.run())
        ready = group.create_task(stack.up.wait())
        await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED)
        if stack.up.is_set():
            _announce(stack)
        ready.cancel()
    stderr.print("stopped; state is kept in " + str(settings.data_dir))


def _announce(stack: Stack) -> None:
    at = stack.addresses
    stderr.print(
        f"[bold green]Torpor is up[/bold green], 0 of {stack.settings.max_replicas} predictors awake"
    )
    stderr.print(f"  api     {at.api}     (docs at {at.api}/docs)")
    stderr.print(f"  broker  {at.broker}/    (CloudEvents in)")
    stderr.print('  try     torpor submit --wait "Why is the sky blue?"')
    stderr.print("Ctrl-C ends it; state and models stay. A development stack: no keys.")
