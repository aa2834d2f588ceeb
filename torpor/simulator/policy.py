"""Adapters that run the real policies in the simulated world.

Called by `candidate.py`, the Black-Friday scenario and tests. It makes no decisions: it turns a `PolicyView` into a
policy's real input, and calls the policy.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace

from knative.autoscaling.hpa import hpa
from knative.autoscaling.hpa.metric import PodSample, Replicas
from knative.autoscaling.keda import keda
from knative.autoscaling.keda.keda import KedaSpec
from knative.autoscaling.keda.trigger import Backlog, Prometheus, Resource, measured
from knative.autoscaling.kpa import kpa, reconciler
from knative.autoscaling.kpa.annotations import KnativeScaling
from knative.autoscaling.setting import Refusal, RefusedSettingsError
from knative.autoscaling.work import work
from knative.autoscaling.work.work import WorkSpec
from torpor.simulator.engine import SimulatedJob
from torpor.simulator.view import PolicyView

# What a prometheus trigger may ask here: the query must name one of these series.
SIGNALS = ("p95_s", "queued", "running", "in_flight", "slot_percent")
_CPU_WINDOW_S = 15


class CpuModel:
    """The CPU usage that a metrics server reports for a predictor.

    `idle_percent` with no request, `full_percent` with every slot taken.
    """

    def __init__(self, idle_percent: float = 5.0, full_percent: float = 55.0) -> None:
        self._idle = idle_percent
        self._full = full_percent
        self._shares: deque[float] = deque(maxlen=_CPU_WINDOW_S)

    def saw(self, view: PolicyView) -> None:
        """Take one second's share of used places into the average."""
        self._shares.append(view.slot_share)

    def percent(self) -> float:
        """CPU in percent of the request, averaged over the metrics window."""
        share = sum(self._shares) / len(self._shares) if self._shares else 0.0
        return self._idle + (self._full - self._idle) * share

    def samples(self, view: PolicyView, now: float) -> tuple[PodSample, ...]:
        """One sample a pod; pods that are not ready yet have one that does not count."""
        ready = PodSample(self.percent(), 100.0)
        waking = PodSample(self._idle, 100.0, is_ready=False, started_at=now, ready_changed_at=now)
        return (ready,) * view.ready + (waking,) * max(0, view.existing - view.ready)


class FixedPolicy:
    """Always the same number of replicas."""

    tick_s = 60.0

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas

    def step(self, view: PolicyView, now: float) -> int:
        """The number."""
        return self._replicas

    def wake(self, view: PolicyView, now: float) -> int | None:
        """Never by itself."""
        return None


class KpaPolicy:
    """The Knative autoscaler: records every second, decides every two, and is poked at zero."""

    tick_s = float(kpa.SCRAPE_S)

    def __init__(self, scaling: KnativeScaling) -> None:
        self._state = kpa.start(scaling.spec, ready_pods=0, now=0)
        policy = scaling.policy
        if policy.initial_scale == 1 and policy.min_scale == 0:
            # A revision that was deployed long ago and sleeps, not one that is just being rolled
            # out.
            policy = replace(policy, initial_scale=0)
        self._policy = policy
        self._revision = reconciler.start(policy, now=0)
        self._next_decision = 0.0

    def step(self, view: PolicyView, now: float) -> int:
        """Record this second; decide when two have passed."""
        if view.ready or view.in_flight_average > 0:
            self._state = kpa.record(self._state, now, view.in_flight_average)
        if now < self._next_decision:
            return view.asked
        self._next_decision = now + kpa.TICK_S
        return self._decided(view, now)

    def wake(self, view: PolicyView, now: float) -> int | None:
        """The activator reports the first request at once, and the autoscaler decides at once."""
        self._state = kpa.record(self._state, now, 1.0)
        return self._decided(view, now)

    def _decided(self, view: PolicyView, now: float) -> int:
        self._state, decision = kpa.decide(self._state, view.ready, now)
        pods = reconciler.Pods(view.asked, view.ready)
        self._revision, outcome = reconciler.reconcile(
            self._policy, self._revision, decision, pods, now
        )
        return outcome.replicas


class KedaPolicy:
    """A ScaledObject: the operator's poll and KEDA's HPA, each at its own interval."""

    tick_s = 1.0

    def __init__(self, spec: KedaSpec, cpu: CpuModel | None = None) -> None:
        _refuse_unknown_queries(spec)
        self._outside: dict[str, float] = {}
        self._spec = spec
        self._state = keda.start(spec, now=0)
        self._cpu = cpu or CpuModel()
        self._has_cpu = any(isinstance(t.source, Resource) for t in spec.triggers)

    def step(self, view: PolicyView, now: float) -> int:
        """Whatever of poll and sync is due."""
        self._cpu.saw(view)
        backlog = _backlog(self._spec, view)
        values = measured(self._spec.triggers, backlog) | self._outside
        replicas = Replicas(view.asked, view.existing, view.ready)
        pods = self._cpu.samples(view, now) if self._has_cpu else ()
        self._state, decision = keda.decide(
            self._spec, self._state, values, replicas, now, pods=pods
        )
        return decision.replicas

    def hear(self, values: Mapping[str, float]) -> None:
        """Set the values of external scalers, by trigger key."""
        self._outside = dict(values)

    def pushed(self, view: PolicyView, now: float) -> int:
        """An external-push scaler reported work: the operator acts as at a poll."""
        self._state, decision = keda.poll(self._spec, self._state, self._outside, view.asked, now)
        return decision.replicas

    def wake(self, view: PolicyView, now: float) -> int | None:
        """KEDA notices at its next poll."""
        return None


