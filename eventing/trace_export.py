"""Spans by OpenTelemetry: the only module that imports it. Loaded when tracing is on.

Called by `eventing.trace`. Spans go to an OTLP collector in batches, from a thread of the SDK's
own, or to a file one by one, so that a killed process loses none that had ended.
"""

import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final, Self

from opentelemetry import trace as api
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from eventing.span import Span, Unkept, is_sampled, is_well_formed

_W3C: Final = TraceContextTextMapPropagator()
_CLOSE_MS: Final = 3000
_within: Final[ContextVar[str]] = ContextVar("torpor_traceparent", default="")
"""The innermost span that is open here, kept or not."""


class FileExporter(SpanExporter):
    """Appends each span as one line of JSON; lines of several processes do not mix."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            os.write(self._file, json.dumps(plain(span)).encode() + b"\n")
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        os.close(self._file)


def plain(span: ReadableSpan) -> dict[str, Any]:
    """A span as plain data: ids in hex, times in nanoseconds since the epoch."""
    context = span.get_span_context()
    assert context is not None  # noqa: S101 (a span that was recorded has one)
    return {
        "name": span.name,
        "service": span.resource.attributes.get("service.name", ""),
        "trace_id": f"{context.trace_id:032x}",
        "span_id": f"{context.span_id:016x}",
        "parent_id": f"{span.parent.span_id:016x}" if span.parent else "",
        "start_ns": span.start_time,
        "end_ns": span.end_time,
        "status": span.status.status_code.name,
        "attributes": dict(span.attributes or {}),
        "links": [f"{link.context.span_id:016x}" for link in span.links],
    }


class _Open:
    """A recording span."""

    __slots__ = ("_span", "traceparent")

    def __init__(self, span: api.Span) -> None:
        self._span = span
        self.traceparent = _traceparent(span.get_span_context())

    def set(self, **attributes: str | int | float | bool) -> None:
        self._span.set_attributes(_named(attributes))


class _Within(Unkept):
    """A span of a trace that nobody keeps: hands its context on to spans within as well."""

    __slots__ = ("_token",)

    def __enter__(self) -> Self:
        self._token = _within.set(self.traceparent)
        return self

    def __exit__(self, *_: object) -> None:
        _within.reset(self._token)


class OtelTracer:
    """A tracer of one process."""

    def __init__(self, service: str, target: str, share: float) -> None:
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": f"torpor-{service}"}),
            sampler=ALWAYS_ON,  # what is not kept never gets there
            shutdown_on_exit=False,
        )
        self._share = share
        self._rng = random.SystemRandom()  # no seed that forked predictors would share
        self._provider.add_span_processor(_processor(target))
        self._tracer = self._provider.get_tracer("torpor")

    def open(
        self, name: str, parent: str, links: Sequence[str], attributes: Mapping[str, Any]
    ) -> AbstractContextManager[Span]:
        within = parent if is_well_formed(parent) else _within.get()
        if not within and self._rng.random() >= self._share:
            within = _unkept_trace(self._rng)
        if within and not is_sampled(within):
            return _Within(within)  # twenty times cheaper than a span of OpenTelemetry's
        return self._kept(name, within, links, attributes)

    @contextmanager
    def _kept(
        self, name: str, parent: str, links: Sequence[str], attributes: Mapping[str, Any]
    ) -> Iterator[Span]:
        found = [api.Link(context) for text in links if (context := _context(text)) is not None]
        with self._tracer.start_as_current_span(
            name,
            context=_W3C.extract({"traceparent": parent}, Context()) if parent else None,
            links=found,
            attributes=_named(attributes),
            record_exception=False,  # its message could hold what a user wrote
            set_status_on_exception=False,
        ) as span:
            opened = _Open(span)
            token = _within.set(opened.traceparent)
            try:
                yield opened
            except Exception as error:
                span.set_status(api.StatusCode.ERROR, type(error).__name__)
                raise
            finally:
                _within.reset(token)

    def current(self) -> str:
        return _within.get()

    def link(self, traceparent: str) -> None:
        """Link the open span to another."""
        if (context := _context(traceparent)) is not None:
            api.get_current_span().add_link(context)

    def close(self) -> None:
        self._provider.force_flush(_CLOSE_MS)
        self._provider.shutdown()


def _processor(target: str) -> SimpleSpanProcessor | BatchSpanProcessor:
    kind, _, path = target.partition(":")
    if kind == "file":
        return SimpleSpanProcessor(FileExporter(Path(path)))
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return BatchSpanProcessor(OTLPSpanExporter())


def _unkept_trace(rng: random.Random) -> str:
    """The `traceparent` of a new trace that nobody keeps, so that its log lines can be told."""
    return f"00-{rng.getrandbits(128):032x}-{rng.getrandbits(64):016x}-00"


def _named(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Under our own prefix: `job_id` is `torpor.job_id`."""
    return {f"torpor.{name}": value for name, value in attributes.items()}


def _context(traceparent: str) -> api.SpanContext | None:
    found = api.get_current_span(_W3C.extract({"traceparent": traceparent}, Context()))
    context = found.get_span_context()
    return context if context.is_valid else None


def _traceparent(context: api.SpanContext) -> str:
    if not context.is_valid:
        return ""
    flags = int(context.trace_flags)
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags:02x}"
