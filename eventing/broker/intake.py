"""Accepts jobs: one script writes the record, its list entries and its event, or says why not (docs/adr/0140).

Called by the api for every job, with an Idempotency-Key or without, and by the embedded broker's ingress for jobs
of other producers. If the process dies before it has the script's answer, the job exists completely or not at all.
Must not know HTTP.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final, Protocol

from eventing.clock import Clock, SystemClock
from eventing.cloudevent.event import Event
from eventing.cloudevent.job_event import planned_event, request_event
from eventing.errors import NotCached
from eventing.job.cache.cache import CacheRules, cache_ask, parse_cache_control
from eventing.job.cache.followers import Followers
from eventing.job.job import Job, JobId, JobRequest, JobState
from eventing.job.moderation.inline import inline_steps
from eventing.job.pipelines.fallback import NO_FALLBACKS, Fallbacks, fallback_word
from eventing.job.plan import NO_PIPELINES, TOOLS_STEP, Pipelines, Plan, PlannedStep, plan_for
from eventing.job.store import JobIntake, NewJob, Publication
from eventing.job.tools.request import OnApproval, check_hold, on_approval_of, tool_steps
from eventing.job.tools.server import NO_TOOLS, ToolConfig
from eventing.store.job_record.parse import fresh
from eventing.store.vector_store.query import RETRIEVE_STEP
from eventing.telemetry import trace

_RESPONSES: Final = "torpor.response"
"""Metadata of a job that a call of OpenAI's Responses made."""


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


IndexVersions = Callable[[str, Sequence[str]], Awaitable[Mapping[str, str] | None]]
"""Gives the versions of a tenant's vector stores; None where one is not there."""


