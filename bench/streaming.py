"""Tokens as an SSE reader sees them, against the engine's own times, token by token in one run.

`python -m bench.streaming [--engine vllm] [--streams 1,16] [--json streaming.json]`. The predictor
notes when its engine hands over each token, the reader when it has it; both read the same clock of
one machine. Late: reader minus engine, for each token. Gap: between one token and the next. The aim
is a p99 gap at most 20 ms longer than the engine's own. What the machine itself adds is shown by a
timer of 10 ms in the reader's process: how much later than asked it fires.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson
import psutil

from bench.live_rig import Child, bench_or_predictor, running
from bench.report import machine, publish
from eventing.cloudevent.event import Event
from tests.integration.predictor_process import deliver
from tests.unit.predictor.harness import asking, job_id_of

NOTES: Final = "BENCH_TOKEN_TIMES"
STORY: Final = "Tell me a long story about a hummingbird, part"


@dataclass(slots=True)
class Stream:
    """One job: when each of its tokens was seen."""

    event: Event
    seen_s: list[float] = field(default_factory=list)

    async def read(self, session: aiohttp.ClientSession, api: str) -> None:
        """Follow it to its end. A block of tokens is seen at once."""
        url = f"{api}/v1/jobs/{job_id_of(self.event)}/events"
        while True:
            async with session.get(url) as events:
                if events.status == 404:  # not recorded yet
                    await asyncio.sleep(0.01)
                    continue
                kind = b""
                async for line in events.content:
                    now = time.monotonic()
                    if line.startswith(b"event: "):
                        kind = line[7:].strip()
                    elif line.startswith(b"data: ") and kind == b"tokens":
                        self.seen_s += [now] * orjson.loads(line[6:])["count"]
                    elif kind == b"result":
                        return


def predict(argv: list[str]) -> int:
    """The predictor, with a clock at the place where the engine hands a token over."""
    from predictor.__main__ import main as predictor_main
    from predictor.generation import generation

    made: dict[str, list[float]] = {}
    take = generation.Generation._take

    def noted(self: Any, step: Any) -> None:
        made.setdefault(self.attempt.job_id, []).extend([time.monotonic()] * len(step.token_ids))
        take(self, step)

    generation.Generation._take = noted  # type: ignore[method-assign]
    code = predictor_main(argv)
    Path(os.environ[NOTES]).write_text(json.dumps(made))
    return code


async def oversleep(late_s: list[float]) -> None:
    """Note how late this process is woken, until cancelled."""
    while True:
        due = time.monotonic() + 0.01
        await asyncio.sleep(0.01)
        late_s.append(time.monotonic() - due)


async def round_of(
    predictor: Child,
    api: Child,
    model: str,
    count: int,
    tokens: int,
    knobs: dict[str, Any],
    late_s: list[float],
) -> list[Stream]:
    """`count` streams at once, each with its reader."""
    name = f"{time.monotonic()}"
    body = {"model": model, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    body |= {"seeded": knobs} if knobs else {}
    streams = [Stream(asking(f"{STORY} {i}", event_id=f"{name}-{i}", **body)) for i in range(count)]
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
        asyncio.TaskGroup() as group,
    ):
        timer = group.create_task(oversleep(late_s))
        for stream in streams:
            group.create_task(deliver(predictor.url, stream.event, timeout_s=600))
        await asyncio.gather(*[stream.read(session, api.url) for stream in streams])
        timer.cancel()
    return streams


def compare(streams: Sequence[Stream], made: dict[str, list[float]]) -> dict[str, float]:
    """Percentiles, in milliseconds."""
    late, seen_gaps, own_gaps = [], [], []
    for stream in streams:
        own = made[job_id_of(stream.event)]
        assert len(own) == len(stream.seen_s)
        late += [seen - at for seen, at in zip(stream.seen_s, own, strict=True)]
        seen_gaps += _gaps(stream.seen_s)
        own_gaps += _gaps(own)
    return {
        "tokens": len(late),
        "late_p50_ms": _percentile(late, 50),
        "late_p99_ms": _percentile(late, 99),
        "gap_engine_p50_ms": _percentile(own_gaps, 50),
        "gap_engine_p99_ms": _percentile(own_gaps, 99),
        "gap_reader_p99_ms": _percentile(seen_gaps, 99),
        "gap_added_p99_ms": round(_percentile(seen_gaps, 99) - _percentile(own_gaps, 99), 1),
    }


def _gaps(times: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(times)]


def _percentile(values: Sequence[float], percent: int) -> float:
    return round(1000 * statistics.quantiles(values, n=100)[percent - 1], 1)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    rows = []
    late_s: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder, "made.json")
        settings = {NOTES: str(notes), "TORPOR_SEEDED_TOKENS_PER_S": str(args.rate)}
        with running(Path(folder), args.engine, **settings, **_settings(args.set)) as rig:
            api = rig.api()
            predictor = rig.predictor("p", "bench.streaming").wait_ready("/readyz")
            knobs = {"output_tokens": args.tokens} if args.engine == "seeded" else {}
            done: list[tuple[int, list[Stream], float]] = []
            for _ in range(args.rounds):
                for count in args.streams:
                    before = _cpu_s(predictor)
                    asked = (predictor, api, rig.model, count, args.tokens, knobs, late_s)
                    streams = asyncio.run(round_of(*asked))
                    done.append((count, streams, _cpu_s(predictor) - before))
            predictor.end()
            made = json.loads(notes.read_text())
    for count in args.streams:
        mine = [(streams, cpu_s) for n, streams, cpu_s in done if n == count]
        row = compare([stream for streams, _ in mine for stream in streams], made)
        row["predictor_cpu_us_a_token"] = round(sum(c for _, c in mine) * 1e6 / row["tokens"])
        rows.append({"streams": count, **row})
    timer = {"timer_late_p99_ms": _percentile(late_s, 99)}
    return {"engine": args.engine, "rows": rows, "machine": machine() | timer}


def _settings(pairs: Sequence[str]) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in pairs)


def _cpu_s(child: Child) -> float:
    """CPU seconds of the predictor's own process, without vLLM's core."""
    times = psutil.Process(child.process.pid).cpu_times()
    return float(times.user + times.system)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=("seeded", "vllm"), default="vllm")
    parser.add_argument("--streams", default="1,16", type=lambda t: [int(n) for n in t.split(",")])
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rate", type=float, default=17, help="seeded: tokens a second of each")
    parser.add_argument("--set", action="append", default=[], help="TORPOR_X=Y for the predictor")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    report = measure(args)
    publish(report, args.json)


if __name__ == "__main__":
    bench_or_predictor(main, predict)
