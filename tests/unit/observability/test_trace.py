"""Spans: nothing when off, one trace under the caller's parent when on."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import ValidationError

from eventing.telemetry import trace
from eventing.telemetry.span import is_sampled
from eventing.telemetry.trace_export import OtelTracer

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


@pytest.fixture
def spans(tmp_path: Path) -> Iterator[Path]:
    """Tracing into a file, off again afterwards."""
    path = tmp_path / "spans.jsonl"
    trace.use(OtelTracer("test", f"file:{path}", 1.0))
    yield path
    trace.use(None)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_off_a_span_hands_its_parent_on() -> None:
    with trace.span("submit", parent=PARENT) as span:
        span.set(anything=1)

        assert span.traceparent == PARENT
        assert trace.headers() == {}


def test_a_span_goes_under_the_parent_it_is_given(spans: Path) -> None:
    with trace.span("submit", parent=PARENT) as span:
        assert trace.headers() == {"traceparent": span.traceparent}

    (found,) = read(spans)
    assert found["trace_id"] == PARENT.split("-")[1]
    assert found["parent_id"] == PARENT.split("-")[2]


def test_a_span_inside_another_is_its_child(spans: Path) -> None:
    with trace.span("outer", begins=True), trace.span("inner"):
        pass

    inner, outer = read(spans)
    assert inner["parent_id"] == outer["span_id"]


@pytest.mark.parametrize(
    "flags", [pytest.param("00", id="none"), pytest.param("02", id="random_trace_id")]
)
def test_a_caller_that_samples_nothing_is_obeyed(spans: Path, flags: str) -> None:
    """Flags of 02 are what OpenTelemetry's own new traces have: taken for sampled, every trace that
    was not kept cost as much as one that was.
    """
    parent = PARENT[:-2] + flags

    with trace.span("submit", parent=parent) as span:
        assert span.traceparent == parent

    assert read(spans) == []


def test_spans_inside_an_unsampled_span_begin_no_trace(spans: Path) -> None:
    with trace.span("submit", parent=UNSAMPLED), trace.span("inner") as inner:
        assert inner.traceparent == UNSAMPLED
        assert trace.headers() == {"traceparent": UNSAMPLED}

    assert read(spans) == []
    assert trace.headers() == {}


def test_a_share_of_nothing_keeps_nothing_of_what_begins_here(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    trace.use(OtelTracer("test", f"file:{path}", 0.0))

    with trace.span("submit", begins=True) as span, trace.span("inner"):
        handed_on = span.traceparent, trace.headers(), trace.mark_line(None, "info", {})
    trace.use(None)

    assert handed_on == ("", {}, {})
    assert read(path) == []


def test_a_span_that_may_not_begin_a_trace_begins_none(spans: Path) -> None:
    """Or every process that meets a job of an unkept trace would draw the lot again."""
    with trace.span("deliver") as span:
        assert span.traceparent == ""

    assert read(spans) == []


def test_a_later_span_links_to_the_one_it_is_given(spans: Path) -> None:
    before = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    tracer = OtelTracer("test", f"file:{spans}", 1.0)
    trace.use(tracer)

    with trace.span("deliver", parent=PARENT, links=[before, "nonsense"]):
        tracer.link("00-" + "3" * 32 + "-" + "4" * 16 + "-01")

    assert read(spans)[0]["links"] == ["2" * 16, "4" * 16]


def test_a_failure_is_named_by_its_type_only(tmp_path: Path) -> None:
    sent = InMemorySpanExporter()
    tracer = OtelTracer("test", f"file:{tmp_path / 'spans.jsonl'}", 1.0)
    tracer._processor = SimpleSpanProcessor(sent)
    trace.use(tracer)

    with pytest.raises(ValueError, match="secret"), trace.span("submit", begins=True):
        raise ValueError("a secret prompt")
    trace.use(None)

    (found,) = sent.get_finished_spans()
    assert found.status.description == "ValueError"
    assert "secret" not in found.to_json()


@pytest.mark.parametrize(
    "parent", [pytest.param(PARENT, id="kept"), pytest.param(UNSAMPLED, id="not_kept")]
)
def test_log_lines_inside_a_span_carry_its_trace(spans: Path, parent: str) -> None:
    with trace.span("submit", parent=parent):
        inside = trace.mark_line(None, "info", {"event": "x"})

    assert inside["trace_id"] == PARENT.split("-")[1]
    assert "trace_id" not in trace.mark_line(None, "info", {"event": "x"})


def test_a_share_is_about_what_it_says(tmp_path: Path) -> None:
    trace.use(OtelTracer("test", f"file:{tmp_path / 'spans.jsonl'}", 0.25))

    kept = 0
    for _ in range(400):
        with trace.span("submit", begins=True) as span:
            kept += is_sampled(span.traceparent)
    trace.use(None)

    assert 50 < kept < 150


def test_a_malformed_parent_begins_a_new_trace(spans: Path) -> None:
    with trace.span("submit", parent="nonsense", begins=True):
        pass

    assert read(spans)[0]["parent_id"] == ""


@pytest.mark.parametrize("target", ["on", "file:", "http://collector"])
def test_a_target_that_cannot_be_is_refused(target: str) -> None:
    with pytest.raises(ValidationError):
        trace.TraceSettings(traces=target)


def test_without_a_target_no_exporter_is_imported() -> None:

    code = "import sys; from eventing.telemetry import trace; trace.configure('x'); "
    code += "print('eventing.telemetry.trace_export' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert said.stdout.strip() == "False"
