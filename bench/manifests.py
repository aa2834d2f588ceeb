"""What render, build and doctor cost in CPU time, and how many mistakes they are tried with.

Run: .venv/bin/python -m bench.manifests
"""

from __future__ import annotations

import resource
import statistics
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from knative.deploy.doctor import RULES, examine
from knative.deploy.render.tree import OVERLAYS, files
from knative.deploy.values import load_values
from tests.manifests.doctor_mistakes import BREAKS
from tests.manifests.test_schemas import NEGATIVES

MANIFESTS = Path(__file__).parents[1] / "manifests"
ROUNDS = 10


def median_ms(work: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """Median CPU time of a call, its child processes included: a busy machine does not move it."""
    times = []
    for _ in range(rounds):
        started = _cpu_s()
        work()
        times.append((_cpu_s() - started) * 1000)
    return statistics.median(times)


def _cpu_s() -> float:
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in spent)


def build(overlay: str) -> str:
    """Give what kubectl would apply."""
    command = ["kubectl", "kustomize", str(MANIFESTS / "overlays" / overlay)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def main() -> None:
    """Print one line a figure."""
    values = load_values(MANIFESTS / "values.yaml")
    print("milliseconds of CPU, medians")
    print(f"render, {len(files(values))} files: {median_ms(lambda: files(values)):.0f} ms")
    for overlay in OVERLAYS:
        built = median_ms(partial(build, overlay), rounds=5)
        resources = list(yaml.load_all(build(overlay), yaml.CSafeLoader))
        judged = median_ms(partial(examine, resources))
        print(
            f"{overlay}: {len(resources)} objects, kubectl kustomize {built:.0f} ms, "
            f"doctor {judged:.1f} ms"
        )
    print(f"doctor: {len(RULES)} rules, {len(BREAKS)} mistakes that must be named")
    print(f"schemas: {len(NEGATIVES)} negative samples that must be refused")


if __name__ == "__main__":
    main()