class HpaPolicy:
    """A plain HPA on CPU."""

    tick_s = 1.0

    def __init__(self, spec: hpa.HpaSpec, cpu: CpuModel | None = None) -> None:
        self._spec = spec
        self._state = hpa.HpaState()
        self._cpu = cpu or CpuModel()
        self._next_sync = hpa.SYNC_S

    def step(self, view: PolicyView, now: float) -> int:
        """Watch the CPU every second, decide every fifteen."""
        self._cpu.saw(view)
        if now < self._next_sync:
            return view.asked
        self._next_sync = now + hpa.SYNC_S
        reading = hpa.HpaReading(
            Replicas(view.asked, view.existing, view.ready),
            {"queue": float(view.queued), "in_flight": float(view.queued + view.running)},
            self._cpu.samples(view, now),
        )
        self._state, decision = hpa.decide(self._spec, self._state, reading, now)
        return decision.replicas

    def wake(self, view: PolicyView, now: float) -> int | None:
        """An HPA does nothing at zero."""
        return None


def _backlog(spec: KedaSpec, view: PolicyView) -> Backlog:
    signals: dict[str, float | None] = {
        "p95_s": view.p95_s,
        "queued": float(view.queued),
        "running": float(view.running),
        "in_flight": float(view.queued + view.running),
        "slot_percent": 100 * view.slot_share,
    }
    return Backlog(
        undelivered=view.queued,
        in_flight=view.running,
        length=view.queued + view.running,
        queries={
            trigger.source.query: signals[_signal(trigger.source.query)]
            for trigger in spec.triggers
            if isinstance(trigger.source, Prometheus)
        },
    )


def _signal(query: str) -> str:
    return next(name for name in SIGNALS if name in query)


def _refuse_unknown_queries(spec: KedaSpec) -> None:
    refusals = tuple(
        Refusal(f"triggers.{trigger.key}.query", trigger.source.query, f"naming one of {SIGNALS}")
        for trigger in spec.triggers
        if isinstance(trigger.source, Prometheus)
        and not any(name in trigger.source.query for name in SIGNALS)
    )
    if refusals:
        raise RefusedSettingsError(refusals)


class WorkPolicy:
    """Our own policy, called every second; it sees each job's prompt and learns from its answer."""

    tick_s = 1.0

    def __init__(self, spec: WorkSpec) -> None:
        self._spec = spec
        self._state = work.WorkState(idle_since=0.0)
        self._open = 0

    def arrived(self, job: SimulatedJob, now: float) -> None:
        """Note the job's estimated work."""
        if self._is_held(job):
            return
        self._open += 1
        self._state = work.arrived(self._spec, self._state, job.prompt_tokens, now)

    def finished(self, job: SimulatedJob, now: float) -> None:
        """Learn its true length."""
        is_held = self._is_held(job)
        self._open -= not is_held
        self._state = work.finished(
            self._spec,
            self._state,
            job.prompt_tokens,
            job.output_tokens,
            now,
            is_last=self._open == 0 and not is_held,
        )

    def step(self, view: PolicyView, now: float) -> int:
        """Decide on the work that waits."""
        self._state, replicas = work.decide(
            self._spec, self._state, self._observation(view, now), now
        )
        return replicas

    def wake(self, view: PolicyView, now: float) -> int | None:
        """Decide at once on a first request: its slack may be short."""
        return self.step(view, now)

    def _observation(self, view: PolicyView, now: float) -> work.Observation:
        held = [job for job in view.batch if self._is_held(job)]
        queue: Sequence[SimulatedJob] = view.queue
        if len(held) < len(view.batch):
            queue = sorted([*view.queue, *view.batch], key=lambda job: job.arrived)
        waiting = sum(
            self._spec.work_s(
                job.prompt_tokens,
                work.expected_output(self._spec, self._state, job.prompt_tokens),
            )
            for job in queue
        )
        waits = tuple(now - job.arrived for job in queue)
        batch = tuple(
            work.batch_job(
                self._spec,
                self._state,
                job.prompt_tokens,
                now - job.arrived,
                math.inf if job.void_at is None else job.void_at - now,
            )
            for job in held
        )
        return work.Observation(waits, waiting, view.running, view.asked, view.ready, batch=batch)

    def _is_held(self, job: SimulatedJob) -> bool:
        """Whether it is a batch job that waits for room."""
        return job.void_at is not None and self._spec.batch_wait_s > 0


class WorkOverKeda(WorkPolicy):
    """Our own policy through KEDA: its number is an external-push trigger's metric.

    Activation is pushed (`StreamIsActive`); everything else comes with KEDA's polls and HPA syncs.
    """

    def __init__(self, spec: WorkSpec, scaled_object: KedaSpec) -> None:
        super().__init__(spec)
        self._keda = KedaPolicy(scaled_object)
        self._key = scaled_object.triggers[0].key

    def step(self, view: PolicyView, now: float) -> int:
        """Decide, and let KEDA act on it at its own intervals."""
        wanted = super().step(view, now)
        self._keda.hear({self._key: float(wanted)})
        if wanted > 0 and view.asked == 0:
            return self._keda.pushed(view, now)
        return self._keda.step(view, now)
