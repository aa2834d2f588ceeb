"""Exec to first token of the engine alone, by phase and by lever: vLLM's way and ours, in one run.

`python bench/cold_start.py --runs 3 --json cold_start.json`. The ways are interleaved, so that a slow minute of the
machine hits all of them; ratios to vLLM's default within this run are what counts. All ways use the same model and
engine settings (float32, eager, the same KV cache): only the start differs. `--compile` adds starts with
torch.compile, without and with its cache kept (minutes each); `--convert` times the packaged model's conversion,
which a kept folder saves. What the whole path adds (api, broker, activator) is not in here.
"""

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
NAME: Final = "smollm2-135m-instruct"
PROMPT: Final = "The capital of France is"
TIMEOUT_S: Final = 600.0
KV_BYTES: Final = 400 << 20
ENGINE_ARGS: Final = (
    *("--dtype", "float32", "--enforce-eager", "--block-size", "32", "--max-num-seqs", "16"),
    *("--kv-cache-memory-bytes", str(KV_BYTES)),
)
COMPILE_TIMEOUT_S: Final = 1800.0
NO_BYTECODE: Final = {"PYTHONPYCACHEPREFIX": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}
"""As in an image that was made without any, whose user may write none."""
PHASES: Final = ("import", "weights", "compile", "warm_up", "first_token")


@dataclass(frozen=True, slots=True)
class Start:
    """One start: seconds to the first token, CPU seconds of all processes until then, those that ended too, and what
    stood in memory then. `phases` are seconds too; a bare engine has none.
    """

    way: str
    first_token_s: float
    cpu_s: float
    rss_mb: int
    processes: int
    phases: dict[str, float] = field(default_factory=dict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--model-dir", type=Path, default=ROOT / ".torpor" / "models")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", action="append", help="name of a way; may be repeated")
    parser.add_argument("--compile", action="store_true", help="starts with torch.compile, too")
    parser.add_argument("--convert", action="store_true", help="time the model's conversion, too")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from predictor.model_files.weights import ensure_model

    model = ensure_model(NAME, args.model_dir.resolve(), lambda line: print(line, file=sys.stderr))
    weights = Path(model, "model.safetensors")
    weights.read_bytes()  # every way but one finds the file in the page cache
    with forking_parent(model) as (fork, parent), tempfile.TemporaryDirectory() as cache:
        ways: dict[str, Callable[[], Start]] = {
            "vLLM's default (spawn)": lambda: executed("vLLM's default (spawn)", "bare", model, {}),
            "spawn, one process less": lambda: executed(
                "spawn, one process less", "bare", model, {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
            ),
            "our engine, fresh process": lambda: executed(
                "our engine, fresh process", "ours", model, {}
            ),
            "fresh, no bytecode": lambda: executed(
                "fresh, no bytecode", "ours", model, NO_BYTECODE
            ),
            "fresh, weights not in memory": lambda: evicted(
                weights, lambda: executed("fresh, weights not in memory", "unread", model, {})
            ),
            "the same, weights read ahead": lambda: evicted(
                weights, lambda: executed("the same, weights read ahead", "ours", model, {})
            ),
            "our engine, forked from the parent": lambda: fork(
                "our engine, forked from the parent"
            ),
            "the same, weights not in memory": lambda: evicted(
                weights, lambda: fork("the same, weights not in memory")
            ),
        }
        chosen = {name: way for name, way in ways.items() if name in (args.only or ways)}
        starts = [say(way()) for _ in range(args.runs) for way in chosen.values()]
        if args.compile:
            kept = {"VLLM_CACHE_ROOT": cache}
            for way in ("compiled, no cache", "compiled, cache kept"):  # the first leaves it
                starts.append(say(executed(way, "compiled", model, kept)))
    report = summary(starts, parent)
    if args.convert:
        report["conversion_s"] = conversion_s()
    print(table(report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))


def executed(way: str, kind: str, model: str, env: dict[str, str]) -> Start:
    """A fresh interpreter that runs `child_main`. Its cache is empty, as a new pod's is, unless `env` names one."""
    with tempfile.TemporaryDirectory() as cache:
        fresh = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "VLLM_CACHE_ROOT": cache}
        began = time.time()
        done = subprocess.run(
            [sys.executable, __file__, "--child", kind, model],
            env={**os.environ, **fresh, **env},
            capture_output=True,
            text=True,
            timeout=COMPILE_TIMEOUT_S if kind == "compiled" else TIMEOUT_S,
        )
    if done.returncode != 0:
        raise SystemExit(f"{way}: ended with {done.returncode}\n{done.stderr[-3000:]}")
    return read_start(way, began, done.stdout)


