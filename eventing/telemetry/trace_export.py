"""OpenTelemetry export of spans: the only module that imports OpenTelemetry, loaded when tracing is on.

Called by `eventing.telemetry.trace`. Spans go to an OTLP collector in batches, from a thread of the SDK's own, or
to a file one by one, so that a killed process loses no ended span.
"""

import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

import orjson
import requests
from opentelemetry import trace as api
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from eventing.process.address import is_inside
from eventing.telemetry.span import (
    NO_SPAN,
    NonRecordingSpan,
    Span,
    followable,
    is_sampled,
    is_well_formed,
)

_CLOSE_MS: Final = 3000
_UNSET: Final = api.Status()
_SCOPE: Final = InstrumentationScope("torpor")
_BEGUN_HERE: Final = api.TraceFlags(api.TraceFlags.SAMPLED | 2)
"""Sampled, and its id is random (W3C Trace Context, level 2)."""
_within: Final[ContextVar[tuple[str, "_Open | None"]]] = ContextVar(
    "torpor_span", default=("", None)
)
"""The current span: its `traceparent`, and the span itself if it is recorded."""


class FileProcessor(SpanProcessor):
    """Appends each span as one line of JSON as it ends; lines of several processes do not mix. Without the SDK's own
    way to an exporter, which costs as much again.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)

    def on_end(self, span: ReadableSpan) -> None:
        os.write(self._file, orjson.dumps(plain(span)) + b"\n")

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
    """A recording span for the duration of the block. The SDK gets it when it has ended: its own open spans, with their
    locks, limits and sampler, and its current context cost three times as much.
    """

    __slots__ = (
        "_attributes",
        "_began_ns",
        "_end",
        "_name",
        "_parent",
        "_token",
        "context",
        "links",
    )
    _token: Token[tuple[str, "_Open | None"]]

    def __init__(
        self,
        name: str,
        context: api.SpanContext,
        parent: api.SpanContext | None,
        attributes: dict[str, Any],
        end: Callable[..., None],
    ) -> None:
        self.context = context
        self.links: list[api.Link] = []
        self._name = name
        self._parent = parent
        self._attributes = attributes
        self._end = end
        self._began_ns = time.time_ns()

    @property
    def traceparent(self) -> str:
        return _traceparent(self.context)

    def set(self, **attributes: str | int | float | bool) -> None:
        self._attributes.update(_named(attributes))

    def __enter__(self) -> Self:
        self._token = _within.set((self.traceparent, self))
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        _within.reset(self._token)
        failed = isinstance(error, Exception)  # its message could hold what a user wrote
        self._end(
            name=self._name,
            context=self.context,
            parent=self._parent,
            attributes=self._attributes,
            links=self.links,
            status=api.Status(api.StatusCode.ERROR, type(error).__name__) if failed else _UNSET,
            start_time=self._began_ns,
            end_time=time.time_ns(),
        )


class _Within(NonRecordingSpan):
    """A span of a caller's trace that is not sampled: passes its context on to its children."""

    __slots__ = ("_token",)

    def __enter__(self) -> Self:
        self._token = _within.set((self.traceparent, None))
        return self

    def __exit__(self, *_: object) -> None:
        _within.reset(self._token)


class OtelTracer:
    """The tracer of a process."""

    def __init__(self, service: str, target: str, share: float) -> None:
        self._resource = Resource.create({"service.name": f"torpor-{service}"})
        self._share = share
        self._rng = random.SystemRandom()  # no seed that forked predictors would share
        self._processor = _processor(target)

    def open(
        self,
        name: str,
        parent: str,
        links: Sequence[str],
        attributes: Mapping[str, Any],
        *,
        begins: bool,
    ) -> AbstractContextManager[Span]:
        within = followable(parent) or _within.get()[0]
        if not within:
            if not begins or self._rng.random() >= self._share:
                return NO_SPAN
        elif not is_sampled(within):
            return _Within(within)
        above = _context(within) if within else None
        trace_id = above.trace_id if above else self._rng.getrandbits(128) or 1
        flags = above.trace_flags if above else _BEGUN_HERE
        context = api.SpanContext(trace_id, self._rng.getrandbits(64) or 1, False, flags)
        opened = _Open(name, context, above, _named(attributes), self._end)
        opened.links += [api.Link(_context(text)) for text in links if is_well_formed(text)]
        return opened

    def _end(self, **span: Any) -> None:
        ended = ReadableSpan(resource=self._resource, instrumentation_scope=_SCOPE, **span)
        self._processor.on_end(ended)

    def current(self) -> str:
        return _within.get()[0]

    def link(self, traceparent: str) -> None:
        """Link the current span to another."""
        _, span = _within.get()
        if span is not None and is_well_formed(traceparent):
            span.links.append(api.Link(_context(traceparent)))

    def close(self) -> None:
        self._processor.force_flush(_CLOSE_MS)
        self._processor.shutdown()


def _processor(target: str) -> SpanProcessor:
    kind, _, path = target.partition(":")
    if kind == "file":
        return FileProcessor(Path(path))
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    address = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get(
        "OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost"
    )
    return BatchSpanProcessor(OTLPSpanExporter(session=collector_session(address)))


def collector_session(address: str) -> requests.Session:
    """A session that asks a proxy of the environment only for a collector outside."""
    session = requests.Session()
    session.trust_env = not is_inside(urlsplit(address).hostname or "")
    return session


def _named(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attribute's name with our prefix: `job_id` becomes `torpor.job_id`."""
    return {f"torpor.{name}": value for name, value in attributes.items()}


def _context(traceparent: str) -> api.SpanContext:
    """The span context of a well-formed `traceparent`."""
    flags = api.TraceFlags(int(traceparent[53:], 16))
    return api.SpanContext(int(traceparent[3:35], 16), int(traceparent[36:52], 16), True, flags)


def _traceparent(context: api.SpanContext) -> str:
    flags = int(context.trace_flags)
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags:02x}"
