"""Gives each router its dependencies.

Called by `api.__main__` and by tests. It contains no decisions.
"""

from fastapi import APIRouter

from api.audit.store import AuditStore
from api.auth.rules import IN_REDIS
from api.console import overview, page
from api.job.cut_off import CutOffCalls
from api.job.stored_completions import StoredCompletions
from api.limit.limit import limits_of
from api.routes import (
    approvals,
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
    models,
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
from api.wiring.parts import Parts
from eventing.api_key import RedisKeys
from eventing.broker.tool_calls import ToolCalls
from eventing.process.address import is_loopback
from eventing.store.steps.redis_tool_lists import RedisToolLists
from eventing.telemetry.usage import UsageRecords


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
        _usage_router(parts),
        _tool_router(parts),
        *_tenant_routers(parts),
    ]


def _usage_router(parts: Parts) -> APIRouter:
    """Routes of the operator's view of GPU time and money."""
    deps = usage.UsageDeps(
        ledger=parts.ledger,
        price=parts.settings.price,
        cpu_price_per_hour=parts.settings.cpu_price_per_hour,
        audits=parts.audits.figures if parts.audits else None,
    )
    return usage.routes.router(parts.access, deps)


def _tool_router(parts: Parts) -> APIRouter:
    """Routes of tool calls: decisions, late results, servers."""
    deps = approvals.ApprovalDeps(
        calls=ToolCalls(parts.store, parts.route),
        lists=RedisToolLists(parts.redis),
        config=parts.settings.tools,
        by_another_key=parts.settings.approvals_by_another_key,
    )
    return approvals.routes.router(parts.access, deps)


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
    conversation_deps = conversations.ConversationDeps(conversations=submission.conversations)
    webhook_deps = webhooks.WebhookDeps(webhooks=parts.webhooks, allowed=submission.webhook_allow)
    return [
        openai.routes.router(access, openai_deps),
        models.routes.router(access, models.ModelDeps(catalog=submission.catalog)),
        stored_completions.routes.router(access, stored_deps),
        response_input.routes.router(access, response_deps),
        responses.routes.router(access, response_deps),
        response_socket.router(response_socket_deps),
        conversations.routes.router(access, conversation_deps),
        *_file_routers(parts, held),
        webhooks.routes.router(access, webhook_deps),
        cache.routes.router(access, cache.CacheDeps(parts.store.answers, submission.catalog)),
    ]


def _file_routers(parts: Parts, held: HeldDeps) -> list[APIRouter]:
    """Routes of files, of batches, and of vector stores over files."""
    settings, access = parts.settings, parts.access
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
        batches=parts.batches.batches,
        files=parts.batches.files,
        clock=parts.clock,
        moved_tenants=settings.moved_tenants,
    )
    search_deps = vector_store_search.SearchDeps(
        stores=parts.vector_stores.stores,
        submission=parts.submission,
        held=held,
        clock=parts.clock,
    )
    return [
        files.routes.router(access, file_deps),
        batches.routes.router(access, batch_deps),
        vector_stores.routes.router(access, parts.vector_stores),
        vector_store_files.routes.router(access, parts.vector_stores),
        vector_store_search.routes.router(access, search_deps),
    ]