@contextmanager
def forking_parent(model: str) -> Iterator[tuple[Callable[[str], Start], dict[str, Any]]]:
    """The pre-imported parent; gives what forks a start from it, and what it costs to keep."""
    with tempfile.TemporaryDirectory() as folder:
        path, log = Path(folder, "parent.sock"), Path(folder, "child.log")
        shared = {"model": model, "served_model_name": NAME, "vllm_args": ENGINE_ARGS}
        options = {"models": [shared]}
        command = [sys.executable, "-m", "predictor.process.parent", "--socket", str(path)]
        command += ["--entry", "cold_start:forked_main"]
        command += ["--preload", f"predictor.engine.vllm.preload:preload={json.dumps(options)}"]
        search = os.pathsep.join([str(ROOT), str(ROOT / "bench")])
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": search})
        connection = connect(path)
        lines = connection.makefile("rb")
        hello = json.loads(lines.readline())

        def fork(way: str) -> Start:
            log.unlink(missing_ok=True)
            began = time.time()
            request = {"argv": [model], "log_path": str(log)}
            connection.sendall(json.dumps(request).encode() + b"\n")
            lines.readline()
            end = json.loads(lines.readline())
            if end.get("exit_code") != 0:
                raise SystemExit(f"{way}: {end}\n{log.read_text()[-3000:]}")
            return read_start(way, began, log.read_text())

        rss_mb = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * 4096 >> 20
        try:
            yield fork, {"preload_s": hello["preload_s"], "rss_mb": rss_mb}
        finally:
            lines.close()
            connection.close()
            process.terminate()
            process.wait(30)


def connect(path: Path) -> socket.socket:
    deadline = time.monotonic() + TIMEOUT_S
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(TIMEOUT_S)
    while True:
        try:
            connection.connect(str(path))
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return connection


def read_start(way: str, began: float, output: str) -> Start:
    told = json.loads(next(line for line in output.splitlines() if line.startswith('{"at"')))
    marks = [("import", began), *told["marks"], ("end", told["at"])]
    phases = {name: round(until - since, 3) for (name, since), (_, until) in pairwise(marks)}
    phases = {"first_token" if name == "ready" else name: s for name, s in phases.items()}
    first_token_s = round(told["at"] - began, 2)
    known = phases if told["marks"] else {}
    return Start(way, first_token_s, told["cpu_s"], told["rss_mb"], told["processes"], known)


def evicted(file: Path, start: Callable[[], Start]) -> Start:
    """A start after the kernel was asked to forget `file`."""
    with file.open("rb") as handle:
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return start()


def conversion_s() -> float:
    """Seconds to turn the packaged model into the files that vLLM reads."""
    from predictor.model_files.weights import ensure_model

    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        ensure_model(NAME, Path(folder), lambda line: print(line, file=sys.stderr))
        return round(time.monotonic() - began, 1)


def child_main(kind: str, model: str) -> int:
    match kind:
        case "bare":
            asyncio.run(bare(model))
        case "compiled":
            asyncio.run(ours(model, (*ENGINE_ARGS, "--no-enforce-eager")))
        case "unread":
            from predictor.engine.vllm import engine

            engine.read_ahead = lambda _: 0
            asyncio.run(ours(model))
        case _:
            asyncio.run(ours(model))
    return 0


def forked_main(argv: list[str]) -> int:
    """Entry for the parent's forks."""
    return child_main("ours", argv[0])


async def bare(model: str) -> None:
    """`AsyncLLM` as its documentation starts it."""
    from vllm import SamplingParams, TokensPrompt
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=model,
            served_model_name=NAME,
            dtype="float32",
            enforce_eager=True,
            block_size=32,
            max_num_seqs=16,
            kv_cache_memory_bytes=KV_BYTES,
        )
    )
    ids = engine.renderer.tokenizer.encode(PROMPT)
    prompt = TokensPrompt(prompt_token_ids=ids)
    async for _ in engine.generate(prompt, SamplingParams(max_tokens=1, temperature=0), "first"):
        tell_first_token()
    engine.shutdown()


