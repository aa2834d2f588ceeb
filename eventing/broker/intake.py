"""Accepts jobs: one script writes the record, its list entries and its event, or says why not (docs/adr/0140).

Called by the api for every job, with an Idempotency-Key or without, and by the embedded broker's ingress for jobs
of other producers. If the process dies before it has the script's answer, the job exists completely or not at all.
Must not know HTTP.
"""

from dataclasses import replace
from typing import Protocol

from eventing.clock import Clock, SystemClock
from eventing.cloudevent.event import Event
from eventing.cloudevent.job_event import planned_event, request_event
from eventing.job.job import Job, JobId, JobRequest
from eventing.job.plan import NO_PIPELINES, Pipelines, Plan, plan_for
from eventing.job.store import JobIntake, NewJob, Publication
from eventing.store.job_record import fresh
from eventing.telemetry import trace


class Route(Protocol):
    """How request events get to their broker: `eventing.broker.router.DirectPublisher` or
    `eventing.outbox.publisher.OutboxPublisher`.
    """

    def publication(self, event: Event) -> Publication:
        """What the store does with the event when it records the job. Raises `EventTooLarge` for an event over the
        broker's limit.
        """

    def recorded(self, job_id: JobId, event: Event) -> None:
        """Called once the store has the job."""


class Intake:
    """Submits jobs, and makes their plans; the store and the route belong to the caller."""

    def __init__(
        self,
        store: JobIntake,
        route: Route,
        clock: Clock | None = None,
        pipelines: Pipelines = NO_PIPELINES,
    ) -> None:
        self._store = store
        self._route = route
        self._clock = clock or SystemClock()
        self._pipelines = pipelines

    async def submit(self, new: NewJob, event: Event | None = None) -> tuple[Job, bool]:
        """As `JobIntake.submit`, and publish the job's event: `event`, if the job was requested by one. Raises
        `InvalidJob` when the caller wants a step left out that may not be.
        """
        if new.plan is None:
            plan = plan_for(self._pipelines, new.request.model, new.skip_steps)
            for step in new.own_steps:
                plan = (plan or Plan(steps=())).with_step(step)
            new = replace(new, plan=plan)
        # An event of ours carries this host's time; the record's is not known yet.
        made = planned_event(event, new.plan) if event else None
        event = made or request_event(fresh(new, self._clock.wall_ms()))
        publication = self._route.publication(event)
        with trace.span("enqueue", parent=new.traceparent, type=event.type):
            job, is_new = await self._store.submit(new, publication)
        if is_new:
            self._route.recorded(job.id, event)
        return job, is_new

    async def redrive(self, job: Job, request: JobRequest | None) -> bool:
        """As `JobIntake.redrive`, and publish the event of the new run: at the step that failed, or from the start
        with an edited request.
        """
        again, plan = replace(job, attempt=job.attempt + 1, deadline_ms=0), None
        if request is not None:
            plan = plan_for(self._pipelines, request.model)
            step = plan.first if plan else ""
            again = replace(again, request=request, prepared=None, plan=plan, step=step)
        event = request_event(again)
        is_queued = await self._store.redrive(job, request, self._route.publication(event), plan)
        if is_queued:
            self._route.recorded(job.id, event)
        return is_queued
