"""Builds the parts of the api.

Called by `api.__main__` and by tests, which pass a broker of their own. It contains no decisions.
"""

from dataclasses import dataclass
from typing import Final

from api.audit.make import AuditParts, make_audits
from api.auth.rules import authenticator_for
from api.batch.round import RunnerDeps
from api.batch.store import BatchStore
from api.http.idempotency import Replay
from api.http.shutdown import Shutdown
from api.job.catalog import Catalog
from api.job.live import LiveDeps
from api.job.result_feed import ResultFeed
from api.job.sealing import Sealing
from api.job.submission import SubmitDeps
from api.job.waiting import QueueWaiting, WakingNotes
from api.limit.budget import Budgets
from api.limit.budget_notice import BudgetNotices
from api.limit.concurrency_limiter import ConcurrencyLimiter
from api.limit.gate import LimitGate
from api.limit.job_budgets import JobBudgets
from api.limit.open_streams import OpenStreams
from api.routes import vector_stores
from api.routes.route import Access
from api.settings import ApiSettings
from api.vector_store.indexing import IndexingEvents
from api.webhook.sender import SenderSettings, WebhookSender
from api.webhook.service import WebhookService
from api.webhook.store import WebhookStore
from eventing.broker.intake import Intake, Route
from eventing.broker.router import DirectPublisher, make_route
from eventing.clock import Clock, SystemClock
from eventing.cloudevent.publisher import Publisher
from eventing.live.completion_notifier import CompletionNotifier
from eventing.live.stream_multiplexer import StreamMultiplexer
from eventing.outbox.followers import FollowerListener
from eventing.outbox.publisher import OutboxPublisher
from eventing.process.body import BodyReader, BodyRoom
from eventing.process.egress import allow_list
from eventing.redis.multiplexed_connection import SharedRedis
from eventing.store.archive import Archive
from eventing.store.conversation.store import Conversations
from eventing.store.file_store import FileStore
from eventing.store.objects.object_store import ObjectStore
from eventing.store.objects.tool_results import tool_results
from eventing.store.steps.redis_tools import RedisToolStore
from eventing.store.vector_store.store import VectorStores
from eventing.store.vector_store.text_object import FOLDER as TEXTS
from eventing.telemetry.metric.ledger import Ledger

_RESULTS: Final = "results"
"""The folder of large results, beside those of tenants' files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of one api process. Only this folder uses it as a whole."""

    settings: ApiSettings
    redis: SharedRedis
    store: RedisToolStore
    archive: Archive
    route: DirectPublisher | OutboxPublisher
    clock: Clock
    streams: StreamMultiplexer
    ends: CompletionNotifier
    ledger: Ledger
    gate: LimitGate
    budgets: JobBudgets
    webhooks: WebhookService
    results: ResultFeed
    past_waking: WakingNotes
    access: Access
    body_room: BodyRoom
    shutdown: Shutdown
    live: LiveDeps
    submission: SubmitDeps
    followers: FollowerListener
    audits: AuditParts | None
    batches: RunnerDeps
    vector_stores: vector_stores.VectorStoreDeps

    async def close(self) -> None:
        self.submission.catalog.close()
        await self.route.close()
        await self.streams.close()
        await self.store.close()


def make_parts(
    settings: ApiSettings, redis: SharedRedis, publisher: Publisher | None = None
) -> Parts:
    """The parts over one Redis client; connections are opened on first use. Raises `BadRequest` when the triggers or
    the keys cannot be read.
    """
    clock, body_room = SystemClock(), BodyRoom()
    archive = Archive(redis, ObjectStore(f"{settings.files_url.rstrip('/')}/{_RESULTS}"))
    results_of_tools = tool_results(settings.files_url)
    store = RedisToolStore(redis, settings.lease, archive, results=results_of_tools)
    route = make_route(settings, redis, publisher, max_unpublished=settings.max_unpublished)
    stores = VectorStores(redis)
    intake = _intake(settings, store, route, clock, stores)
    webhooks = _webhooks(settings, redis)
    budgets = _budgets(settings, redis, route, webhooks, clock)
    gate = LimitGate(settings, redis, store, clock, budgets)
    streams = StreamMultiplexer(settings.redis_url.get_secret_value(), store, redis)
    ends, waiting = CompletionNotifier(redis), QueueWaiting(redis, clock)
    submission = _submission(settings, redis, clock, intake, gate)
    files = FileStore(settings.files_url)
    return Parts(
        settings=settings,
        redis=redis,
        store=store,
        archive=archive,
        route=route,
        clock=clock,
        streams=streams,
        ends=ends,
        ledger=Ledger(redis),
        gate=gate,
        budgets=budgets,
        webhooks=webhooks,
        results=ResultFeed(redis, store),
        past_waking=WakingNotes(redis, waiting, clock),
        access=_access(settings, redis, clock, gate, body_room),
        body_room=body_room,
        shutdown=Shutdown(),
        live=_live(settings, store, streams, ends, waiting, clock),
        submission=submission,
        followers=FollowerListener(store, store.answers, intake, route),
        audits=make_audits(settings, redis, store, intake, route),
        batches=RunnerDeps(
            batches=BatchStore(redis),
            files=files,
            store=store,
            submission=submission,
            webhooks=webhooks,
            clock=clock,
            line_limit_bytes=settings.body_limit_bytes,
        ),
        vector_stores=_vector_stores(settings, stores, files, route, clock),
    )


