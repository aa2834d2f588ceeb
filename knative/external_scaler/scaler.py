"""The scaler of one ScaledObject: reads the queue, learns, and keeps the number of replicas for KEDA.

Called by `server.py` once a second, and for each request. Must not know gRPC or Redis. What it learnt is in memory
only; after a restart it begins with a first guess.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from knative.autoscaling.setting import SettingReader
from knative.autoscaling.work import work
from knative.autoscaling.work.work import Observation, WorkSpec, WorkState

METRIC = "torpor-replicas"


@dataclass(frozen=True, slots=True)
class Finished:
    """A job that ended; without a token count nothing is learnt from it."""

    prompt_tokens: int
    output_tokens: int | None


@dataclass(frozen=True, slots=True)
class WaitingJob:
    """A waiting job; `deadline_s` is the time left until its deadline (infinite without one). `is_batch`: it is in the
    batch lane.
    """

    prompt_tokens: int
    wait_s: float
    deadline_s: float = math.inf
    is_batch: bool = False


@dataclass(frozen=True, slots=True)
class QueueSnapshot:
    """A queue at one moment.

    `held` of the predictors are those that jobs whose tools run are expected back at.
    `arrived` are the prompt tokens of jobs that arrived since the last read, `arrived_batch` those of the batch lane;
    `waiting` are all waiting jobs, oldest first; `running` have a lease; `ready` and `existing` count predictors.
    """

    waiting: tuple[WaitingJob, ...]
    running: int
    ready: int
    existing: int
    arrived: tuple[int, ...] = ()
    finished: tuple[Finished, ...] = ()
    arrived_batch: tuple[int, ...] = ()
    held: int = 0


class WorkSource(Protocol):
    """A source of queue snapshots."""

    async def look(self, queue: str, model: str) -> QueueSnapshot:
        """The queue now; arrivals and ends are reported once."""
        ...


@dataclass(frozen=True, slots=True)
class ScalerSettings:
    """The settings in a ScaledObject's trigger metadata."""

    spec: WorkSpec
    queue: str
    model: str


def read_metadata(metadata: Mapping[str, str], *, queue: str, model: str) -> ScalerSettings:
    """The settings of a trigger; `queue` and `model` are the defaults.

    Raises RefusedSettingsError naming every unknown or out-of-range key.
    """
    reader = SettingReader(metadata, prefix="metadata.")
    reader.ignore("scalerAddress", "tlsCertFile", "caCert", "tlsClientCert", "tlsClientKey")
    most = 1e7
    settings = ScalerSettings(
        spec=WorkSpec(
            prefill_tokens_per_s=reader.number("prefillTokensPerSecond", 5000, low=0.1, high=most),
            decode_tokens_per_s=reader.number("decodeTokensPerSecond", 500, low=0.1, high=most),
            slots=reader.integer("slots", 8, low=1, high=4096),
            cold_start_s=reader.number("coldStartSeconds", 60, low=0, high=3600),
            p95_wait_s=reader.number("p95WaitSeconds", 60, low=0, high=86_400),
            late_share=reader.number("latePercent", 5, low=0, high=50) / 100,
            batch_wait_s=reader.number("batchWaitSeconds", 0, low=0, high=604_800),
            longest_wait_s=reader.number("longestWaitSeconds", 900, low=0, high=86_400),
            min_replicas=reader.integer("minReplicas", 0, high=1000),
            max_replicas=reader.integer("maxReplicas", 100, low=1, high=1000),
            margin_s=reader.number("marginSeconds", 3, low=0, high=600),
        ),
        queue=reader.text("queue", queue),
        model=reader.text("model", model),
    )
    reader.finish()
    return settings


class Scaler:
    """The policy of one ScaledObject between two reads."""

    def __init__(self, settings: ScalerSettings) -> None:
        self.settings = settings
        self.replicas = settings.spec.min_replicas
        self._state = WorkState(idle_since=None)

    def see(self, look: QueueSnapshot, now: float) -> int:
        """Learn from `look` and decide; KEDA gets this number until the next read."""
        spec = self.settings.spec
        counted = look.arrived if spec.batch_wait_s else (*look.arrived, *look.arrived_batch)
        for prompt_tokens in counted:
            self._state = work.arrived(spec, self._state, prompt_tokens, now)
        is_idle = not self._served_in_turn(look) and not look.running
        for done in look.finished:
            self._learn(done, now, is_last=is_idle)
        self._state, wanted = work.decide(spec, self._state, self._observation(look), now)
        self.replicas = max(wanted, min(look.held, look.existing))
        return self.replicas

    def _learn(self, done: Finished, now: float, *, is_last: bool) -> None:
        spec = self.settings.spec
        expected = work.expected_output(spec, self._state, done.prompt_tokens)
        output = done.output_tokens if done.output_tokens is not None else round(expected)
        self._state = work.finished(
            spec, self._state, done.prompt_tokens, output, now, is_last=is_last
        )

    def _served_in_turn(self, look: QueueSnapshot) -> list[WaitingJob]:
        """The waiting jobs that a replica is started for: batch jobs are among them unless they may wait longer."""
        return [
            job for job in look.waiting if not (self.settings.spec.batch_wait_s and job.is_batch)
        ]

    def _observation(self, look: QueueSnapshot) -> Observation:
        spec, state = self.settings.spec, self._state
        waiting = self._served_in_turn(look)
        work_s = sum(
            spec.work_s(job.prompt_tokens, work.expected_output(spec, state, job.prompt_tokens))
            for job in waiting
        )
        batch = tuple(
            work.batch_job(spec, state, job.prompt_tokens, job.wait_s, job.deadline_s)
            for job in look.waiting
            if spec.batch_wait_s and job.is_batch
        )
        return Observation(
            waits_s=tuple(job.wait_s for job in waiting),
            queued_work_s=work_s,
            running=look.running,
            asked=look.existing,
            ready=look.ready,
            deadline_s=min((job.deadline_s for job in waiting), default=math.inf),
            batch=batch,
        )
