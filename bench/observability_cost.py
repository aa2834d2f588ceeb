"""What being seen costs: the same closed loop on the embedded stack, with more and more looking on.

    .venv/bin/python bench/observability_cost.py [ROUNDS] [SECONDS]

Each round runs every variant once, in turn, on a stack of its own with the test engine, so that
what else the machine does falls on all of them alike. CPU time per job (api, broker, stack and
predictor, from their own `process_cpu_seconds_total`) is the figure that noise spares; throughput
and p99 are shown too. Writes JSON to standard output. Metrics are always counted; what varies is
who reads them.
"""

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp

from knative.load.run import Closed
from knative.load.schedule import ClientKind, Shape
from knative.load.session import Plan, run_plan
from knative.load.watch import scrape
from knative.local.data_dir import find_addresses
from knative.simulator.load import Load
from knative.simulator.workload import Lengths, Profile, ProfileKind

MODEL = "smollm2-135m-instruct"
USERS = 8
VARIANTS: dict[str, dict[str, str]] = {
    "off": {"TORPOR_LOG_LEVEL": "ERROR"},
    "logs and scrapes": {"TORPOR_LOG_LEVEL": "INFO", "scraped": "1"},
    "and 5 % of traces": {
        "TORPOR_LOG_LEVEL": "INFO",
        "scraped": "1",
        "TORPOR_TRACES": "file:{folder}/spans.jsonl",
        "TORPOR_TRACES_SHARE": "0.05",
    },
    "and all traces": {
        "TORPOR_LOG_LEVEL": "INFO",
        "scraped": "1",
        "TORPOR_TRACES": "file:{folder}/spans.jsonl",
    },
}


def plan_of(addresses: dict[str, str], seconds: float) -> Plan:
    return Plan(
        addresses=addresses,
        model=MODEL,
        key="",
        load=Load(Profile(ProfileKind.STEADY, seconds, 1, 1)),
        lengths=Lengths(prompt_median=20, output_median=20),
        shape=Shape(
            mix={ClientKind.ASYNC: 1, ClientKind.SSE: 1, ClientKind.SYNC: 1}, output_cap=32
        ),
        closed=Closed(users=USERS, duration_s=seconds),
        until_s=None,
        patience_s=60,
        gpu_metrics="",
    )


async def cpu_s(addresses: dict[str, str]) -> float:
    async with aiohttp.ClientSession() as session:
        seen = [await scrape(session, at) for at in addresses.values()]
    return sum(each.total("process_cpu_seconds_total") or 0.0 for each in seen)


async def look(addresses: dict[str, str]) -> None:
    """Fetch every page every five seconds (Prometheus does every 15), and drop it unread: parsing
    would take the generator's time, not the stack's.
    """
    async with aiohttp.ClientSession() as session:
        while True:
            for at in addresses.values():
                async with session.get(f"{at}/metrics") as answer:
                    await answer.read()
            await asyncio.sleep(5)


async def predictor_of(activator: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(f"{activator}/status") as answer:
        (replica,) = (await answer.json())["replicas"]["list"]
    return "http://127.0.0.1:" + replica["id"].rsplit("-", 1)[1]


async def measure(addresses: dict[str, str], seconds: float, is_scraped: bool) -> dict[str, float]:
    await run_plan(plan_of(addresses, 3))  # wake it
    everybody = addresses | {"predictor": await predictor_of(addresses["activator"])}
    before = await cpu_s(everybody)
    plan = replace(plan_of(addresses, seconds), is_watched=False)
    async with asyncio.TaskGroup() as group:
        looking = group.create_task(look(everybody) if is_scraped else asyncio.sleep(0))
        result = await run_plan(plan)
        looking.cancel()
    spent = await cpu_s(everybody) - before
    report = result.report
    done = report["outcomes"].get("completed", 0)
    assert done == report["sent"], report["outcomes"]
    busy_s = max(s.ended_s for s in result.samples)
    return {
        "jobs_per_s": done / busy_s,
        "p99_s": report["seconds"]["total"]["p99"],
        "cpu_ms_per_job": 1000 * spent / done,
    }


def run_variant(variant: dict[str, str], seconds: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        env = {k: v.format(folder=folder) for k, v in variant.items() if k != "scraped"}
        env = dict(os.environ) | {"TORPOR_SEEDED_TOKENS_PER_S": "0"} | env
        argv = [str(Path(sys.executable).parent / "torpor"), "up", "--engine", "seeded"]
        argv += ["--port", "0", "--broker-port", "0", "--data-dir", str(data)]
        argv += ["--container-concurrency", str(USERS), "--log-level", env["TORPOR_LOG_LEVEL"]]
        with (Path(folder) / "said.log").open("w") as said:
            stack = subprocess.Popen(argv, env=env, stderr=said)
        try:
            while (found := find_addresses(data)) is None:
                assert stack.poll() is None, (Path(folder) / "said.log").read_text()
                time.sleep(0.1)
            addresses = {"api": found.api, "broker": found.broker, "activator": found.activator}
            return asyncio.run(measure(addresses, seconds, "scraped" in variant))
        finally:
            stack.send_signal(signal.SIGTERM)
            stack.wait(30)


def main(rounds: int, seconds: float) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for number in range(rounds):
        # In another order each time, so that no variant always has the warmest machine.
        names = list(VARIANTS)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            found[name].append(run_variant(VARIANTS[name], seconds))
            sys.stderr.write(f"{name}: {found[name][-1]}\n")
    medians = {
        name: {key: statistics.median(one[key] for one in runs) for key in runs[0]}
        for name, runs in found.items()
    }
    off = medians["off"]
    return {
        "rounds": rounds,
        "seconds": seconds,
        "users": USERS,
        "cores": os.cpu_count(),
        "medians": medians,
        "against_off_percent": {
            name: {key: round(100 * (one[key] / off[key] - 1), 1) for key in one}
            for name, one in medians.items()
        },
        "runs": found,
    }


if __name__ == "__main__":
    given = [*sys.argv[1:], "3", "15"][:2] if len(sys.argv) < 3 else sys.argv[1:3]
    print(json.dumps(main(int(given[0]), float(given[1])), indent=1))
