"""What steps cost a job: no plan, and five steps that do nothing, in one local stack.

    python -m bench.step_overhead [--jobs 400]

`torpor up` with two models of the test engine, awake, and the steps process awake; one client, one job of one token
after the other, the models in turn, so that both see the same minute of the machine. From submit to end, by the
store's times, which have no client in them. Then some jobs of each model alone, to count the calls that they make to
the store: those do not hang on the machine.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import aiohttp

from eventing.redis.connection import connect

STEPS: Final = ("no-op", "no-op-2", "no-op-3", "no-op-4", "no-op-5")
MODELS: Final = ("plain", "stepped")
_WARM_JOBS: Final = 20
_COUNTED_JOBS: Final = 20


async def measured(jobs: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Milliseconds from submit to end of each job, by model, and calls to the store a job."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        (data / "pipelines.yaml").write_text(json.dumps({"stepped": {"steps": STEPS}}))
        words = ["up", "--data-dir", str(data / "data"), "--port", "0", "--broker-port", "0"]
        words += [word for model in MODELS for word in ("--model", f"{model}=seeded")]
        words += ["--pipelines", str(data / "pipelines.yaml"), "--min-replicas", "1"]
        torpor = str(Path(sys.executable).parent / "torpor")
        stack = await asyncio.create_subprocess_exec(
            torpor, *words, stderr=asyncio.subprocess.DEVNULL
        )
        try:
            address = await _address(data / "data" / "addresses.json")
            async with aiohttp.ClientSession(address) as http:
                for _ in range(_WARM_JOBS):
                    for model in MODELS:
                        await _one(http, model)
                found: dict[str, list[float]] = {model: [] for model in MODELS}
                for _ in range(jobs):
                    for model in MODELS:
                        found[model].append(await _one(http, model))
                return found, await _calls(http, data / "data" / "addresses.json")
        finally:
            stack.terminate()
            await stack.wait()


async def _calls(http: aiohttp.ClientSession, addresses: Path) -> dict[str, float]:
    """Calls of clients to the store a job, by model: each script is one, whatever it calls."""
    store, found = connect(json.loads(addresses.read_text())["redis"]), {}
    async with store.monitor() as monitor:
        for model in MODELS:
            for _ in range(_COUNTED_JOBS):
                await _one(http, model)
            await store.echo(model)
            count = 0
            while (seen := await monitor.next_command())["command"] != f"ECHO {model}":
                count += seen["client_type"] != "lua"
            found[model] = count / _COUNTED_JOBS
    await store.aclose()
    return found


async def _address(path: Path) -> str:
    async with asyncio.timeout(120):
        while not path.exists():
            await asyncio.sleep(0.1)
    return str(json.loads(path.read_text())["api"])


async def _one(http: aiohttp.ClientSession, model: str) -> float:
    body = {"model": model, "prompt": "hello", "max_tokens": 1}
    async with http.post("/v1/jobs", json={"url": "/v1/completions", "body": body}) as answer:
        place = (await answer.json())["links"]["self"]
    async with http.get(place, params={"wait": "60"}) as answer:
        job: dict[str, Any] = await answer.json()
    if job["state"] != "completed":
        raise RuntimeError(f"{model}: {job['state']}, {job['error']}")
    return float(job["timings"]["total_ms"])


def main() -> None:
    """Print p50 and p99 of both, and what a step costs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=400)
    found, calls = asyncio.run(measured(parser.parse_args().jobs))
    shown = {}
    for model, times in found.items():
        cuts = statistics.quantiles(times, n=100)
        shown[model] = cuts[49]
        print(f"{model:8} n={len(times)} p50 {cuts[49]:.1f} ms, p99 {cuts[98]:.1f} ms")
    added = shown["stepped"] - shown["plain"]
    print(f"{len(STEPS)} steps add {added:.1f} ms (p50), {added / len(STEPS):.1f} ms each")
    more = calls["stepped"] - calls["plain"]
    print(f"calls to the store a job: {calls}; {more / len(STEPS):.1f} more a step")


if __name__ == "__main__":
    main()
