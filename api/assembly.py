"""Gives a front its doorkeepers and messengers: webhooks, credentials, limits, console.

Called by `api.__main__` with the parts that are there already. Must not know any route.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from redis.asyncio import Redis

from api.auth.rules import credential_authenticator
from api.console.overview import RedisOverview
from api.front import Front
from api.job.idempotency import Replay
from api.job.result_feed import ResultFeed
from api.job.waiting import WakingNotes
from api.limit.gate import LimitGate
from api.webhook.listener import WebhookListener
from api.webhook.service import build_webhooks

Loop = Callable[[], Awaitable[None]]


def furnish(front: Front, redis: Redis) -> tuple[Front, Mapping[str, Loop]]:
    """The front, complete, and the loops that must run for it, by name."""
    desk = build_webhooks(front.settings, redis)
    gate = LimitGate(front.settings, redis, front.store, front.clock)
    results = ResultFeed(redis, front.store)
    webhooks = WebhookListener(desk.store, desk.sender.wake)
    past_waking = WakingNotes(redis, front.waiting, front.clock)
    listeners = (*front.listeners, gate, webhooks, results, past_waking)
    complete = replace(
        front,
        authenticator=credential_authenticator(front.settings, redis, front.clock),
        overview=RedisOverview(redis, [card.name for card in front.settings.models], front.clock),
        admission=gate,
        gate=gate,
        webhooks=desk,
        results=results,
        past_waking=past_waking,
        replay=Replay(redis),
        listeners=listeners,
    )
    return complete, {"webhooks": desk.sender.run, "results": results.run}
