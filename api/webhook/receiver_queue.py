"""Limits concurrent tries for each tenant and receiver, so that a hanging receiver does not delay the others.

Called by the sender. In memory only: the deliveries themselves are in the store.
"""

from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Final

from api.webhook.webhook import WebhookDelivery

PER_RECEIVER: Final = 4
PER_TENANT: Final = 32
WAITING_PER_TENANT: Final = 512
"""Claimed deliveries of a tenant that may wait here; the rest stays in the store."""

Lane = tuple[str, str]
"""A tenant and a host, which share a limit of concurrent tries."""


@dataclass(slots=True)
class _Tenant:
    running: int = 0
    waiting: int = 0


@dataclass(slots=True)
class _Receiver:
    running: int = 0
    not_before_s: float = 0.0
    waiting: deque[tuple[WebhookDelivery, float]] = field(default_factory=deque)


class ReceiverQueues:
    """Claimed deliveries by receiver. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._receivers: defaultdict[Lane, _Receiver] = defaultdict(_Receiver)
        self._tenants: defaultdict[str, _Tenant] = defaultdict(_Tenant)

    def join(self, lane: Lane, delivery: WebhookDelivery, good_until_s: float) -> bool:
        """Queue a delivery that is claimed until `good_until_s`; False when the tenant has too many."""
        tenant = self._tenants[lane[0]]
        if tenant.waiting >= WAITING_PER_TENANT:
            return False
        tenant.waiting += 1
        self._receivers[lane].waiting.append((delivery, good_until_s))
        return True

    def start(self, now_s: float) -> list[tuple[Lane, WebhookDelivery]]:
        """The deliveries that may be tried now. Those whose claim has lapsed are dropped; the store makes them due
        again.
        """
        started: list[tuple[Lane, WebhookDelivery]] = []
        for lane, receiver in list(self._receivers.items()):
            tenant = self._tenants[lane[0]]
            while receiver.waiting and self._is_free(receiver, tenant, now_s):
                delivery, good_until_s = receiver.waiting.popleft()
                tenant.waiting -= 1
                if now_s < good_until_s:
                    receiver.running += 1
                    tenant.running += 1
                    started.append((lane, delivery))
            self._forget(lane, now_s)
        return started

    def done(self, lane: Lane, now_s: float, pause_s: float = 0.0) -> None:
        """A try has ended; no further try to this receiver for `pause_s`."""
        receiver = self._receivers[lane]
        receiver.running -= 1
        receiver.not_before_s = max(receiver.not_before_s, now_s + pause_s)
        self._tenants[lane[0]].running -= 1
        self._forget(lane, now_s)

    def pause_left_s(self, lane: Lane, now_s: float) -> float:
        """The rest of the pause that the receiver asked for."""
        receiver = self._receivers.get(lane)
        return max(0.0, receiver.not_before_s - now_s) if receiver else 0.0

    @staticmethod
    def _is_free(receiver: _Receiver, tenant: _Tenant, now_s: float) -> bool:
        return (
            receiver.running < PER_RECEIVER
            and tenant.running < PER_TENANT
            and receiver.not_before_s <= now_s
        )

    def _forget(self, lane: Lane, now_s: float) -> None:
        receiver = self._receivers[lane]
        if not receiver.running and not receiver.waiting and receiver.not_before_s <= now_s:
            del self._receivers[lane]
        tenant = self._tenants[lane[0]]
        if not tenant.running and not tenant.waiting:
            del self._tenants[lane[0]]
