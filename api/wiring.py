"""Builds the parts of the api and gives each router its dependencies.

Called by `api.__main__` and by tests, which pass a broker of their own. It contains no decisions.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from fastapi import APIRouter

from api.audit.make import AuditParts, make_audits
from api.audit.store import AuditStore
from api.auth.rules import IN_REDIS, authenticator_for
from api.batch import runner as batch_runner
from api.batch.round import RunnerDeps
from api.batch.store import BatchStore
from api.console import overview, page
from api.http.idempotency import Replay
from api.http.shutdown import Shutdown
from api.job.catalog import Catalog
from api.job.cut_off import CutOffCalls
from api.job.live import LiveDeps
from api.job.result_feed import ResultFeed
from api.job.stored_completions import StoredCompletions
from api.job.submission import SubmitDeps
from api.job.summaries import Summaries
from api.job.waiting import QueueWaiting, WakingNotes
from api.limit.budget import Budgets
from api.limit.budget_notice import BudgetNotices
from api.limit.concurrency_limiter import ConcurrencyLimiter
from api.limit.cost import costs_of, prices_of
from api.limit.gate import LimitGate
from api.limit.job_budgets import JobBudgets
from api.limit.limit import limits_of
from api.limit.open_streams import OpenStreams
from api.limit.usage import UsageTally
from api.routes import (
    audits,
    batches,
    cache,
    conversations,
    dead_letters,
    events,
    files,
    health,
    jobs,
    keys,
    openai,
    organization,
    response_input,
    response_socket,
    responses,
    socket,
    stored_completions,
    tenant,
    usage,
    vector_store_files,
    vector_store_search,
    vector_stores,
    webhooks,
)
from api.routes.held import HeldDeps
from api.routes.route import Access
from api.settings import ApiSettings
from api.vector_store.indexing import IndexingEvents
from api.webhook.listener import WebhookListener
from api.webhook.sender import SenderSettings, WebhookSender
from api.webhook.service import WebhookService
from api.webhook.store import WebhookStore
from eventing.api_key import RedisKeys
from eventing.broker.intake import Intake
from eventing.broker.router import DirectPublisher, make_route
from eventing.clock import Clock, SystemClock
from eventing.cloudevent.publisher import Publisher
from eventing.live import archiver
from eventing.live.completion_notifier import CompletionNotifier
from eventing.live.ended import EndedConsumer, EndListener
from eventing.live.stream_multiplexer import StreamMultiplexer
from eventing.outbox import outbox
from eventing.outbox.followers import FollowerListener
from eventing.outbox.publisher import OutboxPublisher
from eventing.outbox.start_watch import StartWatch
from eventing.process.address import is_loopback
from eventing.process.body import BodyReader, BodyRoom
from eventing.process.egress import allow_list
from eventing.redis.multiplexed_connection import SharedRedis
from eventing.store.archive import Archive
from eventing.store.conversation.store import Conversations
from eventing.store.file_store import FileStore
from eventing.store.objects.object_store import ObjectStore
from eventing.store.redis_store import RedisStore
from eventing.store.vector_store.store import VectorStores
from eventing.store.vector_store.text_object import FOLDER as TEXTS
from eventing.telemetry.metric.job import JobMetrics
from eventing.telemetry.metric.ledger import Ledger
from eventing.telemetry.metric.live import LiveMetrics
from eventing.telemetry.metric.service import ServiceMeter
from eventing.telemetry.usage import UsageRecords

_RESULTS: Final = "results"
"""The folder of large results, beside those of tenants' files."""
Loop = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of one api process. Only this module uses it as a whole."""

    settings: ApiSettings
    redis: SharedRedis
    store: RedisStore
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
    store = RedisStore(redis, settings.lease, archive)
    route = make_route(settings, redis, publisher, max_unpublished=settings.max_unpublished)
    stores = VectorStores(redis)
    intake = Intake(
        store,
        route,
        clock,
        settings.plans,
        settings.cache_rules,
        index_versions=stores.versions,
        fallbacks=settings.fallbacks,
    )
    webhook_service = _webhooks(settings, redis)
    notices = BudgetNotices(route, webhook_service.notify, clock, settings.currency)
    budgets = JobBudgets(settings, Budgets(redis, settings.price), notices)
    gate = LimitGate(settings, redis, store, clock, budgets)
    live = LiveDeps(
        store=store,
        live=(streams := StreamMultiplexer(settings.redis_url.get_secret_value(), store, redis)),
        ends=(ends := CompletionNotifier(redis)),
        waiting=(waiting := QueueWaiting(redis, clock)),
        clock=clock,
        store_timeout_s=settings.store_timeout_s,
    )
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
        webhooks=webhook_service,
        results=ResultFeed(redis, store),
        past_waking=WakingNotes(redis, waiting, clock),
        access=_access(settings, redis, clock, gate, body_room),
        body_room=body_room,
        shutdown=Shutdown(),
        live=live,
        submission=submission,
        followers=FollowerListener(store, store.answers, intake, route),
        audits=make_audits(settings, redis, store, intake, route),
        batches=RunnerDeps(
            batches=BatchStore(redis),
            files=files,
            store=store,
            submission=submission,
            webhooks=webhook_service,
            clock=clock,
            line_limit_bytes=settings.body_limit_bytes,
        ),
        vector_stores=vector_stores.VectorStoreDeps(
            stores=stores,
            files=files,
            texts=ObjectStore(f"{settings.files_url.rstrip('/')}/{TEXTS}"),
            events=IndexingEvents(stores, route, clock),
            clock=clock,
        ),
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
        tenant_models={
            tenant: own.models
            for tenant, own in settings.tenant_limits.items()
            if own.models is not None
        },
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


def routers(parts: Parts) -> list[APIRouter]:
    """Every route with its dependencies."""
    settings = parts.settings
    return [
        *_job_routers(parts),
        *_call_routers(parts),
        health.router(
            parts.access.authenticator,
            parts.store,
            store_timeout_s=settings.store_timeout_s,
            is_metrics_open=settings.metrics_open,
            is_local=is_loopback(settings.host),
        ),
        overview.routes.router(
            parts.access,
            overview.RedisOverview(
                parts.redis, [card.name for card in settings.models], parts.clock
            ),
        ),
        page.router,
    ]


def _job_routers(parts: Parts) -> list[APIRouter]:
    """Routes of jobs: submit, list, follow, dead letters, usage."""
    settings, access, submission = parts.settings, parts.access, parts.submission
    job_deps = jobs.JobDeps(
        store=parts.store,
        submission=submission,
        live=parts.live,
        deliveries=parts.webhooks.store,
        past_waking=parts.past_waking,
        ledger=parts.ledger,
        price=settings.price,
        token_prices=settings.token_prices,
        clock=parts.clock,
        shutdown=parts.shutdown,
        keep_alive_s=settings.keep_alive_s,
        max_wait_s=settings.max_wait_s,
    )
    dead_letter_deps = dead_letters.DeadLetterDeps(
        store=parts.store,
        catalog=submission.catalog,
        intake=submission.intake,
        admission=submission.admission,
    )
    event_deps = events.EventDeps(
        submission=submission,
        store=parts.store,
        catalog=submission.catalog,
        results=parts.results,
        events=access.bodies.limited_to(settings.event_limit_bytes),
        shutdown=parts.shutdown,
        keep_alive_s=settings.keep_alive_s,
    )
    job_socket = socket.SocketDeps(
        authenticator=access.authenticator,
        streams=access.streams,
        store=parts.store,
        live=parts.live,
    )
    return [
        jobs.routes.router(access, job_deps),
        socket.router(job_socket),
        dead_letters.routes.router(access, dead_letter_deps),
        events.routes.router(access, event_deps),
        events.handshake_router(settings.event_origins),
        usage.routes.router(
            access,
            usage.UsageDeps(
                ledger=parts.ledger,
                price=settings.price,
                cpu_price_per_hour=settings.cpu_price_per_hour,
                audits=parts.audits.figures if parts.audits else None,
            ),
        ),
        *_tenant_routers(parts),
    ]


def _tenant_routers(parts: Parts) -> list[APIRouter]:
    """Routes of a tenant's own view: limits, usage, keys."""
    settings, access = parts.settings, parts.access
    tenant_deps = tenant.TenantDeps(
        limits=parts.gate,
        budgets=parts.budgets,
        ledger=parts.ledger,
        price=settings.price,
        file_bytes_of=parts.batches.files.used_bytes,
        file_limit_of=lambda name: limits_of(settings, name).file_bytes,
    )
    usage_deps = organization.OrganizationDeps(
        records=UsageRecords(parts.redis),
        currency=settings.currency,
        price=settings.price,
    )
    in_redis = RedisKeys(parts.redis) if settings.keys_source == IN_REDIS else None
    return [
        tenant.routes.router(access, tenant_deps),
        organization.routes.router(access, usage_deps),
        keys.routes.router(access, keys.KeyDeps(keys=in_redis, clock=parts.clock)),
        audits.routes.router(
            access, audits.AuditRouteDeps(audits=AuditStore(parts.redis, settings.retention_s))
        ),
    ]


