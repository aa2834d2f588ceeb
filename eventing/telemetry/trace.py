"""Tracing: one trace for each job, from submit to result, across processes, deliveries and attempts.

Called by every package where a job passes from one component to another; `configure` is called once by each
`__main__`. Until then, and without `TORPOR_TRACES`, a span is one small object that passes its parent on, and no
exporter is imported. The parent travels as CloudEvents' `traceparent` extension (the submit) and as the HTTP header
of the same name (the delivery). A later delivery or attempt links to the one before it. Attributes are ids, numbers
and fixed strings; never a prompt, output or secret.
"""

import os
from collections.abc import MutableMapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

import structlog
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from redis.asyncio import Redis

from eventing.errors import StoreUnavailable
from eventing.job.job import JobId
from eventing.process.setting import WrongSetting, http_url, read
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.script import run
from eventing.telemetry.span import NonRecordingSpan, Span, Tracer, followable, is_sampled

_log = structlog.get_logger()
_COLLECTOR_VARIABLES: Final = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
)


class TraceSettings(BaseSettings):
    """Where spans are exported. Set the same in every process, or traces will be incomplete."""

    model_config = SettingsConfigDict(env_prefix="TORPOR_", frozen=True, extra="ignore")

    traces: str = Field("", pattern=r"^$|^otlp$|^file:.+$")
    """Empty: off. `otlp`: to the collector of OTEL_EXPORTER_OTLP_ENDPOINT. `file:PATH`: JSON lines
    appended to PATH, each span as soon as it ends.
    """
    traces_share: float = Field(0.05, ge=0, le=1)
    """Share of the traces begun here that are sampled; the flag of a caller's trace is kept. Tracing every small
    job has a cost (docs/observability.md).
    """


_tracer: Tracer | None = None


def configure(service: str) -> None:
    """Start tracing if `TORPOR_TRACES` is set. Raises `WrongSetting` for an invalid value."""
    settings = read(TraceSettings)
    if not settings.traces:
        return
    _check_collector(settings.traces)
    # Imported late: processes without tracing do not pay for OpenTelemetry's SDK.
    try:
        from eventing.telemetry.trace_export import OtelTracer
    except ImportError as error:
        raise WrongSetting("TORPOR_TRACES: needs pip install 'torpor[traces]'") from error
    try:
        tracer = OtelTracer(service, settings.traces, settings.traces_share)
    except OSError as error:
        raise WrongSetting(f"TORPOR_TRACES: cannot write there: {error.strerror}") from error
    use(tracer)
    _log.info("tracing", action="start", to=settings.traces.partition(":")[0])


def _check_collector(target: str) -> None:
    """Raise for an address that every export would fail at."""
    for name in _COLLECTOR_VARIABLES if target == "otlp" else ():
        try:
            if os.environ.get(name):
                http_url(os.environ[name])
        except ValueError as error:
            raise WrongSetting(f"{name}: {error}") from error


def use(tracer: Tracer | None) -> None:
    """Open spans with this tracer; None turns tracing off. Tests use it."""
    global _tracer
    _tracer = tracer


def close() -> None:
    """Export the remaining spans. Blocks for at most a few seconds; call it last."""
    if _tracer is not None:
        _tracer.close()


def span(
    name: str,
    *,
    parent: str = "",
    links: Sequence[str] = (),
    begins: bool = False,
    **attributes: str | int | float | bool,
) -> AbstractContextManager[Span]:
    """A span for the duration of the block: a child of `parent` (a W3C traceparent) if given, else of the current
    span. Without either, `begins` starts a new trace, subject to sampling; otherwise there is no span and nothing
    is passed on. An exception marks the span failed, with the exception's type only.
    """
    if _tracer is None:
        return NonRecordingSpan(followable(parent))
    return _tracer.open(name, parent, links, attributes, begins=begins)


def headers() -> dict[str, str]:
    """HTTP headers that propagate the current span."""
    if _tracer is None or not (traceparent := _tracer.current()):
        return {}
    return {"traceparent": traceparent}


def mark_line(_: Any, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor that adds `trace_id` to lines written inside a span."""
    if _tracer is not None and (traceparent := _tracer.current()):
        line["trace_id"] = traceparent[3:35]
    return line


class SpanLinks:
    """Stores on each job's record the last span of a role (`deliver`, `attempt`), so that the next one can link to
    it. Uses the store only while tracing is on.
    """

    def __init__(self, redis: Redis | None) -> None:
        self._redis = redis

    async def follow(self, job_id: JobId, role: str, span: Span) -> None:
        """Link `span` to the previous one of its role, and store it for the next. With the store unavailable the
        link is lost.
        """
        if self._redis is None or _tracer is None or not is_sampled(span.traceparent):
            return
        try:
            before = await _swap(self._redis, job_id, role, span.traceparent)
        except StoreUnavailable:
            return
        if before:
            _tracer.link(before)

    async def root(self, job_id: JobId) -> str:
        """The submit's `traceparent`, for spans of a job outside a delivery; empty when the job is not traced, or
        the store is unavailable.
        """
        if self._redis is None or _tracer is None:
            return ""
        try:
            async with failures_named():
                found = await self._redis.hget(keys.job(job_id), "traceparent")
        except StoreUnavailable:
            return ""
        return (found or b"").decode()


async def _swap(redis: Redis, job_id: JobId, role: str, traceparent: str) -> str:
    async with failures_named():
        before = await run(redis, "swap_field", [keys.job(job_id)], [f"span:{role}", traceparent])
    return (before or b"").decode()


NO_LINKS: Final = SpanLinks(None)
