"""How fast the simulator is, whether its memory stays flat, and whether two runs are the same.

python -m bench.simulator_speed --trace ../shared/traces/azure_llm_2023_conv.csv
"""

import argparse
import hashlib
import resource
import subprocess
import sys
import time
from pathlib import Path

from torpor.simulator.candidate import Candidate, keda_candidate, kpa_candidate, work_candidate
from torpor.simulator.engine import GPU_ASSUMED
from torpor.simulator.load import Load
from torpor.simulator.plan import run
from torpor.simulator.report.report import as_json
from torpor.simulator.trace import Trace
from torpor.simulator.world import Scenario

SLOTS = 16
POLICIES = ("kpa", "keda", "work")


def candidate(name: str) -> Candidate:
    if name == "kpa":
        return kpa_candidate("kpa", {}, SLOTS)
    if name == "keda":
        return keda_candidate("keda", {}, SLOTS)
    return work_candidate("work", GPU_ASSUMED, SLOTS, start_s=30, p95_wait_s=60)


def measure(trace: Path, hours: float, policy: str) -> None:
    """One run in this process: a line of figures."""
    load = Load(Trace(trace, hours=hours))
    scenario = Scenario(GPU_ASSUMED, load.span_s, container_concurrency=SLOTS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, start_cpu = time.perf_counter(), time.process_time()
    one = run(scenario, load, candidate(policy), 4.5)
    wall_s = time.perf_counter() - start
    cpu_s = time.process_time() - start_cpu
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    digest = hashlib.sha256(as_json([one]).encode()).hexdigest()[:12]
    print(
        f"| {policy} | {hours:g} h | {one.requests} | {wall_s:.1f} s | {cpu_s:.1f} s | "
        f"{one.requests / cpu_s:.0f} | +{grown / 1024:.0f} MiB | {digest} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--one", nargs=2, metavar=("HOURS", "POLICY"))
    arguments = parser.parse_args()
    if arguments.one:
        measure(arguments.trace, float(arguments.one[0]), arguments.one[1])
        return
    print("| policy | trace | requests | wall | CPU | requests a CPU second | memory | bytes |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for policy in POLICIES:
        for hours in ("1", "24", "24"):
            # A process of its own each: the memory of one run must not hide in another's.
            command = [sys.executable, "-m", "bench.simulator_speed"]
            command += ["--trace", str(arguments.trace), "--one", hours, policy]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
