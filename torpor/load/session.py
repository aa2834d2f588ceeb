"""One run from its plan to its report: session, clients, and metrics.

Called by `torpor load` and the benches. Must not know a terminal.
"""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import aiohttp

from torpor.load.client import Clients
from torpor.load.run import Closed, Run
from torpor.load.sample import LoadSample, SampleOutcome
from torpor.load.schedule import Shape, Shot, endless, shots
from torpor.load.summary import Setup, summarise
from torpor.load.watch import MetricsSnapshot, Watch, is_accounted
from torpor.simulator.load import Load
from torpor.simulator.workload import Lengths

_GRACE_S: Final = 5.0
"""The interval at which predictors post to the ledger."""
_POSTED_WITHIN_S: Final = 30.0
"""How long a late post is waited for; then the report says that the cost is a lower bound."""

Show = Callable[[Run, Watch], Coroutine[Any, Any, None]]
"""Shows a run's progress, until cancelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """All parameters of a run."""

    addresses: Mapping[str, str]
    model: str
    key: str
    load: Load
    lengths: Lengths
    shape: Shape
    closed: Closed | None
    until_s: float | None
    patience_s: float
    gpu_metrics: str
    is_watched: bool = True

    @property
    def title(self) -> str:
        if self.closed is None:
            return f"{self.load.title}, clock x{self.shape.speed:g}"
        return f"{self.closed.users} users for {self.closed.duration_s:.0f} s"


@dataclass(frozen=True, slots=True)
class Result:
    """The report and its data."""

    report: dict[str, Any]
    samples: Sequence[LoadSample]
    looks: Sequence[MetricsSnapshot]


async def run_plan(plan: LoadPlan, show: Show | None = None) -> Result:
    """Run the plan. Ctrl-C sends nothing new and follows the requests in flight."""
    loop = asyncio.get_running_loop()
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None, connect=10, sock_read=120)
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, read_bufsize=1 << 20
    ) as session:
        zero = loop.time()

        def now() -> float:
            return loop.time() - zero

        clients = Clients(
            session,
            plan.addresses["api"],
            plan.model,
            now=now,
            patience_s=plan.patience_s,
            key=plan.key,
        )
        watch = Watch(session, plan.addresses, now=now, gpu_metrics=plan.gpu_metrics)
        run = Run(clients, now)
        with suppress(NotImplementedError):
            loop.add_signal_handler(signal.SIGINT, run.stop)
        first = await watch.look()
        async with asyncio.TaskGroup() as group:
            beside = [group.create_task(watch.run())] if plan.is_watched else []
            if show is not None:
                beside.append(group.create_task(show(run, watch)))
            await _drive(run, plan)
            await asyncio.sleep(_GRACE_S)
            for task in beside:
                task.cancel()
        await _last_look(watch, first, run, now)
    setup = Setup(
        title=plan.title,
        target=plan.addresses["api"],
        model=plan.model,
        is_open=plan.closed is None,
        seed=plan.shape.seed,
        started_at=started_at,
    )
    report = summarise(setup, run.samples, watch.looks)
    return Result(report, run.samples, watch.looks)


async def _last_look(
    watch: Watch, first: MetricsSnapshot, run: Run, now: Callable[[], float]
) -> None:
    """Read until the predictors have posted the work of this run."""
    jobs = sum(sample.outcome is SampleOutcome.COMPLETED for sample in run.samples)
    until_s = now() + _POSTED_WITHIN_S
    last = await watch.look()
    while not is_accounted(first, last, jobs) and now() < until_s:
        await asyncio.sleep(1)
        last = await watch.look()


async def _drive(run: Run, plan: LoadPlan) -> None:
    if plan.closed is None:
        await run.open_loop(shots(plan.load, plan.shape, until_s=plan.until_s))
        return

    def shots_of(user: int) -> Iterator[Shot]:
        return endless(plan.shape, plan.lengths, user)

    await run.closed_loop(plan.closed, shots_of)
