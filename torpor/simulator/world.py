"""The event loop of the model: arrivals, queue, dispatch, completion, scaling, loss.

Called by the command line, the benches and tests. It must not know which policy decides. The same
scenario and the same requests always give the same report, byte by byte.
"""

import heapq
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum

from torpor.simulator.cluster import (
    Node,
    NodeModel,
    PodPhase,
    SimulatedCluster,
    SimulatedPredictor,
)
from torpor.simulator.engine import NEVER, EngineModel, SimulatedJob
from torpor.simulator.measure import RunOutcome, Series, Tally
from torpor.simulator.view import Autoscaler, Learner, PolicyView
from torpor.simulator.waiting import WaitingJobs
from torpor.simulator.workload import Request

# A run that cannot serve its queue ends this long after its horizon; what is left counts as
# unserved.
_LONGEST_OVERTIME_S = 3600.0
_NAMES = ("asked", "ready", "queued", "running", "p95_s", "slot_percent", "arrivals_per_s")


@dataclass(frozen=True, slots=True)
class Scenario:
    """Everything but the requests and the policy; times in seconds.

    `container_concurrency` 0 lets a replica take as much as its engine batches. `timeout_s` is how long a client
    waits in all (None: for ever). `grace_s` is how long a draining replica may go on before it hands its work over;
    `does_resume` keeps the tokens made so far. `queue_limit` 0 means no limit. `delivery_limit` is how many
    requests a broker holds out at once (0: all of them); an autoscaler on concurrency sees no more than these.
    `seen_starts_s` are cold starts that were measured, used in order instead of `start_s`. `fallback_after_s` is how
    long a request waits in the queue until another model answers it (None: for ever).
    """

    engine: EngineModel
    horizon_s: float
    start_s: float = 30.0
    seen_starts_s: tuple[float, ...] = ()
    nodes: NodeModel = field(default_factory=NodeModel)
    container_concurrency: int = 0
    initial_replicas: int = 0
    timeout_s: float | None = None
    fallback_after_s: float | None = None
    queue_limit: int = 0
    grace_s: float = 3600.0
    does_resume: bool = True
    delivery_limit: int = 0
    preemptions_per_hour: float = 0.0
    notice_s: float = 30.0
    seed: int = 0

    @property
    def slots(self) -> int:
        """How many jobs one replica takes at once."""
        if self.container_concurrency == 0:
            return self.engine.max_batch
        return min(self.container_concurrency, self.engine.max_batch)


class _Kind(IntEnum):
    """What an event is about; at the same instant the order of insertion decides."""

    ARRIVAL = 0
    ENGINE = 1
    READY = 2
    TICK = 3
    NODE_IDLE = 4
    DRAIN_END = 5
    PREEMPTION = 6


def simulate(scenario: Scenario, requests: Iterable[Request], policy: Autoscaler) -> RunOutcome:
    """Run `requests` through the scenario under `policy`."""
    world = World(scenario, policy)
    world.begin(requests)
    while world.advance():
        pass
    return world.outcome()