def _vector_stores(
    settings: ApiSettings,
    stores: VectorStores,
    files: FileStore,
    publisher: Publisher,
    clock: Clock,
) -> vector_stores.VectorStoreDeps:
    return vector_stores.VectorStoreDeps(
        stores=stores,
        files=files,
        texts=ObjectStore(f"{settings.files_url.rstrip('/')}/{TEXTS}"),
        events=IndexingEvents(stores, publisher, clock),
        clock=clock,
    )


def _budgets(
    settings: ApiSettings,
    redis: SharedRedis,
    publisher: Publisher,
    webhooks: WebhookService,
    clock: Clock,
) -> JobBudgets:
    notices = BudgetNotices(publisher, webhooks.notify, clock, settings.currency)
    return JobBudgets(settings, Budgets(redis, settings.price), notices)


def _live(
    settings: ApiSettings,
    store: RedisToolStore,
    streams: StreamMultiplexer,
    ends: CompletionNotifier,
    waiting: QueueWaiting,
    clock: Clock,
) -> LiveDeps:
    """What every way of following a job uses."""
    return LiveDeps(
        store=store,
        live=streams,
        ends=ends,
        waiting=waiting,
        clock=clock,
        store_timeout_s=settings.store_timeout_s,
    )


def _intake(
    settings: ApiSettings, store: RedisToolStore, route: Route, clock: Clock, stores: VectorStores
) -> Intake:
    """What records jobs, with the plans, caches and tools that the operator configured."""
    return Intake(
        store,
        route,
        clock,
        settings.plans,
        settings.cache_rules,
        index_versions=stores.versions,
        fallbacks=settings.fallbacks,
        tools=settings.tools,
    )


def _submission(
    settings: ApiSettings, redis: SharedRedis, clock: Clock, intake: Intake, gate: LimitGate
) -> SubmitDeps:
    """What every way of submitting a job uses."""
    return SubmitDeps(
        catalog=Catalog(settings.cards),
        intake=intake,
        admission=gate,
        limiter=ConcurrencyLimiter(),
        clock=clock,
        conversations=Conversations(redis),
        webhook_allow=allow_list(settings.webhook_allow),
        submit_timeout_s=settings.submit_timeout_s,
        drops_unsupported_tools=settings.drop_unsupported_tools,
        approves_with_other_key=settings.approvals_by_another_key,
        sealing=Sealing(config=settings.tools, keys=settings.sealing_keys),
        tenant_models={
            tenant: own.models
            for tenant, own in settings.tenant_limits.items()
            if own.models is not None
        },
        moved_tenants=settings.moved_tenants,
    )


def _access(
    settings: ApiSettings, redis: SharedRedis, clock: Clock, gate: LimitGate, room: BodyRoom
) -> Access:
    """What stands before every route: who calls, how often, with how long a body."""
    authenticator = authenticator_for(settings, redis, clock)
    return Access(
        authenticator=authenticator,
        gate=gate,
        replay=Replay(redis),
        bodies=BodyReader(
            room, limit_bytes=settings.body_limit_bytes, timeout_s=settings.body_timeout_s
        ),
        streams=OpenStreams(settings.limit_open_streams, authenticator),
    )


def _webhooks(settings: ApiSettings, redis: SharedRedis) -> WebhookService:
    store = WebhookStore(redis)
    how = SenderSettings(
        timeout_s=settings.webhook_timeout_s,
        schedule_s=settings.webhook_schedule_s,
        allowed=allow_list(settings.webhook_allow),
    )
    return WebhookService(store, WebhookSender(store, how))
