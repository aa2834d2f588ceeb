"""The cost of one log line, one metric, one span and one scrape, and of all that a job causes.

.venv/bin/python bench/observability/parts.py

Each is the fastest of many repeats in one process, which excludes other load of the machine. How often a job does
each was counted on the local stack (`PER_JOB`). Writes JSON.
"""

import json
import sys
import tempfile
import timeit
from pathlib import Path

import structlog
from prometheus_client import REGISTRY, generate_latest

from api.http.middleware import _count
from eventing.job.job import AttemptRecord, Job, JobRequest, JobState, new_job_id
from eventing.telemetry import log, trace
from eventing.telemetry.metric.job import observe
from eventing.telemetry.trace_export import OtelTracer

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PER_JOB = {"log line": 3, "job counted": 1, "call counted": 2.7, "span": 8}
"""Lines at INFO, calls of the api (a submit and a look, or one that is held), and spans of a job
that starts no predictor: submit, enqueue, two deliveries, receive, attempt, generate, result.
"""
SCRAPE_EVERY_S = 15.0


def best_us(statement: object, number: int = 500) -> float:
    """Microseconds of one call, the fastest of 40 repeats."""
    return 1e6 * min(timeit.repeat(statement, number=number, repeat=40)) / number  # type: ignore[arg-type]


def a_job() -> Job:
    body = {"model": "m", "prompt": "x"}
    return Job(
        id=new_job_id(),
        state=JobState.COMPLETED,
        request=JobRequest(url="/v1/completions", body=body),
        created_ms=1,
        started_ms=2,
        first_token_ms=3,
        finished_ms=4,
        usage={"completion_tokens": 9},
        history=(AttemptRecord(attempt=1, owner="a", started_ms=2, outcome="completed"),),
    )


def log_line_us() -> float:
    """To a file, as a service's lines go."""
    real = sys.stderr
    try:
        with tempfile.TemporaryFile("w") as said:
            sys.stderr = said
            log.configure("bench")
            logger = structlog.get_logger()
            return best_us(
                lambda: logger.info("attempt ends", action="attempt_end", job_id="j", attempt=1)
            )
    finally:
        sys.stderr = real


def span() -> None:
    with trace.span("submit", parent=PARENT, begins=True, job_id="job") as opened:
        opened.set(outcome="done")


def count_call() -> None:
    _count({"method": "POST", "route": None}, 202, 0.01)


def main() -> dict[str, object]:
    job = a_job()
    parts = {"log line": log_line_us(), "job counted": best_us(lambda: observe(job, "m"))}
    parts["call counted"] = best_us(count_call)
    parts["span, off"] = best_us(span)
    with tempfile.TemporaryDirectory() as folder:
        for share in (0.0, 1.0):
            trace.use(OtelTracer("bench", f"file:{Path(folder) / 'spans'}", share))
            name = "span, kept" if share else "span, not sampled"
            parent = PARENT if share else ""

            def one(parent: str = parent) -> None:
                with trace.span("submit", parent=parent, begins=True, job_id="job") as opened:
                    opened.set(outcome="done")

            parts[name] = best_us(one, 200)
            trace.use(None)
    parts["scrape"] = best_us(lambda: generate_latest(REGISTRY), 5)
    per_job = {
        "logs": PER_JOB["log line"] * parts["log line"],
        "metrics": PER_JOB["job counted"] * parts["job counted"]
        + PER_JOB["call counted"] * parts["call counted"],
        "spans, off": PER_JOB["span"] * parts["span, off"],
        "spans, not sampled": PER_JOB["span"] * parts["span, not sampled"],
        "spans, kept": PER_JOB["span"] * parts["span, kept"],
    }
    return {
        "microseconds": {name: round(value, 2) for name, value in parts.items()},
        "microseconds_per_job": {name: round(value, 1) for name, value in per_job.items()},
        "scrape_share_of_a_core_percent": round(parts["scrape"] / SCRAPE_EVERY_S / 1e4, 4),
    }


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
