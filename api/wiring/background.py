"""The loops that an api process runs beside its calls, and what hears of ended jobs.

Called by `api.__main__` and by tests. It contains no decisions.
"""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from api.batch import runner as batch_runner
from api.job.summaries import Summaries
from api.limit.cost import costs_of
from api.limit.usage import UsageTally
from api.settings import ApiSettings
from api.webhook.approval_notices import ApprovalNotices
from api.webhook.listener import WebhookListener
from api.wiring.parts import Parts
from eventing.broker.tool_calls import CallsLeft, ToolCalls, run_approvals
from eventing.job.tools.server import NO_TOOLS
from eventing.live import archiver
from eventing.live.ended import EndedConsumer, EndListener
from eventing.outbox import outbox
from eventing.outbox.publisher import OutboxPublisher
from eventing.outbox.start_watch import StartWatch
from eventing.store.objects.tool_results import tool_results
from eventing.telemetry.metric.job import JobMetrics
from eventing.telemetry.metric.live import LiveMetrics
from eventing.telemetry.metric.service import ServiceMeter

Loop = Callable[[], Awaitable[None]]


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
        "tool_results": lambda: archiver.run_result_sweep(
            tool_results(settings.files_url), parts.store
        ),
        "sweep": lambda: outbox.run(parts.store, route, settings.sweep_every_s, parts.followers),
        "deadlines": lambda: outbox.run_deadlines(parts.store),
        "approvals": lambda: run_approvals(ToolCalls(parts.store, route)),
        "webhooks": parts.webhooks.sender.run,
        "results": parts.results.run,
        "indexing": parts.vector_stores.events.run,
    }
    if settings.tools != NO_TOOLS:
        named["approval_notices"] = ApprovalNotices(
            redis=parts.redis,
            store=parts.store,
            publisher=route,
            notify=parts.webhooks.notify,
            clock=parts.clock,
        ).run
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
            partial(costs_of, prices=parts.settings.prices),
            parts.settings.price,
        ),
        parts.gate,
        parts.followers,
        WebhookListener(parts.webhooks.store, parts.webhooks.sender.wake),
        Summaries(parts.submission.conversations, parts.submission.intake, parts.store),
        parts.past_waking,
        CallsLeft(parts.route),
        *of_audits,
    )


def _tally(settings: ApiSettings) -> UsageTally:
    """What counts every ended job to its tenant's usage."""
    models = [card.name for card in settings.cards]
    return UsageTally(models, settings.prices, settings.usage_days)