class World:
    """One run: the clock, the queue and everything that happens. Several models are as many of them, whichever is due
    next advanced (`bench/policies/places.py`).
    """

    def __init__(self, scenario: Scenario, policy: Autoscaler) -> None:
        self._scenario = scenario
        self._policy = policy
        self._learner = policy if isinstance(policy, Learner) else None
        self._cluster = SimulatedCluster(
            scenario.engine,
            scenario.slots,
            scenario.start_s,
            scenario.nodes,
            scenario.seen_starts_s,
        )
        self._rng = random.Random(scenario.seed)  # noqa: S311 - a model, no secret
        self._events: list[tuple[float, int, int, object, int]] = []
        self._count = 0
        self._queue = WaitingJobs()
        self._running = self._running_batch = 0
        self._now = 0.0
        self._asked = 0
        self._limit = scenario.delivery_limit or 10**9
        self._handed_over = self._most = 0
        self._tally = Tally()
        self._series = Series(_NAMES)
        self._in_flight_area = self._slot_area = self._used_area = 0.0
        self._ready_slots = 0
        self._last_tick = 0.0
        self._arrivals_before = 0
        self._series_since = 0.0

    def begin(self, requests: Iterable[Request]) -> None:
        """Everything that is there before the first event."""
        self._stream = iter(requests)
        self._set_scale(self._scenario.initial_replicas, is_ready=True)
        self._next_arrival()
        self._push(0.0, _Kind.TICK, None)

    @property
    def next_at(self) -> float:
        """When the next event is."""
        return self._events[0][0] if self._events else NEVER

    def advance(self) -> bool:
        """One event; False when the run is over."""
        if not self._events:
            return False
        at, _, kind, subject, version = heapq.heappop(self._events)
        is_done = self._pending is None and not self._queue and not self._running
        horizon = self._scenario.horizon_s
        if at > horizon and (is_done or at > horizon + _LONGEST_OVERTIME_S):
            return False
        self._pass_time(at)
        if kind == _Kind.ARRIVAL:
            self._arrive()
            self._next_arrival()
        elif kind == _Kind.ENGINE:
            assert isinstance(subject, SimulatedPredictor)  # noqa: S101 - what `_plan` pushed
            if subject.engine.version == version:
                self._progress(subject)
        elif kind == _Kind.TICK:
            self._tick()
        else:
            self._change_cluster(kind, subject)
        return True

    # --- requests -----------------------------------------------------------------------------

    def _next_arrival(self) -> None:
        self._pending = next(self._stream, None)
        if self._pending is not None:
            self._push(self._pending.at, _Kind.ARRIVAL, None)

    def _arrive(self) -> None:
        request = self._pending
        if request is None:
            return
        self._tally.requests += 1
        output = max(1, request.output_tokens)
        job = SimulatedJob(
            self._tally.requests, self._now, request.prompt_tokens, output, remaining=output
        )
        if request.deadline_s is not None:
            job.void_at = self._now + request.deadline_s
            self._tally.batch.requests += 1
        limit = self._scenario.queue_limit
        if limit and len(self._queue) >= limit:
            self._tally.refused += 1
            return
        self._queue.append(job)
        if self._learner is not None:
            self._learner.arrived(job, self._now)
        self._dispatch()
        if self._asked == 0:
            wanted = self._policy.wake(self._view(), self._now)
            if wanted is not None:
                self._set_scale(wanted)

    def _dispatch(self) -> None:
        """Hand the queue's head to the least busy replica, as long as one has a free place."""
        self._drop_expired()
        while self._queue:
            predictor = self._cluster.least_busy()
            if predictor is None:
                return
            job = self._queue.popleft()
            predictor.engine.advance(self._now)
            if job.started is None:
                job.started = self._now
                if job.void_at is None:
                    self._tally.wait.add(self._now - job.arrived)
            job.attempts += 1
            self._count_running(job, 1)
            predictor.engine.take(job, self._now)
            self._plan(predictor)

    def _hand_to_another(self) -> None:
        """What has waited for so long is answered by another model, and waits no longer."""
        after = self._scenario.fallback_after_s
        if after is None:
            return
        for job in self._queue.popped_while_older(self._now, after):
            self._tally.stood_in = self._tally.stood_in.plus(job.prompt_tokens, job.output_tokens)
            if job.started is None:
                self._tally.wait.add(after)
            self._tally.recent.add(after, self._now)

    def _drop_expired(self) -> None:
        self._hand_to_another()
        timeout = self._scenario.timeout_s
        if timeout is None:
            return
        for _ in self._queue.popped_while_older(self._now, timeout):
            self._tally.timed_out += 1
            self._tally.recent.add(timeout, self._now)

    def _progress(self, predictor: SimulatedPredictor) -> None:
        predictor.engine.advance(self._now)
        ended = predictor.engine.settle(self._now)
        for job in ended:
            self._finish(job)
        if predictor.phase is PodPhase.DRAINING and not predictor.engine.running:
            self._end(predictor)
        else:
            self._plan(predictor)
        if ended:
            self._dispatch()

    def _count_running(self, job: SimulatedJob, by: int) -> None:
        self._running += by
        self._running_batch += by if job.void_at is not None else 0

    def _finish(self, job: SimulatedJob) -> None:
        self._count_running(job, -1)
        is_kept = self._tally.count_end(job, self._now, self._scenario.timeout_s)
        if is_kept and self._learner is not None:
            self._learner.finished(job, self._now)

    def _plan(self, predictor: SimulatedPredictor) -> None:
        """Await the engine's next change; what was awaited before is void."""
        engine = predictor.engine
        engine.version += 1
        at = engine.next_change()
        if at < NEVER:
            self._push(at, _Kind.ENGINE, predictor, engine.version)

    # --- scale --------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._drop_expired()
        self._set_scale(self._policy.step(self._view(), self._now))
        if self._series.is_due(self._now):
            self._sample()
        self._forget_areas()
        self._push(self._now + self._policy.tick_s, _Kind.TICK, None)

    def _view(self) -> PolicyView:
        passed = self._now - self._last_tick
        in_flight = min(len(self._queue) + self._running, self._limit)
        average = self._in_flight_area / passed if passed > 0 else float(in_flight)
        share = self._used_area / self._slot_area if self._slot_area > 0 else 0.0
        return PolicyView(
            queued=len(self._queue),
            running=self._running,
            asked=self._asked,
            existing=self._cluster.existing,
            ready=self._cluster.count(PodPhase.READY),
            in_flight_average=average,
            slot_share=share,
            p95_s=self._tally.recent.quantile(0.95, self._now),
            queue=self._queue.interactive,
            batch=self._queue.batch,
            running_batch=self._running_batch,
            draining=self._cluster.count(PodPhase.DRAINING),
        )

    def _set_scale(self, wanted: int, *, is_ready: bool = False) -> None:
        self._asked = wanted
        missing = wanted - self._cluster.existing
        for _ in range(missing):
            predictor = self._cluster.launch(self._now, is_ready=is_ready)
            self._push(predictor.ready_at, _Kind.READY, predictor)
            if self._scenario.preemptions_per_hour > 0:
                wait = self._rng.expovariate(self._scenario.preemptions_per_hour / 3600)
                self._push(self._now + wait, _Kind.PREEMPTION, predictor)
        for predictor in self._cluster.victims(max(0, -missing)):
            self._drain(predictor, self._scenario.grace_s)
        self._most = max(self._most, wanted)

    def _drain(self, predictor: SimulatedPredictor, grace_s: float) -> None:
        self._ready_slots -= self._scenario.slots if predictor.phase is PodPhase.READY else 0
        predictor.phase = PodPhase.DRAINING
        if not predictor.engine.running:
            self._end(predictor)
        else:
            self._push(self._now + grace_s, _Kind.DRAIN_END, predictor)

    def _change_cluster(self, kind: int, subject: object) -> None:
        if isinstance(subject, Node):
            self._cluster.give_back(subject, self._now)
            return
        assert isinstance(subject, SimulatedPredictor)  # noqa: S101 - what was pushed with these kinds
        if kind == _Kind.READY and subject.phase is PodPhase.WAKING:
            self._cluster.make_ready(subject, self._now)
            self._ready_slots += self._scenario.slots
            self._dispatch()
        elif kind == _Kind.DRAIN_END and subject.phase is PodPhase.DRAINING:
            self._hand_over(subject)
        elif kind == _Kind.PREEMPTION and subject.phase is not PodPhase.GONE:
            # The provider takes the node; the cluster asks for a replacement at once.
            self._drain(subject, self._scenario.notice_s)
            self._set_scale(self._asked)

    def _hand_over(self, predictor: SimulatedPredictor) -> None:
        predictor.engine.advance(self._now)
        jobs = predictor.engine.hand_over(does_resume=self._scenario.does_resume)
        for job in jobs:
            self._count_running(job, -1)
        self._handed_over += len(jobs)
        self._queue.put_back(jobs)
        self._end(predictor)
        self._dispatch()

    def _end(self, predictor: SimulatedPredictor) -> None:
        predictor.engine.version += 1
        node = self._cluster.end(predictor, self._now)
        if node is not None:
            self._push(self._now + self._scenario.nodes.idle_s, _Kind.NODE_IDLE, node)

    # --- measures -----------------------------------------------------------------------------

    def _pass_time(self, at: float) -> None:
        passed = at - self._now
        if passed > 0:
            in_flight = min(len(self._queue) + self._running, self._limit)
            self._in_flight_area += passed * in_flight
            self._used_area += passed * self._running
            self._slot_area += passed * self._ready_slots
            self._now = at

    def _forget_areas(self) -> None:
        self._last_tick = self._now
        self._in_flight_area = self._used_area = self._slot_area = 0.0

    def _sample(self) -> None:
        passed = self._now - self._series_since
        share = self._used_area / self._slot_area if self._slot_area > 0 else 0.0
        self._series.add(
            self._now,
            self._asked,
            self._cluster.count(PodPhase.READY),
            len(self._queue),
            self._running,
            self._tally.recent.quantile(0.95, self._now) or 0.0,
            100 * share,
            (self._tally.requests - self._arrivals_before) / passed if passed > 0 else 0.0,
        )
        self._series_since = self._now
        self._arrivals_before = self._tally.requests

    def _push(self, at: float, kind: _Kind, subject: object, version: int = 0) -> None:
        self._count += 1
        heapq.heappush(self._events, (at, self._count, int(kind), subject, version))

    def outcome(self) -> RunOutcome:
        """What the run gave, at its end."""
        tally, end = self._tally, max(self._scenario.horizon_s, self._now)
        tally.batch.late += len(self._queue.batch) + self._running_batch
        return RunOutcome(
            requests=tally.requests,
            served=tally.served,
            timed_out=tally.timed_out,
            refused=tally.refused,
            unserved=len(self._queue) + self._running,
            output_tokens=tally.output_tokens,
            stood_in=tally.stood_in,
            wait=tally.wait,
            first_token=tally.first_token,
            total=tally.total,
            gpu=self._cluster.gpu_seconds(end),
            cold_starts=self._cluster.launches - self._scenario.initial_replicas,
            node_launches=self._cluster.node_launches,
            handed_over=self._handed_over,
            most_replicas=self._most,
            end_s=end,
            series=self._series,
            batch=tally.batch,
        )
