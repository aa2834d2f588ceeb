"""One job, one trace: the spans of real processes as a collector of OTLP gets them, told apart by
their parents and links.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from tests.integration.collector import Collector, Span
from tests.integration.stack import MODEL, LocalStack

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"


class Traced:
    """A stack whose processes send their spans to a collector."""

    def __init__(self, folder: Path) -> None:
        self._collector = Collector().start()
        env = {
            "TORPOR_TRACES": "otlp",
            "OTEL_EXPORTER_OTLP_ENDPOINT": self._collector.address,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "TORPOR_WEBHOOK_ALLOW": '["127.0.0.0/8"]',
            "TORPOR_WEBHOOK_SCHEDULE_S": "[0,0.2]",
        }
        self.stack = LocalStack(folder / "data", "--window", "30s", "--lease", "2s", env=env)
        self._number = 0

    def stop(self) -> None:
        self.stack.stop()
        self._collector.stop()

    def submit(self, *, webhook: str = "", **body: Any) -> tuple[str, str]:
        """Submit as a caller that traces; the job's id and the trace's."""
        self._number += 1
        trace_id = f"{int(TRACE_ID, 16) + self._number:032x}"
        answer = httpx.post(
            self.stack.addresses["api"] + "/v1/jobs",
            json={"url": "/v1/completions", "body": {"model": MODEL, "prompt": "x", **body}}
            | ({"webhook": {"url": webhook}} if webhook else {}),
            headers={"traceparent": f"00-{trace_id}-{CALLER}-01"},
        )
        return str(answer.json()["id"]), trace_id

    def spans(self, trace_id: str, *, until: Callable[[list[Span]], bool]) -> list[Span]:
        """The trace's spans, in order of their start, once they are all there: each process sends
        its own when it will.
        """
        deadline = time.monotonic() + 20
        while True:
            found = self._collector.trace(trace_id)
            if until(found) and not orphans(found):
                return found
            assert time.monotonic() < deadline, [span["name"] for span in found]
            time.sleep(0.05)


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    made = Traced(tmp_path_factory.mktemp("traced"))
    made.stack.start()
    yield made
    made.stop()


def orphans(spans: list[Span]) -> list[Span]:
    """Those whose parent has not come yet."""
    known = {span["span_id"] for span in spans} | {CALLER}
    return [span for span in spans if span["parent_id"] not in known]


def is_told(spans: list[Span]) -> bool:
    """The predictor has ended the job, the broker has heard so, and the api has told who listens."""
    triggers = {span["attributes"]["torpor.trigger"] for span in named(spans, "deliver")}
    is_delivered = any(name.startswith("requests-") for name in triggers)
    parts = ("enqueue", "generate", "result")
    return is_delivered and all(named(spans, name) for name in parts)


def is_over_after(attempts: int) -> Callable[[list[Span]], bool]:
    """So many attempts have ended, and the end was told."""
    return lambda spans: is_told(spans) and len(named(spans, "receive")) == attempts


def named(spans: list[Span], name: str) -> list[Span]:
    return [span for span in spans if span["name"] == name]


def tree(spans: list[Span]) -> set[tuple[str, str]]:
    """(name, name of its parent) of every span; the caller's own is «caller»."""
    names = {span["span_id"]: span["name"] for span in spans} | {CALLER: "caller"}
    return {(span["name"], names[span["parent_id"]]) for span in spans}


def test_the_trace_of_a_job_that_wakes_a_predictor(traced: Traced) -> None:
    _, trace_id = traced.submit(max_tokens=4)

    # The activator tells of its span at a time of its own.
    spans = traced.spans(trace_id, until=lambda told: is_told(told) and bool(named(told, "wake")))

    assert tree(spans) == {
        ("submit", "caller"),
        ("enqueue", "submit"),
        ("deliver", "submit"),
        ("wake", "deliver"),
        ("receive", "deliver"),
        ("attempt", "receive"),
        ("generate", "attempt"),
        ("result", "submit"),
    }


def test_every_room_has_its_part_in_it(traced: Traced) -> None:
    _, trace_id = traced.submit(max_tokens=4)

    spans = traced.spans(trace_id, until=is_told)

    services = {span["service"] for span in spans}
    assert services >= {"torpor-api", "torpor-broker", "torpor-predictor"}


def test_the_attempts_of_a_job_that_fails_are_linked_one_to_the_next(traced: Traced) -> None:
    job_id, trace_id = traced.submit(max_tokens=9, seeded={"fail_at": 3, "output_tokens": 9})

    spans = traced.spans(trace_id, until=is_over_after(3))

    attempts = named(spans, "attempt")
    assert [span["attributes"]["torpor.attempt"] for span in attempts] == [1, 2, 3]
    assert [span["links"] for span in attempts] == [
        [],
        [attempts[0]["span_id"]],
        [attempts[1]["span_id"]],
    ]
    assert {span["failed"] for span in attempts} == {False}  # an answer, if not a good one
    assert traced.stack.job(job_id)["state"] == "failed"


def test_the_deliveries_of_a_job_that_fails_are_linked_too(traced: Traced) -> None:
    _, trace_id = traced.submit(max_tokens=9, seeded={"fail_at": 3, "output_tokens": 9})

    spans = traced.spans(trace_id, until=is_over_after(3))

    deliveries = [
        span
        for span in named(spans, "deliver")
        if span["attributes"]["torpor.trigger"].startswith("requests-")
    ]
    assert [span["attributes"]["torpor.number"] for span in deliveries] == [1, 2, 3]
    assert deliveries[1]["links"] == [deliveries[0]["span_id"]]


def test_a_resumed_job_goes_on_in_its_trace_after_the_tokens_of_the_attempt_that_died(
    traced: Traced,
) -> None:
    job_id, trace_id = traced.submit(
        max_tokens=60, seeded={"output_tokens": 60, "tokens_per_s": 20}
    )
    traced.stack.until(lambda: traced.stack.job(job_id)["token_count"] >= 10)
    # More than one, where the machine stood still and the autoscaler saw a crowd.
    for replica in traced.stack.status()["replicas"]["list"]:
        os.kill(replica["pid"], signal.SIGKILL)

    spans = traced.spans(trace_id, until=is_told)

    (attempt,) = named(spans, "attempt")  # the first one died with its process, span and all
    assert attempt["attributes"]["torpor.attempt"] == 2
    assert len(attempt["links"]) == 1
    (generated,) = named(spans, "generate")
    resumed = generated["attributes"]["torpor.resumed_tokens"]
    assert resumed >= 10
    assert generated["attributes"]["torpor.new_tokens"] == 60 - resumed


@pytest.fixture
def receiver() -> Iterator[str]:
    """The address of a webhook receiver that fails once, and takes what comes again."""
    tries = count()

    class Fickle(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(204 if next(tries) else 500)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            return None

    server = HTTPServer(("127.0.0.1", 0), Fickle)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_tries_of_a_webhook_are_linked_and_belong_to_the_trace(
    traced: Traced, receiver: str
) -> None:
    _, trace_id = traced.submit(max_tokens=4, webhook=receiver)

    spans = traced.spans(trace_id, until=lambda spans: len(named(spans, "webhook")) == 2)

    first, second = named(spans, "webhook")
    (submit,) = named(spans, "submit")
    assert [first["parent_id"], second["parent_id"]] == [submit["span_id"]] * 2
    assert second["links"] == [first["span_id"]]
    assert [each["attributes"]["torpor.status"] for each in (first, second)] == [500, 204]
