"""Sends the jobs of a model that does not start to the one that stands in for it.

Called by the api, in a loop, where a model has a fallback; any number of processes watch at once. The decision and
its state are in the store, by its clock (`check_start.lua`), so that processes neither disagree nor flap. A model
trips when jobs waited and no attempt of it began for twice its cold start (a wrong image, no GPU); an attempt that
begins ends that. Meanwhile one job now and then waits for it as a probe. Each job is moved by one script
(`fall_back.lua`).
"""

import asyncio
from dataclasses import dataclass, replace
from typing import Final, Protocol

import orjson
import structlog
from prometheus_client import Gauge
from redis.asyncio import Redis

from eventing.cloudevent.event import Event
from eventing.cloudevent.job_event import request_event
from eventing.errors import BadRequest, Unavailable
from eventing.job.job import JobId
from eventing.job.pipelines.fallback import NOT_STARTING, Fallbacks, stand_in
from eventing.job.store import JobSweeper, LeaseSettings, Publication
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.script import Argument, run
from eventing.store.job_record.fields import fingerprint
from eventing.store.redis_call import queue_args

_MOST: Final = 200
_LONGEST_PAUSE_S: Final = 1.0
_LONGEST_GAP_S: Final = 10.0
_log = structlog.get_logger()
_tripped = Gauge(
    "torpor_model_not_starting", "1 while a model does not start and another stands in.", ["model"]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartTimes:
    """Times of the decision, all of which follow from the longest start."""

    cold_start_s: float

    @property
    def trip_ms(self) -> int:
        """Without an attempt that begins, while jobs wait."""
        return int(2000 * self.cold_start_s)

    @property
    def probe_ms(self) -> int:
        """How long a probe waits, and the pause before the next: a start takes no longer."""
        return int(1000 * self.cold_start_s)

    @property
    def every_s(self) -> float:
        return min(_LONGEST_PAUSE_S, self.cold_start_s / 10)

    @property
    def gap_ms(self) -> int:
        """Between two checks: a longer one is none in which the model could have been seen to start."""
        return int(1000 * min(_LONGEST_GAP_S, self.cold_start_s / 2))


class Route(Protocol):
    """How a request event gets to its broker."""

    def publication(self, event: Event) -> Publication: ...

    def recorded(self, job_id: JobId, event: Event) -> None: ...


class StartWatch:
    """Watches every model that has a fallback."""

    def __init__(
        self,
        redis: Redis,
        store: JobSweeper,
        route: Route,
        fallbacks: Fallbacks,
        *,
        lease: LeaseSettings,
        cold_start_s: float,
    ) -> None:
        self._redis = redis
        self._store = store
        self._route = route
        self._models = sorted(fallbacks)
        self._lease = lease
        self._times = StartTimes(cold_start_s=cold_start_s)

    async def run(self) -> None:
        """Watch until cancelled; an unavailable store is asked again."""
        while True:
            for model in self._models:
                try:
                    while await self.check(model):
                        pass
                except Unavailable as error:
                    _log.debug("will look again", action="watch_start", reason=error.code)
            await asyncio.sleep(self._times.every_s)

    async def check(self, model: str) -> bool:
        """Decide once, and move the jobs that are to go elsewhere; True when some were moved, since there may be more.
        Raises `Unavailable`.
        """
        times = self._times
        args: list[Argument] = [model, times.trip_ms, times.probe_ms, times.probe_ms]
        args += [times.gap_ms, self._lease.lease_ms, _MOST]
        names = [keys.starting(model), keys.starting_jobs(model)]
        async with failures_named():
            answer, *job_ids = await run(self._redis, "check_start", names, args)
        _tripped.labels(model).set(answer != b"starts")
        if answer == b"trips":
            _log.warning("does not start: its fallback is used", action="fallback", model=model)
        moved = [await self._move(JobId(job_id.decode())) for job_id in job_ids]
        return any(moved)

    async def _move(self, job_id: JobId) -> bool:
        """Send the job to the other model; False when it is not to go there any more, or cannot."""
        job = await self._store.get(job_id, with_result=False)
        models = stand_in(job.fallback) if job else None
        if job is None or models is None:
            return False
        model, other = models
        request = replace(job.to_run, body={**job.to_run.body, "model": other})
        event = request_event(replace(job, prepared=request))
        try:
            publication = self._route.publication(event)
        except BadRequest as error:
            _log.error("its fallback is out of reach", action="fallback", reason=error.message)
            return False
        text = request.to_json()
        routing = {"asked": model, "answered": other, "reason": NOT_STARTING}
        args: list[Argument] = [
            job.fallback,
            job.attempt,
            self._lease.lease_ms,
            self._lease.republish_after_s * 1000,
            int(publication.max_unpublished is not None),
            publication.event,
            *queue_args(publication),
            *("prepared", text, "prepared_sha", fingerprint(text, job.tenant)),
            *("routing", orjson.dumps(routing)),
        ]
        names = [keys.job(job.id), keys.tokens(job.id), keys.starting(model)]
        async with failures_named():
            answer: bytes = await run(self._redis, "fall_back", names, args)
        is_moved = answer == b"ok"
        if is_moved:
            self._route.recorded(job.id, event)
            _log.info("sent to its fallback", action="fallback", job_id=job.id, model=other)
        return is_moved
