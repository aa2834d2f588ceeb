"""The live stack's autoscaler against its settings: how fast it wakes, and how long it stays.

    python -m bench.policies.live

Starts `torpor up --engine seeded` on a clock ten times as fast. Follows a job at zero from a new connection over
its record (the api's clock) to the autoscaler's decision (its own log line), and from its end to the decision for
zero. All on one machine, hence on one clock. What a client spends on itself before it connects is timed beside: an
`httpx.Client` reads the machine's certificates even for plain HTTP.
"""

import argparse
import http.client
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from tests.integration.stack import MODEL, LocalStack

SCALE = 10
ENV = {"TORPOR_SEEDED_TOKENS_PER_S": "200", "TORPOR_SEEDED_START_UP_S": "0.2"}


def scalings(stack: LocalStack) -> list[tuple[float, int]]:
    """(wall time, wanted) of every change so far."""
    found = []
    for line in stack.said().splitlines():
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if said.get("action") == "scale":
            moment = datetime.fromisoformat(said["timestamp"]).timestamp()
            found.append((moment, int(said["wanted"])))
    return found


@dataclass(frozen=True)
class Life:
    """One job at zero, in seconds of the wall clock."""

    client_made: float
    submit_to_record: float
    record_to_decision: float
    submit_to_answer: float
    submit_to_decision: float
    answer_to_zero: float


class NoWakeUp(Exception):
    """The job was served without a log line that a predictor was requested."""


def is_asleep(stack: LocalStack) -> bool:
    """Whether no predictor is there and none is wanted (one that died is asked for only once)."""
    replicas = stack.status()["replicas"]
    return not replicas["list"] and replicas["wanted"] == 0


def once(stack: LocalStack) -> Life:
    """Submit at zero, and watch until it sleeps again."""
    stack.until(lambda: is_asleep(stack), 60)
    client_made = made_client()
    before = time.time()
    job_id = submitted(stack)
    answered = time.time()
    job = stack.job(job_id, wait_s=50)
    stack.until(lambda: scalings(stack)[-1][1] == 0 and scalings(stack)[-1][0] > before, 60)
    mine = [entry for entry in scalings(stack) if entry[0] >= before]
    woke = next((at for at, wanted in mine if wanted > 0), None)
    if woke is None:
        last = "".join(line + "\n" for line in stack.said().splitlines()[-20:])
        raise NoWakeUp(f"submitted at {before}, then only {mine}; the stack said last:\n{last}")
    recorded = job["created_ms"] / 1000
    return Life(
        client_made=client_made,
        submit_to_record=recorded - before,
        record_to_decision=woke - recorded,
        submit_to_answer=answered - before,
        submit_to_decision=woke - before,
        answer_to_zero=mine[-1][0] - job["finished_ms"] / 1000,
    )


def made_client() -> float:
    """The seconds that a client of httpx takes to be there."""
    began = time.monotonic()
    httpx.Client().close()
    return time.monotonic() - began


def submitted(stack: LocalStack) -> str:
    """A job's id, submitted over a connection of its own."""
    line = {"url": "/v1/completions", "body": {"model": MODEL, "prompt": "hello", "max_tokens": 5}}
    body = json.dumps(line)
    connection = http.client.HTTPConnection(urlsplit(stack.addresses["api"]).netloc, timeout=30)
    try:
        connection.request("POST", "/v1/jobs", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        said = answer.read()
        if answer.status != http.HTTPStatus.ACCEPTED:
            raise RuntimeError(f"{answer.status}: {said.decode()}")
        return str(json.loads(said)["id"])
    finally:
        connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    arguments = parser.parse_args()
    print(
        "| window, grace | runs | submit to record | record to decision | submit to decision "
        "| submit to 202 | a client of httpx | answer to zero |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for window_s, grace_s in ((60, 30), (6, 6)):
        with tempfile.TemporaryDirectory() as folder:
            flags = ("--window", f"{window_s}s", "--grace", f"{grace_s}s", "--log-level", "INFO")
            stack = LocalStack(Path(folder), *flags, env=ENV).start()
            try:
                once(stack)  # the first job of a stack also warms its connections
                lives = [once(stack) for _ in range(arguments.runs)]
            finally:
                stack.stop()
        slept = sorted(life.answer_to_zero * SCALE for life in lives)
        cells = [
            f"{window_s} s, {grace_s} s",
            str(len(lives)),
            spread([life.submit_to_record for life in lives]),
            spread([life.record_to_decision for life in lives]),
            spread([life.submit_to_decision for life in lives]),
            spread([life.submit_to_answer for life in lives]),
            spread([life.client_made for life in lives]),
            f"{slept[0]:.1f} to {slept[-1]:.1f} s",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


def spread(values: list[float]) -> str:
    """Median and largest, in milliseconds."""
    return f"median {statistics.median(values) * 1000:.0f} ms, most {max(values) * 1000:.0f} ms"


if __name__ == "__main__":
    main()
