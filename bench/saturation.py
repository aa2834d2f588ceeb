"""Tokens a second of N jobs through the whole path, against vLLM's offline `LLM.generate`.

`python -m bench.saturation [--jobs 32] [--rounds 3] [--json saturation.json]`. Same prompts, same
settings (float32, eager, batch 16, one OpenMP thread), one run, rounds interleaved; each side's
engine is loaded before its clock starts and stands still while the other is timed. The path is all
of it: `torpor up`, a submit each over HTTP, broker, pump, predictor, checkpoints, result. Its clock
runs from the first submit to the last end; vLLM's is `generate` alone. Aim: 0.97. On a machine that
does other things the rates of one round are luck: CPU a token, of all processes, stands beside.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import psutil

from bench.cold_start import ENGINE_ARGS, KV_BYTES, NAME
from bench.report import machine, publish
from bench.torpor_up import ROOT, Stack, torpor_up

BATCH: Final = 16
_START_S: Final = 300.0
_PROMPT: Final = "Story number {}: once upon a time, in a valley of hummingbirds,"


class Offline:
    """vLLM's own engine in a process of its own; a line in, a line out."""

    def __init__(self, model: str) -> None:
        command = [sys.executable, "-m", "bench.saturation", "--as-offline", model]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    @property
    def pid(self) -> int:
        return self._process.pid

    def round(self, jobs: int, tokens: int) -> float:
        """Tokens a second."""
        assert self._process.stdin is not None
        print(json.dumps([jobs, tokens]), file=self._process.stdin, flush=True)
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("bench "):
                return line.removeprefix("bench ")
        raise SystemExit("vLLM's offline engine ended")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def offline(model: str) -> None:
    """The child: `LLM.generate` whenever asked."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import vllm.engine.arg_utils  # noqa: F401  (first: vLLM's circular imports)
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=model,
        dtype="float32",
        enforce_eager=True,
        block_size=32,
        max_num_seqs=BATCH,
        kv_cache_memory_bytes=KV_BYTES,
        max_model_len=2048,
    )
    print("bench ready", flush=True)
    for line in sys.stdin:
        jobs, tokens = json.loads(line)
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        llm.reset_prefix_cache()
        began = time.perf_counter()
        made = llm.generate(prompts(jobs), params, use_tqdm=False)
        took_s = time.perf_counter() - began
        count = sum(len(each.outputs[0].token_ids) for each in made)
        print(f"bench {count / took_s}", flush=True)


def prompts(jobs: int) -> list[str]:
    return [_PROMPT.format(number) for number in range(jobs)]


def stack(folder: Path) -> AbstractContextManager[Stack]:
    """`torpor up` with one real predictor that stays."""
    flags = ["--min-replicas", "1", "--container-concurrency", str(BATCH)]
    flags += ["--models-dir", str(ROOT / ".torpor/models")]
    flags += ["--engine-args", " ".join((*ENGINE_ARGS, "--max-model-len", "2048"))]
    return torpor_up(folder, *flags, env={"OMP_NUM_THREADS": "1"}, within_s=_START_S)


async def through_path(api: str, jobs: int, tokens: int, salt: str) -> float:
    """Tokens a second from the first submit to the last end."""
    timeout = aiohttp.ClientTimeout(total=_START_S)
    async with aiohttp.ClientSession(api, timeout=timeout) as session:
        began = time.perf_counter()
        counts = await asyncio.gather(
            *(one_job(session, prompt, tokens, salt) for prompt in prompts(jobs))
        )
        return sum(counts) / (time.perf_counter() - began)


async def one_job(session: aiohttp.ClientSession, prompt: str, tokens: int, salt: str) -> int:
    """Submit, wait, count. `salt` keeps rounds out of each other's prefix cache."""
    body = {"model": NAME, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True}
    body |= {"temperature": 0, "cache_salt": salt}
    async with session.post("/v1/jobs", json={"url": "/v1/completions", "body": body}) as answer:
        job_id = (await answer.json())["id"]
    while True:
        async with session.get(f"/v1/jobs/{job_id}", params={"wait": "60"}) as answer:
            job = await answer.json()
        if job["state"] == "completed":
            return int(job["usage"]["completion_tokens"])
        if job["state"] not in ("queued", "in_progress"):
            raise SystemExit(f"a job ended as {job['state']}: {job.get('error')}")


def measure(jobs: int, tokens: int, rounds: int) -> dict[str, Any]:
    from predictor.model_files.weights import ensure_model

    model = ensure_model(NAME, (ROOT / ".torpor/models").resolve(), print)
    path, alone, cpu_s = [], [], {"offline": 0.0, "path": 0.0}
    with tempfile.TemporaryDirectory() as folder, stack(Path(folder, "data")) as up:
        engine = Offline(model)
        try:
            engine.round(2, 4)
            asyncio.run(through_path(up.at.api, 2, 4, "warm"))  # until it is awake
            for number in range(rounds):
                with counting(engine.pid, cpu_s, "offline"):
                    alone.append(engine.round(jobs, tokens))
                with counting(up.pid, cpu_s, "path"):
                    path.append(asyncio.run(through_path(up.at.api, jobs, tokens, str(number))))
                say(f"offline {alone[-1]:.1f}, whole path {path[-1]:.1f} tokens/s")
        finally:
            engine.close()
    ratios = [ours / theirs for ours, theirs in zip(path, alone, strict=True)]
    made = jobs * tokens * rounds
    return {
        "jobs": jobs,
        "tokens_each": tokens,
        "batch": BATCH,
        "offline_tokens_s": [round(each, 1) for each in alone],
        "path_tokens_s": [round(each, 1) for each in path],
        "ratios": [round(each, 3) for each in ratios],
        "ratio": round(statistics.median(ratios), 3),
        "cpu_ms_a_token": {name: round(1000 * s / made, 2) for name, s in cpu_s.items()},
        "machine": machine(),
    }


@contextmanager
def counting(pid: int, cpu_s: dict[str, float], name: str) -> Iterator[None]:
    """Add the CPU seconds that a process and all below it take meanwhile, and those of the busiest
    of them: the engine's own process.
    """
    before = family_cpu_s(pid)
    yield
    taken = [s - before.get(each, 0.0) for each, s in family_cpu_s(pid).items()]
    cpu_s[name] += sum(taken)
    cpu_s[f"{name}, engine"] = cpu_s.get(f"{name}, engine", 0.0) + max(taken)


def family_cpu_s(pid: int) -> dict[int, float]:
    """CPU seconds of a process and all below it, by process id."""
    process = psutil.Process(pid)
    family = {each.pid: each.cpu_times() for each in (process, *process.children(recursive=True))}
    return {each: times.user + times.system for each, times in family.items()}


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    report = measure(args.jobs, args.tokens, args.rounds)
    publish(report, args.json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-offline"]:
        offline(sys.argv[2])
    else:
        main()
