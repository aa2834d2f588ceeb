"""Keeps the wanted number of predictors: starts, watches and drains them, and notices when they die.

Called by the autoscaler loop (`scale_to`) and the stack (`stop`). Must not know why a number is wanted.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
import structlog

from torpor.local.child import free_port
from torpor.local.failure import reason_in
from torpor.local.predictors.launcher import Launcher, RunningProcess
from torpor.local.predictors.replica import LocalReplica, ReplicaState, to_drain

_log = structlog.get_logger()
_READY_PATH: Final = "/readyz"
"""Answers 200 when the predictor can serve. No path of KServe's: a model's name may hold a slash."""
_PROBE_EVERY_S: Final = 0.05
_PROBE_TIMEOUT: Final = aiohttp.ClientTimeout(total=1)
_KILL_AFTER_GRACE_S: Final = 5.0
_CRASH_PAUSE_S: Final = 1.0
"""Least time, by the autoscaler's clock, before a predictor that died during its start is started again."""
_SAME_FAILURES: Final = 3
_HOPELESS_PAUSE_S: Final = 60.0
"""The same after several failures in a row for the same reason."""
_TAIL_CHARACTERS: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictorSpec:
    """How to start one predictor."""

    argv: Sequence[str]
    env: Mapping[str, str]
    drain_grace_s: float
    log_dir: Path
    kind: str = "predictor"  #: in its name, and in the name of the variable with its port


