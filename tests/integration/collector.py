"""An OpenTelemetry collector as a test has it: takes OTLP over HTTP and keeps the spans.

Used by the trace tests. What arrives is parsed with OpenTelemetry's own protocol classes, so that
what passes here is what any collector would take.
"""

import gzip
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan

Span = dict[str, Any]


class Collector:
    """Listens on a free port of the loopback from `start` to `stop`."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        kept = self._spans

        class Receiver(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    content = gzip.decompress(content)
                assert self.path == "/v1/traces"
                kept.extend(spans_of(ExportTraceServiceRequest.FromString(content)))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:
                return None

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
        self._server.daemon_threads = True
        self._thread = Thread(target=self._server.serve_forever)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def start(self) -> "Collector":
        self._thread.start()
        return self

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def trace(self, trace_id: str) -> list[Span]:
        """The spans of a trace that have come so far, in order of their start."""
        found = [span for span in list(self._spans) if span["trace_id"] == trace_id]
        return sorted(found, key=lambda span: int(span["start_ns"]))


def spans_of(request: ExportTraceServiceRequest) -> list[Span]:
    """The spans as plain data: ids in hex, times in nanoseconds since the epoch."""
    return [
        {
            "name": span.name,
            "service": values_of(resource.resource.attributes)["service.name"],
            "trace_id": span.trace_id.hex(),
            "span_id": span.span_id.hex(),
            "parent_id": span.parent_span_id.hex(),
            "start_ns": span.start_time_unix_nano,
            "failed": span.status.code == span.status.STATUS_CODE_ERROR,
            "attributes": values_of(span.attributes),
            "links": links_of(span),
        }
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def values_of(pairs: Any) -> dict[str, Any]:
    def value(pair: KeyValue) -> Any:
        return getattr(pair.value, pair.value.WhichOneof("value") or "string_value")

    return {pair.key: value(pair) for pair in pairs}


def links_of(span: WireSpan) -> list[str]:
    return [link.span_id.hex() for link in span.links]