async def ours(model: str, engine_args: tuple[str, ...] = ENGINE_ARGS) -> None:
    from predictor.engine.engine import EngineRequest
    from predictor.engine.vllm.engine import VllmEngine, VllmSettings

    marks: list[tuple[str, float]] = []
    engine = VllmEngine(VllmSettings(model, NAME, vllm_args=engine_args))
    await engine.start(lambda phase: marks.append((str(phase), time.time())))
    body = {"prompt": PROMPT, "max_tokens": 1, "temperature": 0}
    is_first = True
    async for step in engine.run(EngineRequest("first", "/v1/completions", body), ()):
        if step.token_ids and is_first:
            is_first = False
            tell_first_token([mark for mark in marks if mark[0] != "import"])
    await engine.stop()


def tell_first_token(marks: Sequence[tuple[str, float]] = ()) -> None:
    at = time.time()
    import psutil  # type: ignore[import-untyped]

    me = psutil.Process()
    family = [me, *me.children(recursive=True)]
    rss_mb = sum(process.memory_info().rss for process in family) >> 20
    cpu_s = round(sum(sum(process.cpu_times()[:4]) for process in family), 2)
    told = {"at": at, "cpu_s": cpu_s, "rss_mb": rss_mb, "processes": len(family), "marks": marks}
    print(json.dumps(told), flush=True)


def say(start: Start) -> Start:
    print(f"{start.first_token_s:7.2f} s  {start.way}", file=sys.stderr, flush=True)
    return start


def summary(starts: list[Start], parent: dict[str, Any]) -> dict[str, Any]:
    ways = list(dict.fromkeys(start.way for start in starts))
    seconds = {w: sorted(s.first_token_s for s in starts if s.way == w) for w in ways}
    bare_s = statistics.median(seconds[ways[0]])
    rows = [
        {
            "way": way,
            "median_s": round(statistics.median(seconds[way]), 2),
            "least_s": seconds[way][0],
            "most_s": seconds[way][-1],
            "ratio": round(statistics.median(seconds[way]) / bare_s, 3),
            "cpu_s": round(statistics.median(s.cpu_s for s in starts if s.way == way), 2),
            "rss_mb": max(start.rss_mb for start in starts if start.way == way),
            "processes": max(start.processes for start in starts if start.way == way),
            "phases_s": middle_phases([start for start in starts if start.way == way]),
        }
        for way in ways
    ]
    machine = {"cpus": os.cpu_count(), "load_1m": os.getloadavg()[0], "cpu": cpu_model()}
    return {
        "measured": "exec to first token, engine alone",
        "machine": {**machine, "python": platform.python_version()},
        "parent": parent,
        "ways": rows,
        "starts": [asdict(start) for start in starts],
    }


def middle_phases(starts: Sequence[Start]) -> dict[str, float]:
    """The median seconds of each phase that was told."""
    told = [start.phases for start in starts if start.phases]
    return {
        name: round(statistics.median(phases.get(name, 0.0) for phases in told), 2)
        for name in PHASES
        if told
    }


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def table(report: dict[str, Any]) -> str:
    lines = [
        f"{'way':36} {'median s':>9} {'range':>15} {'ratio':>6} {'CPU s':>6} {'RSS MB':>7} {'proc.':>6}"
    ]
    for row in report["ways"]:
        span = f"{row['least_s']:.1f} to {row['most_s']:.1f}"
        lines.append(
            f"{row['way']:36} {row['median_s']:9.2f} {span:>15} {row['ratio']:6.2f} "
            f"{row['cpu_s']:6.2f} {row['rss_mb']:7d} {row['processes']:6d}"
        )
    lines.append(f"\n{'seconds by phase':36} " + " ".join(f"{name:>11}" for name in PHASES))
    for row in report["ways"]:
        if row["phases_s"]:
            cells = " ".join(f"{row['phases_s'][name]:11.2f}" for name in PHASES)
            lines.append(f"{row['way']:36} {cells}")
    parent = report["parent"]
    lines.append(f"the parent itself: {parent['preload_s']} s once, {parent['rss_mb']} MB kept")
    if "conversion_s" in report:
        lines.append(f"converting the packaged model: {report['conversion_s']} s once, then kept")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.exit(child_main(*sys.argv[2:4]))
    main()
