"""A small broker with the delivery rules of the ones people run, traps included, as switches.

Read in their sources: knative/eventing `SelectiveRetry` and `event_dispatcher.go` (MT channel
broker), knative-extensions/eventing-rabbitmq `pkg/dispatcher/dispatcher.go`, eventing-kafka-broker
`RecordDispatcherImpl`. It keeps nothing and is used by `test_broker_traps.py` only.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

import aiohttp

from eventing.cloudevent.event import Event, build_binary

_RETRIED: Final = frozenset({404, 408, 409, 429})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How one broker class treats an answer."""

    name: str
    is_4xx_delivered: bool = False
    """Trap 1 (RabbitMQ): a subscriber's 4xx counts as delivered: no retry, no dead letter."""
    acks_before_dead_letter: bool = False
    """Trap 1 (RabbitMQ): acks on the last failure, then publishes the dead letter: lost if its
    sink is away.
    """
    dead_letters_held_at_end: bool = False
    """Trap 4 (RabbitMQ): told to end, its dispatcher acks what it holds and dead-letters it, tried
    or not, with `knativeerrorcode` -1.
    """
    acks_failed_sends: bool = False
    """Trap 2 (RedisStreamSource): a failed send is acknowledged."""
    retry: int = 10
    backoff_s: float = 0.2
    """Trap 3 (Knative's default): 10 tries, exponential from 0.2 s, are over after 205 s."""

    def is_retried(self, status: int) -> bool:
        """SelectiveRetry, which MT and Kafka share."""
        if self.acks_failed_sends or (self.is_4xx_delivered and 400 <= status < 500):
            return False
        return status == 0 or status in _RETRIED or status >= 500


MT: Final = Rules(name="mt")
KAFKA: Final = Rules(name="kafka")
RABBITMQ: Final = Rules(
    name="rabbitmq",
    is_4xx_delivered=True,
    acks_before_dead_letter=True,
    dead_letters_held_at_end=True,
    retry=5,
)
REDIS_STREAM_SOURCE: Final = Rules(name="redis-stream-source", acks_failed_sends=True)


@dataclass(slots=True)
class TrapBroker:
    """Delivers one event at a time by its rules; waits are told to `passed` and last `pause_s`, so
    that 205 s need not be slept.
    """

    rules: Rules
    subscriber: str
    is_sink_up: bool = True
    passed: Callable[[float], None] = lambda _: None
    pause_s: float = 0.0
    dead_letters: list[Event] = field(default_factory=list)
    replies: int = 0
    lost: list[Event] = field(default_factory=list)
    _held: dict[asyncio.Task[list[int]], Event] = field(default_factory=dict)

    def hold(self, event: Event) -> None:
        """Deliver it in a task of its own, which `end` cuts off."""
        self._held[asyncio.ensure_future(self.deliver(event))] = event

    async def end(self) -> None:
        """What a consumer that is told to end does with what it holds."""
        cut = {task: event for task, event in self._held.items() if not task.done()}
        for task in cut:
            task.cancel()
        await asyncio.gather(*self._held, return_exceptions=True)
        self._held.clear()
        if self.rules.dead_letters_held_at_end:
            self.dead_letters += [_explained(event, self.subscriber, -1) for event in cut.values()]

    async def deliver(self, event: Event) -> list[int]:
        """The answers to every try, in order."""
        statuses: list[int] = []
        for tries in range(self.rules.retry + 1):
            statuses.append(await self._try(event))
            if not self.rules.is_retried(statuses[-1]):
                break
            self.passed(self.rules.backoff_s * 2**tries)
            await asyncio.sleep(self.pause_s)
        if not 200 <= statuses[-1] < 300:
            self._give_up(event, statuses[-1])
        return statuses

    def _give_up(self, event: Event, status: int) -> None:
        rules = self.rules
        if rules.acks_failed_sends or (rules.is_4xx_delivered and 400 <= status < 500):
            self.lost.append(event)
        elif self.is_sink_up:
            self.dead_letters.append(_explained(event, self.subscriber, status or -1))
        elif rules.acks_before_dead_letter:
            self.lost.append(event)

    async def _try(self, event: Event) -> int:
        headers, body = build_binary(event)
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.post(self.subscriber, data=body, headers=headers) as answer,
            ):
                await answer.read()
                self.replies += answer.status == 200 and "ce-id" in answer.headers
                return answer.status
        except (aiohttp.ClientError, OSError):
            return 0


def _explained(event: Event, subscriber: str, code: int) -> Event:
    why = {"knativeerrordest": subscriber, "knativeerrorcode": str(code)}
    return replace(event, extensions={**event.extensions, **why})