def _call_routers(parts: Parts) -> list[APIRouter]:
    """Routes of OpenAI's API."""
    settings, access, submission = parts.settings, parts.access, parts.submission
    held = HeldDeps(
        store=parts.store,
        live=parts.live,
        cut_off=CutOffCalls(parts.redis),
        shutdown=parts.shutdown,
        keep_alive_s=settings.keep_alive_s,
        sync_timeout_s=settings.sync_timeout_s,
    )
    completions = StoredCompletions(parts.redis, parts.store)
    openai_deps = openai.OpenAIDeps(
        submission=submission, held=held, catalog=submission.catalog, completions=completions
    )
    stored_deps = stored_completions.StoredCompletionDeps(
        completions=completions, store=parts.store
    )
    response_deps = responses.ResponseDeps(submission=submission, held=held)
    response_socket_deps = response_socket.ResponseSocketDeps(
        access=access,
        responses=response_deps,
        call_bytes=settings.body_limit_bytes,
        longest_s=settings.response_socket_s,
    )
    file_deps = files.FileDeps(
        files=parts.batches.files,
        uploads=access.bodies.limited_to(settings.file_limit_bytes),
        largest_bytes=settings.file_limit_bytes,
        longest_line=settings.body_limit_bytes,
        quota_of=lambda tenant: limits_of(settings, tenant).file_bytes,
        vector_stores=parts.vector_stores.stores,
        events=parts.vector_stores.events,
    )
    batch_deps = batches.BatchDeps(
        batches=parts.batches.batches, files=parts.batches.files, clock=parts.clock
    )
    conversation_deps = conversations.ConversationDeps(conversations=submission.conversations)
    search_deps = vector_store_search.SearchDeps(
        stores=parts.vector_stores.stores, submission=submission, held=held, clock=parts.clock
    )
    webhook_deps = webhooks.WebhookDeps(webhooks=parts.webhooks, allowed=submission.webhook_allow)
    return [
        openai.routes.router(access, openai_deps),
        stored_completions.routes.router(access, stored_deps),
        response_input.routes.router(access, response_deps),
        responses.routes.router(access, response_deps),
        response_socket.router(response_socket_deps),
        conversations.routes.router(access, conversation_deps),
        files.routes.router(access, file_deps),
        batches.routes.router(access, batch_deps),
        vector_stores.routes.router(access, parts.vector_stores),
        vector_store_files.routes.router(access, parts.vector_stores),
        vector_store_search.routes.router(access, search_deps),
        webhooks.routes.router(access, webhook_deps),
        cache.routes.router(access, cache.CacheDeps(parts.store.answers, submission.catalog)),
    ]


