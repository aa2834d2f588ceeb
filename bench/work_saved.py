"""Tokens generated for each token delivered while predictors are killed, with and without resuming.

`python -m bench.work_saved [--seconds 120] [--every 10] [--json work_saved.json]`. The test engine at a reasoning
model's speed; sixteen callers, each with a job at a time, of 60 to 180 tokens. Every ten seconds the predictor that
serves is killed (SIGKILL) and a spare takes over; leases of two seconds. Generated: every token an engine handed
over, counted in memory that outlives the process. Delivered: the tokens of completed answers. Aim: at most 1.02.
Without resuming (the same jobs, marked as not to be continued) it is reported beside.
"""

import argparse
import asyncio
import mmap
import os
import random
import signal
import struct
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.live_rig import Child, Rig, bench_or_predictor, running
from bench.report import machine, publish
from tests.integration.predictor_process import deliver
from tests.unit.predictor.harness import asking

COUNTER: Final = "BENCH_COUNTER"
CALLERS: Final = 16
TOKENS: Final = (60, 180)
TOKENS_PER_S: Final = 20.0
LEASE_S: Final = 2.0


def predict(argv: list[str]) -> int:
    """The predictor, with each token counted where a kill cannot take the count back."""
    from predictor.__main__ import main as predictor_main
    from predictor.generation import generation

    with Path(os.environ[COUNTER]).open("r+b") as file:
        shared = mmap.mmap(file.fileno(), 8)
    take = generation.Generation._take

    def counted(self: Any, step: Any) -> None:
        (count,) = struct.unpack("<q", shared[:8])
        shared[:8] = struct.pack("<q", count + len(step.token_ids))
        take(self, step)

    generation.Generation._take = counted  # type: ignore[method-assign]
    return predictor_main(argv)


@dataclass(slots=True)
class Trial:
    """One run: a predictor that serves, a spare, and what came out."""

    rig: Rig
    counters: Path
    can_resume: bool
    serving: Child | None = None
    spare: Child | None = None
    started: int = 0
    kills: int = 0
    completed: int = 0
    delivered: int = 0
    failed: list[str] = field(default_factory=list)

    async def run(self, seconds: float, every_s: float, seed: int) -> None:
        self.serving = await asyncio.to_thread(self._start().wait_ready, "/readyz")
        self.spare = await asyncio.to_thread(self._start().wait_ready, "/readyz")
        until_s = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            killer = group.create_task(self._kill(every_s))
            callers = [
                group.create_task(self._ask(random.Random(seed + n), n, until_s))
                for n in range(CALLERS)
            ]
            await asyncio.wait(callers)
            killer.cancel()

    def _start(self) -> Child:
        """Each predictor has a counter of its own: two may run for a moment."""
        name = f"{'resumes' if self.can_resume else 'restarts'}-{self.started}"
        self.started += 1
        counter = self.counters / name
        counter.write_bytes(bytes(8))
        os.environ[COUNTER] = str(counter)
        return self.rig.predictor(name, "bench.work_saved")

    async def _kill(self, every_s: float) -> None:
        due_s = time.monotonic()
        while True:
            due_s += every_s
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            assert self.serving is not None
            assert self.spare is not None
            self.serving.process.send_signal(signal.SIGKILL)
            self.kills += 1
            self.serving, self.spare = self.spare, self._start()
            await asyncio.to_thread(self.spare.wait_ready, "/readyz")

    async def _ask(self, chance: random.Random, caller: int, until_s: float) -> None:
        number = 0
        while time.monotonic() < until_s:
            knobs = {"output_tokens": chance.randint(*TOKENS), "resumable": self.can_resume}
            event = asking(
                f"question {number} of {caller}",
                event_id=f"{self.can_resume}-{caller}-{number}",
                seeded=knobs,
            )
            number += 1
            while True:
                assert self.serving is not None
                answer = await deliver(self.serving.url, event, timeout_s=120)
                if answer.status == 200:
                    break
                await asyncio.sleep(0.1)
            if answer.data["state"] != "completed":
                self.failed.append(str(answer.data["error"]))
                continue
            self.completed += 1
            self.delivered += int(answer.data["usage"]["completion_tokens"])  # type: ignore[index]

    def report(self) -> dict[str, Any]:
        generated = sum(
            struct.unpack("<q", path.read_bytes())[0] for path in self.counters.iterdir()
        )
        return {
            "kills": self.kills,
            "jobs": self.completed,
            "jobs_failed": len(self.failed),
            "generated": generated,
            "delivered": self.delivered,
            "ratio": round(generated / self.delivered, 4),
        }


def trial(seconds: float, every_s: float, *, can_resume: bool) -> dict[str, Any]:
    settings = {
        "TORPOR_SEEDED_TOKENS_PER_S": str(TOKENS_PER_S),
        "TORPOR_LEASE_S": str(LEASE_S),
        "TORPOR_MAX_ATTEMPTS": "100",  # each kill is an attempt lost
    }
    with tempfile.TemporaryDirectory() as folder:
        counters = Path(folder, "counters")
        counters.mkdir()
        with running(Path(folder), "seeded", **settings) as rig:
            one = Trial(rig, counters, can_resume)
            asyncio.run(one.run(seconds, every_s, seed=1))
        return one.report()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--every", type=float, default=10)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    report = {
        "engine": f"seeded, {TOKENS_PER_S:g} tokens/s a stream, {CALLERS} streams",
        "kill_every_s": args.every,
        "with_resume": trial(args.seconds, args.every, can_resume=True),
        "without_resume": trial(args.seconds, args.every, can_resume=False),
        "machine": machine(),
    }
    publish(report, args.json)


if __name__ == "__main__":
    bench_or_predictor(main, predict)
