"""One trace a job, from the submit to the result, across processes, deliveries and attempts.

Called by every package where a job changes hands. `configure` is called once by each `__main__`; until
then, and without `TORPOR_TRACES`, a span is one small object that hands its parent on, and no
exporter is imported. The parent travels as CloudEvents' `traceparent` extension (the
submit) and as the HTTP header of the same name (the delivery). A later delivery or attempt links to
the one before it. Attributes are ids, numbers and our own words; never a prompt, output or secret.
"""

from collections.abc import MutableMapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

import structlog
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from redis.asyncio import Redis

from eventing.errors import StoreUnavailable
from eventing.job.job import JobId
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.script import run
from eventing.telemetry.span import Span, Tracer, Unkept, is_sampled

_log = structlog.get_logger()


class TraceSettings(BaseSettings):
    """Where spans go. The same variables in every process, so that no job's trace has holes."""

    model_config = SettingsConfigDict(env_prefix="TORPOR_", frozen=True, extra="ignore")

    traces: str = Field("", pattern=r"^$|^otlp$|^file:.+$")
    """Empty: off. `otlp`: to the collector of OTEL_EXPORTER_OTLP_ENDPOINT. `file:PATH`: JSON lines
    appended to PATH, each span as soon as it ends.
    """
    traces_share: float = Field(0.05, ge=0, le=1)
    """Share of the traces that begin here and are kept; one that a caller began keeps its flag. Of
    small jobs keeping all costs much, keeping one in twenty little (docs/observability.md).
    """


_tracer: Tracer | None = None


def configure(service: str) -> None:
    """Trace from now on, if `TORPOR_TRACES` says where to. Raises `ValidationError` for a value
    that it cannot have.
    """
    settings = TraceSettings()
    if not settings.traces:
        return
    # Only now, and only here: importing OpenTelemetry's SDK costs those who trace nothing.
    from eventing.telemetry.trace_export import OtelTracer

    use(OtelTracer(service, settings.traces, settings.traces_share))
    _log.info("tracing", action="start", to=settings.traces.partition(":")[0])


def use(tracer: Tracer | None) -> None:
    """Open spans there; None turns tracing off. Tests call it with a tracer of their own."""
    global _tracer
    _tracer = tracer


def close() -> None:
    """Send what was not sent yet. Blocks for at most a few seconds; call it last."""
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
    """A span for as long as the block lasts: under `parent` (a W3C traceparent) if one is given,
    else under the span that is open here. With neither, and where it `begins` something, it is the
    first of a new trace, if lots fall so; any other is none at all, and nothing is handed on. An
    exception marks it failed, by its type only.
    """
    if _tracer is None:
        return Unkept(parent)
    return _tracer.open(name, parent, links, attributes, begins=begins)


def headers() -> dict[str, str]:
    """HTTP headers that carry the open span to whoever is called."""
    if _tracer is None or not (traceparent := _tracer.current()):
        return {}
    return {"traceparent": traceparent}


def mark_line(_: Any, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: a line that is written inside a span of a trace, ours or a caller's,
    carries its `trace_id`.
    """
    if _tracer is not None and (traceparent := _tracer.current()):
        line["trace_id"] = traceparent[3:35]
    return line


class SpanLinks:
    """Remembers on each job's record which span came last in a role (`deliver`, `attempt`), so that
    the next one can link to it. Asks the store only while tracing is on.
    """

    def __init__(self, redis: Redis | None) -> None:
        self._redis = redis

    async def follow(self, job_id: JobId, role: str, span: Span) -> None:
        """Link `span` to the one before it, and be the one before the next. A store that is away
        costs the link only.
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
        """The submit's `traceparent`, for what happens to a job outside any delivery; empty when
        it is not traced, or the store is away.
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
