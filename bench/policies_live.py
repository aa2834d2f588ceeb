"""The live stack's autoscaler against its settings: how fast it wakes, and how long it stays.

    python -m bench.policies_live

Starts `torpor up --engine seeded` on a clock ten times as fast. From before a job is submitted at
zero (a fresh HTTP client, as a user has it), and from the moment the api had it, to the
autoscaler's decision (its own log line); and from the end of a job to the decision for zero.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tests.integration.stack import LocalStack

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

    submit_to_decision: float
    accepted_to_decision: float
    answer_to_zero: float


class NoWakeUp(Exception):
    """The job was served and nobody said that a predictor was asked for."""


def is_asleep(stack: LocalStack) -> bool:
    """Whether no predictor is there and none is wanted (one that died is asked for only once)."""
    replicas = stack.status()["replicas"]
    return not replicas["list"] and replicas["wanted"] == 0


def once(stack: LocalStack) -> Life:
    """Submit at zero, and watch until it sleeps again."""
    stack.until(lambda: is_asleep(stack), 60)
    before = time.time()
    job = stack.job(stack.submit(max_tokens=5), wait_s=20)
    stack.until(lambda: scalings(stack)[-1][1] == 0 and scalings(stack)[-1][0] > before, 60)
    mine = [entry for entry in scalings(stack) if entry[0] >= before]
    woke = next((at for at, wanted in mine if wanted > 0), None)
    if woke is None:
        last = "".join(line + "\n" for line in stack.said().splitlines()[-20:])
        raise NoWakeUp(f"submitted at {before}, then only {mine}; the stack said last:\n{last}")
    return Life(
        submit_to_decision=woke - before,
        accepted_to_decision=woke - job["created_ms"] / 1000,
        answer_to_zero=mine[-1][0] - job["finished_ms"] / 1000,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    arguments = parser.parse_args()
    print("| window, grace | runs | submit to decision | accepted to decision | answer to zero |")
    print("|---|---|---|---|---|")
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
        print(
            f"| {window_s} s, {grace_s} s | {len(lives)} | "
            f"{spread([life.submit_to_decision for life in lives])} | "
            f"{spread([life.accepted_to_decision for life in lives])} | "
            f"{slept[0]:.1f} to {slept[-1]:.1f} s |",
            flush=True,
        )


def spread(values: list[float]) -> str:
    """Median and largest, in milliseconds."""
    return f"median {statistics.median(values) * 1000:.0f} ms, most {max(values) * 1000:.0f} ms"


if __name__ == "__main__":
    main()