def loops(parts: Parts) -> Mapping[str, Loop]:
    """The background loops, by name."""
    settings, route = parts.settings, parts.route
    models = [card.name for card in settings.models]
    named: dict[str, Loop] = {
        "streams": parts.streams.run,
        "ends": parts.ends.run,
        "batches": lambda: batch_runner.run(parts.batches),
        "files": lambda: batch_runner.sweep_files(parts.batches.files),
        "metrics": LiveMetrics(parts.redis, models, settings.price).run,
        "service": ServiceMeter(parts.redis).run,
        "ended": EndedConsumer(
            parts.redis, parts.store, _listeners(parts), tally=_tally(settings)
        ).run,
        "archive": lambda: archiver.run(parts.archive),
        "objects": lambda: archiver.run_sweep(parts.archive),
        "sweep": lambda: outbox.run(parts.store, route, settings.sweep_every_s, parts.followers),
        "deadlines": lambda: outbox.run_deadlines(parts.store),
        "webhooks": parts.webhooks.sender.run,
        "results": parts.results.run,
        "indexing": parts.vector_stores.events.run,
    }
    if parts.audits is not None:
        named |= parts.audits.loops
    if settings.fallbacks:
        watch = StartWatch(
            parts.redis,
            parts.store,
            route,
            settings.fallbacks,
            lease=settings.lease,
            cold_start_s=settings.cold_start_seconds,
        )
        named["starts"] = watch.run
    if isinstance(route, OutboxPublisher):
        named["publish"] = lambda: route.run(parts.store)
    return named


def _listeners(parts: Parts) -> tuple[EndListener, ...]:
    """The listeners for ended jobs."""
    of_audits = () if parts.audits is None else (parts.audits.listener,)
    return (
        JobMetrics(
            [card.name for card in parts.settings.cards],
            parts.ledger,
            partial(costs_of, prices=prices_of(parts.settings)),
            parts.settings.price,
        ),
        parts.gate,
        parts.followers,
        WebhookListener(parts.webhooks.store, parts.webhooks.sender.wake),
        Summaries(parts.submission.conversations, parts.submission.intake, parts.store),
        parts.past_waking,
        *of_audits,
    )


def _tally(settings: ApiSettings) -> UsageTally:
    """What counts every ended job to its tenant's usage."""
    models = [card.name for card in settings.cards]
    return UsageTally(models, prices_of(settings), settings.usage_days)


def _webhooks(settings: ApiSettings, redis: SharedRedis) -> WebhookService:
    store = WebhookStore(redis)
    how = SenderSettings(
        timeout_s=settings.webhook_timeout_s,
        schedule_s=settings.webhook_schedule_s,
        allowed=allow_list(settings.webhook_allow),
    )
    return WebhookService(store, WebhookSender(store, how))
