"""The loop around the scaling policies: measure, decide, scale, with the same pure functions as in the simulator.

Called by the stack. The clock may run faster than real time (`time_scale`), so that a demo shows in seconds what
takes minutes. Must not know how a replica is started.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Protocol

from eventing.broker.queue.view import QueueView
from eventing.errors import Unavailable
from knative.autoscaling.hpa.metric import Replicas
from knative.autoscaling.keda import keda
from knative.autoscaling.keda.keda import KedaSpec
from knative.autoscaling.kpa import kpa, reconciler
from knative.autoscaling.kpa.kpa import KpaSpec
from knative.autoscaling.kpa.reconciler import Pods, ScalePolicy


class Scale(Protocol):
    """What an autoscaler measures and changes."""

    @property
    def ready(self) -> int: ...

    @property
    def alive(self) -> int: ...

    def scale_to(self, wanted: int) -> None: ...


Held = Callable[[], Awaitable[int]]
"""How many replicas are held for jobs that come back from their tools; asked before any is let go."""


async def _nothing_held() -> int:
    return 0


async def _scale(scale: Scale, wanted: int, held: Held) -> None:
    """Scale; what is held stays, and starts nothing."""
    if wanted < scale.alive:
        wanted = max(wanted, await held())
    scale.scale_to(wanted)


class PolicyClock:
    """Policy seconds: the loop's time, `scale` times as fast."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def now(self) -> float:
        return asyncio.get_running_loop().time() * self.scale


class KpaLoop:
    """Knative's autoscaler: one value a second, a decision every two, and at once on the first request at zero."""

    def __init__(
        self,
        spec: KpaSpec,
        policy: ScalePolicy,
        *,
        scale: Scale,
        concurrency: Callable[[], int],
        clock: PolicyClock,
        held: Held = _nothing_held,
    ) -> None:
        self._spec = spec
        self._held = held
        self._policy = policy
        self._scale = scale
        self._concurrency = concurrency
        self._clock = clock
        self._poked = asyncio.Event()

    def poke(self) -> None:
        """A request waits at zero: decide now instead of at the next tick."""
        if self._scale.alive == 0:
            self._poked.set()

    async def run(self) -> None:
        """Decide until cancelled."""
        now = self._clock.now()
        self._state = kpa.start(self._spec, ready_pods=self._scale.ready, now=now)
        self._revision = reconciler.start(self._policy, now=now)
        next_tick = now
        while True:
            now = self._clock.now()
            concurrency = self._concurrency()
            if concurrency or self._scale.ready:
                # With neither pod nor request nothing is scraped: a burst after silence is averaged
                # over the seconds since it began, not over the zeros before it.
                self._state = kpa.record(self._state, now, concurrency)
            if now >= next_tick or self._poked.is_set():
                self._poked.clear()
                await self._decide(now)
                next_tick = now + kpa.TICK_S
            await self._wait(kpa.SCRAPE_S)

    async def _decide(self, now: float) -> None:
        self._state, decision = kpa.decide(self._state, self._scale.ready, now)
        pods = Pods(replicas=self._scale.alive, ready=self._scale.ready)
        self._revision, outcome = reconciler.reconcile(
            self._policy, self._revision, decision, pods, now
        )
        await _scale(self._scale, outcome.replicas, self._held)

    async def _wait(self, policy_s: float) -> None:
        """A second of policy time, or less when poked."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._poked.wait(), policy_s / self._clock.scale)


class KedaLoop:
    """KEDA's operator and the HPA, on lag and pending of one queue."""

    def __init__(
        self,
        spec: KedaSpec,
        *,
        scale: Scale,
        view: QueueView,
        queue: str,
        clock: PolicyClock,
        held: Held = _nothing_held,
    ) -> None:
        self._held = held
        self._spec = spec
        self._scale = scale
        self._view = view
        self._queue = queue
        self._clock = clock

    def poke(self) -> None:
        """KEDA polls; nothing to do."""

    async def run(self) -> None:
        """Decide until cancelled."""
        state = keda.start(self._spec, now=self._clock.now())
        while True:
            values = await self._measure()
            state, decision = keda.decide(
                self._spec,
                state,
                values,
                Replicas(self._scale.alive, status=self._scale.alive, ready=self._scale.ready),
                self._clock.now(),
            )
            await _scale(self._scale, decision.replicas, self._held)
            await asyncio.sleep(1 / self._clock.scale)

    async def _measure(self) -> Mapping[str, float | None]:
        """Trigger values by name; None where the scaler would have failed."""
        try:
            depth = await self._view.depth(self._queue)
        except Unavailable:
            return {"lag": None, "pend": None}
        return {"lag": float(-1 if depth.lag is None else depth.lag), "pend": float(depth.pending)}