class Intake:
    """Submits jobs, and makes their plans; the store and the route belong to the caller."""

    def __init__(
        self,
        store: JobIntake,
        route: Route,
        clock: Clock | None = None,
        pipelines: Pipelines = NO_PIPELINES,
        cache_rules: CacheRules | None = None,
        index_versions: IndexVersions | None = None,
        fallbacks: Fallbacks = NO_FALLBACKS,
        tools: ToolConfig = NO_TOOLS,
    ) -> None:
        self._store = store
        self._route = route
        self._clock = clock or SystemClock()
        self._pipelines = pipelines
        self._cache_rules = cache_rules or {}
        self._index_versions = index_versions
        self._fallbacks = fallbacks
        self._tools = tools

    async def submit(self, new: NewJob, event: Event | None = None) -> tuple[Job, bool]:
        """As `JobIntake.submit`, and publish the job's event: `event`, if the job was requested by one. Raises
        `InvalidJob` when the caller wants a step left out that may not be, or tools that it may not use, and
        `NotCached`.
        """
        if new.plan is None:
            plan = self.plan_of(new.request.model, new.skip_steps)
            own = (*new.own_steps, *self._asked_steps(new.request, new.tenant, new.on_approval))
            new = replace(new, plan=_with_steps(plan, own))
            check_hold(new.plan)
        if self._fallbacks and not (new.plan and new.plan.first):
            model, asked = new.request.model, new.fallback
            word = fallback_word(self._fallbacks, model, new.tenant, asked, new.metadata)
            new = replace(new, fallback=word)
        new = await self._asking(new)
        # An event of ours carries this host's time; the record's is not known yet.
        made = planned_event(event, new.plan) if event else None
        event = made or request_event(fresh(new, self._clock.wall_ms()))
        publication = self._with_after(self._route.publication(event), fresh(new, 0))
        with trace.span("enqueue", parent=new.traceparent, type=event.type):
            job, is_new = await self._store.submit(new, publication)
        if is_new and job.state is JobState.QUEUED and not job.follows:
            self._route.recorded(job.id, event)
        return job, is_new

    def _with_after(self, publication: Publication, job: Job) -> Publication:
        """The publication with the queues of the first step after the predictor, which the script that has the
        answer puts its event into.
        """
        if job.plan is None or not job.plan.first_after:
            return publication
        event = request_event(replace(job, step=job.plan.first_after))
        return replace(publication, after_queues=self._route.publication(event).queues)

    async def _asking(self, new: NewJob) -> NewJob:
        """The job with what is asked of the exact cache for it. Raises `NotCached` for one that only a kept answer can
        serve, and that asks for none.
        """
        ask = None
        runs_tools = new.plan is not None and new.plan.step(TOOLS_STEP) is not None
        if (new.cache_control or self._cache_rules) and not runs_tools:
            ask = cache_ask(
                new.request.url,
                new.request.body,
                tenant=new.tenant,
                rule=self._cache_rules.get(new.request.model),
                control=parse_cache_control(new.cache_control),
                plan=new.plan,
                kind=_RESPONSES if _RESPONSES in new.metadata else "",
                has_context=new.turn is not None,
                index_versions=await self._versions_for(new),
            )
        if not new.only_kept:
            return replace(new, cache=ask) if ask else new
        if ask is None or not ask.key:
            raise NotCached("no answer is kept for this request")
        return replace(new, cache=replace(ask, only_if_cached=True))

    async def _versions_for(self, new: NewJob) -> Mapping[str, str] | None:
        """The versions of the vector stores that the plan searches; None for a plan that searches none, or for stores
        that are not there.
        """
        step = new.plan.step(RETRIEVE_STEP) if new.plan else None
        ids = step.settings.get("vector_store_ids") if step else None
        if not ids or self._index_versions is None:
            return None
        return await self._index_versions(new.tenant, ids)

    async def promote(self, follower: Job, followers: Followers) -> bool:
        """Queue a follower whose leader ended without an answer, and publish its event."""
        leader = await self._store.get(JobId(follower.follows), with_result=False)
        attempt = leader.attempt if leader else 0
        event = request_event(replace(follower, follows="", attempt=attempt))
        is_queued = await followers.promote(follower, self._route.publication(event))
        if is_queued:
            self._route.recorded(follower.id, event)
        return is_queued

    def plan_of(self, model: str, skip_steps: Sequence[str] = ()) -> Plan | None:
        """The plan that a new job of a model is given. Raises `InvalidJob` as `submit`."""
        return plan_for(self._pipelines, model, skip_steps)

    def _asked_steps(
        self, request: JobRequest, tenant: str, on_approval: OnApproval
    ) -> tuple[PlannedStep, ...]:
        """The steps that a request asks for."""
        tools = tool_steps(request, self._pipelines, self._tools, tenant, on_approval)
        return (*inline_steps(request, self._pipelines), *tools)

    async def redrive(self, job: Job, request: JobRequest | None) -> bool:
        """As `JobIntake.redrive`, and publish the event of the new run: at the step that failed, or from the start
        with an edited request.
        """
        again, plan = replace(job, attempt=job.attempt + 1, deadline_ms=0), None
        if request is not None:
            own = self._asked_steps(request, job.tenant, on_approval_of(job.plan))
            plan = _with_steps(self.plan_of(request.model), own)
            check_hold(plan)
            step = plan.first if plan else ""
            again = replace(again, request=request, prepared=None, plan=plan, step=step)
        event = request_event(again)
        publication = self._with_after(self._route.publication(event), again)
        if request is not None and not again.step:
            word = fallback_word(
                self._fallbacks, request.model, job.tenant, job.fallback, job.metadata
            )
            publication = replace(publication, fallback=word)
        is_queued = await self._store.redrive(job, request, publication, plan)
        if is_queued:
            self._route.recorded(job.id, event)
        return is_queued


def _with_steps(plan: Plan | None, own: Sequence[PlannedStep]) -> Plan | None:
    """The plan with the steps that the request asks for."""
    for step in own:
        plan = (plan or Plan(steps=())).with_step(step)
    return plan
