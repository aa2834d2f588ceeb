"""One real job through the whole path: cold start, warm overhead, idle footprint, as ratios in one run.

`python -m bench.one_job --runs 3 --json one_job.json`. Cold: submit at zero replicas → first token, with and
without the pre-imported parent, against a bare `AsyncLLM` as vLLM starts it (exec → first token), interleaved.
Warm: submit → first token at one replica against the engine called in its own process. Idle: resident memory of
every process of the stack at zero replicas.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import aiohttp
import psutil

from bench import cold_start
from bench.report import machine, publish
from bench.torpor_up import ROOT, Stack, torpor_up

PROMPT: Final = "The capital of France is"
BODY: Final = {"prompt": PROMPT, "max_tokens": 1, "temperature": 0}
WARM_RUNS: Final = 30


def rss_mb(stack: Stack) -> int:
    """Private and shared pages of the whole stack, counted once where they are shared by fork (PSS), in MB."""
    root = psutil.Process(stack.pid)
    return sum(p.memory_full_info().pss for p in (root, *root.children(recursive=True))) >> 20


def running(folder: Path, *, warm_parent: bool) -> AbstractContextManager[Stack]:
    """The embedded stack with the real engine; a short window, so that it sleeps between runs."""
    flags = ["--warm-parent" if warm_parent else "--no-warm-parent"]
    flags += ["--models-dir", str(ROOT / ".torpor/models")]
    flags += ["--window", "60s", "--time-scale", "20", "--container-concurrency", "16"]
    return torpor_up(folder, *flags, env={"OMP_NUM_THREADS": "1"})


async def first_token_s(session: aiohttp.ClientSession, api: str) -> float:
    """Submit one job; seconds until its first token reaches an SSE reader."""
    began = time.perf_counter()
    line = {"url": "/v1/completions", "body": {"model": cold_start.NAME, **BODY}}
    async with session.post(f"{api}/v1/jobs", json=line) as answer:
        job_id = (await answer.json())["id"]
    async with session.get(f"{api}/v1/jobs/{job_id}/events") as events:
        took = 0.0
        async for raw in events.content:
            if raw.startswith(b"event: tokens") and not took:
                took = time.perf_counter() - began
            if raw.startswith(b"event: result"):
                break
    return took


async def until_zero(session: aiohttp.ClientSession, stack: Stack) -> None:
    while True:
        async with session.get(f"{stack.at.activator}/status") as answer:
            if not (await answer.json())["models"][0]["replicas"]["list"]:
                return
        await asyncio.sleep(0.2)


async def cold(stack: Stack) -> float:
    async with aiohttp.ClientSession() as session:
        await until_zero(session, stack)
        return await first_token_s(session, stack.at.api)


async def warm(stack: Stack) -> list[float]:
    async with aiohttp.ClientSession() as session:
        await first_token_s(session, stack.at.api)
        return [await first_token_s(session, stack.at.api) for _ in range(WARM_RUNS)]


async def direct(model: str) -> list[float]:
    """The engine called in its own process, same prompt, warm."""
    from predictor.engine.engine import EngineRequest
    from predictor.engine.vllm.engine import VllmEngine, VllmSettings

    engine = VllmEngine(VllmSettings(model, cold_start.NAME, vllm_args=cold_start.ENGINE_ARGS))
    await engine.start(lambda _: None)
    took = []
    for number in range(WARM_RUNS + 1):
        began = time.perf_counter()
        async for step in engine.run(EngineRequest(str(number), "/v1/completions", BODY), ()):
            if step.token_ids:
                took.append(time.perf_counter() - began)
    await engine.stop()
    return took[1:]


def direct_in_its_own_process(model: str) -> list[float]:
    said = subprocess.run(
        [sys.executable, "-m", "bench.one_job", "--direct", model], capture_output=True, check=True
    ).stdout
    seconds: list[float] = json.loads(said.splitlines()[-1])
    return seconds


def measure(runs: int, model: str, folder: Path) -> dict[str, Any]:
    bare, with_parent, without = [], [], []
    with (
        running(folder / "warm", warm_parent=True) as a,
        running(folder / "plain", warm_parent=False) as b,
    ):
        idle = {"with_parent_mb": rss_mb(a), "without_mb": rss_mb(b)}
        for _ in range(runs):
            bare.append(cold_start.executed("bare", "bare", model, {}).first_token_s)
            with_parent.append(asyncio.run(cold(a)))
            without.append(asyncio.run(cold(b)))
            latest = (bare[-1], with_parent[-1], without[-1])
            say("cold: bare {:.2f} s, with parent {:.2f} s, without {:.2f} s".format(*latest))
    through: list[float] = []
    alone: list[float] = []
    with running(folder / "hot", warm_parent=True) as stack:
        for _ in range(runs):
            through += asyncio.run(warm(stack))
            alone += direct_in_its_own_process(model)
            middles = (statistics.median(through) * 1000, statistics.median(alone) * 1000)
            say("warm: whole path {:.1f} ms, engine alone {:.1f} ms".format(*middles))
    middle = statistics.median
    return {
        "cold_s": {"bare": bare, "with_parent": with_parent, "without_parent": without},
        "cold_ratio": {
            "with_parent": round(middle(with_parent) / middle(bare), 3),
            "without_parent": round(middle(without) / middle(bare), 3),
        },
        "warm_ms": {
            "path_p50": round(middle(through) * 1000, 2),
            "engine_p50": round(middle(alone) * 1000, 2),
            "added": round((middle(through) - middle(alone)) * 1000, 2),
        },
        "idle_mb": idle,
        "machine": machine() | {"cpu": cold_start.cpu_model()},
    }


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--data-dir", type=Path, default=ROOT / ".torpor/bench")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--direct", metavar="MODEL", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.direct:
        print(json.dumps(asyncio.run(direct(args.direct))))
        return
    from predictor.model_files.weights import ensure_model

    model = ensure_model(cold_start.NAME, (ROOT / ".torpor/models").resolve(), say)
    report = measure(args.runs, model, args.data_dir)
    publish(report, args.json)


if __name__ == "__main__":
    main()