class Fleet:
    """The predictors of one model."""

    def __init__(
        self,
        spec: PredictorSpec,
        launcher: Launcher,
        replicas: dict[str, LocalReplica],
        *,
        on_change: Callable[[], Awaitable[None]],
        on_failure: Callable[[str], Awaitable[None]],
        group: asyncio.TaskGroup,
        time_scale: float = 1.0,
    ) -> None:
        self._spec = spec
        self._launcher = launcher
        self._replicas = replicas
        self._on_change = on_change
        self._on_failure = on_failure
        self._group = group
        self._time_scale = time_scale
        self._numbers = itertools.count(1)
        self._lives: dict[str, asyncio.Task[None]] = {}
        self._drains: dict[str, asyncio.Event] = {}
        self._may_start_at = 0.0
        self._failures: list[str] = []
        self.wanted = 0
        self.crashes = 0
        self.last_failure = ""

    @property
    def ready(self) -> int:
        return sum(r.state is ReplicaState.READY for r in self._replicas.values())

    @property
    def alive(self) -> int:
        """Starting and ready predictors: the present scale."""
        return sum(r.is_wanted for r in self._replicas.values())

    @property
    def replicas(self) -> Collection[LocalReplica]:
        """All that have not ended."""
        return self._replicas.values()

    @property
    def processes(self) -> int:
        """Those that hold memory, draining ones too."""
        return len(self._replicas)

    def scale_to(self, wanted: int) -> None:
        """Start or drain until `wanted` predictors run; call it again after every change."""
        if wanted != self.wanted:
            _log.info("scaled", action="scale", wanted=wanted, ready=self.ready)
        self.wanted = wanted
        for replica in to_drain(self._replicas.values(), self.alive - wanted):
            replica.state = ReplicaState.DRAINING
            self._drains[replica.id].set()
        now = asyncio.get_running_loop().time()
        while self.alive < wanted and now >= self._may_start_at:
            self._start(now)

    async def stop(self) -> None:
        """Drain all and wait for their end."""
        self.scale_to(0)
        await asyncio.gather(*self._lives.values(), return_exceptions=True)

    def _start(self, now: float) -> None:
        port = free_port()
        replica_id = f"{self._spec.kind}-{next(self._numbers)}-{port}"
        replica = LocalReplica(id=replica_id, url=f"http://127.0.0.1:{port}", started_s=now)
        self._replicas[replica_id] = replica
        self._drains[replica_id] = asyncio.Event()
        self._lives[replica_id] = self._group.create_task(self._run_replica(replica, port))

    async def _run_replica(self, replica: LocalReplica, port: int) -> None:
        """One predictor from its start to its end."""
        port_variable = f"TORPOR_{self._spec.kind.upper()}_PORT"
        own = {"TORPOR_REPLICA_ID": replica.id, port_variable: str(port)}
        try:
            running = await self._launcher.launch(
                replica.id, self._spec.argv, {**self._spec.env, **own}
            )
            replica.pid = running.pid
            await self._until_end(replica, running)
        except OSError as error:
            await self._note_crash(replica, f"cannot start: {error}")
        finally:
            replica.state = ReplicaState.ENDED
            for table in (self._replicas, self._drains, self._lives):
                table.pop(replica.id, None)
            await self._on_change()

    async def _until_end(self, replica: LocalReplica, running: RunningProcess) -> None:
        ended = asyncio.create_task(running.wait())
        drain = asyncio.create_task(self._drains[replica.id].wait())
        ready = asyncio.create_task(self._watch_ready(replica))
        try:
            await asyncio.wait({ended, drain}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                await self._note_crash(replica, self._why(replica, ended.result()))
            else:
                await running.stop(self._spec.drain_grace_s + _KILL_AFTER_GRACE_S)
        finally:
            for task in (ready, drain, ended):
                task.cancel()

    async def _watch_ready(self, replica: LocalReplica) -> None:
        """Mark the replica ready, or not ready, by its readiness probe."""
        loop = asyncio.get_running_loop()
        async with aiohttp.ClientSession(timeout=_PROBE_TIMEOUT) as session:
            while True:
                is_ready = await _answers(session, replica.url + _READY_PATH)
                if is_ready and replica.state is ReplicaState.WAKING:
                    replica.state = ReplicaState.READY
                    self._failures.clear()
                    replica.ready_after_s = loop.time() - replica.started_s
                    _log.info(
                        "ready",
                        action="replica_ready",
                        replica=replica.id,
                        after_s=round(replica.ready_after_s, 2),
                    )
                    await self._on_change()
                waking = replica.state is ReplicaState.WAKING
                await asyncio.sleep(_PROBE_EVERY_S if waking else 20 * _PROBE_EVERY_S)

    async def _note_crash(self, replica: LocalReplica, reason: str) -> None:
        """Record why; a replica that was ready has lost its process, another did not start."""
        self.crashes += 1
        _log.warning("predictor lost", action="replica_lost", replica=replica.id, reason=reason)
        has_started = replica.state is not ReplicaState.WAKING
        self._failures = [] if has_started else [*self._failures, reason][-_SAME_FAILURES:]
        is_hopeless = self._failures == [reason] * _SAME_FAILURES
        pause_s = _HOPELESS_PAUSE_S if is_hopeless else _CRASH_PAUSE_S
        self._may_start_at = asyncio.get_running_loop().time() + pause_s / self._time_scale
        see = f"(see {self._log_of(replica)})"
        self.last_failure = (
            f"will not start: {reason} {see}" if is_hopeless else f"{replica.id}: {reason} {see}"
        )
        if not has_started:
            await self._on_failure(f"will not start: {reason}" if is_hopeless else reason)

    def _why(self, replica: LocalReplica, status: int) -> str:
        """The reason in its log, else its exit status."""
        ended = f"ended by itself with status {status}"
        if replica.state is not ReplicaState.WAKING:
            return ended
        with suppress(OSError):
            text = self._log_of(replica).read_text(errors="replace")[-_TAIL_CHARACTERS:]
            return reason_in(text) or ended
        return ended

    def _log_of(self, replica: LocalReplica) -> Path:
        return self._spec.log_dir / f"{replica.id}.log"


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    with suppress(aiohttp.ClientError, TimeoutError, OSError):
        async with session.get(url) as answer:
            return answer.status == 200
    return False
