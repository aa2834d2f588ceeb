"""A receiver of webhooks that is often down, and judges each signature as its owner would."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import orjson
from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

from tests.faults.history import History, Kind
from tests.integration.api.receiver import Receiver, Sent, receiving


class Hooks:
    """What arrived, in the history; `secrets` are those that its owner knows, each of which must verify."""

    def __init__(self, history: History, receiver: Receiver, fails_each: int = 3) -> None:
        self._history = history
        self._receiver = receiver
        self._tries = count(1)
        self._fails_each = fails_each
        self.secrets: list[str] = []
        self.told: set[str] = set()
        receiver.answer = self._answer

    @property
    def url(self) -> str:
        return self._receiver.url

    def is_last_signed_with(self, secret: str) -> bool:
        return verifies(secret, self._receiver.sent[-1])

    def _answer(self, number: int) -> web.Response:
        if next(self._tries) % self._fails_each == 0:
            return web.Response(status=500)
        sent = self._receiver.sent[number - 1]
        event: dict[str, Any] = orjson.loads(sent.body)
        job_id = str(event["data"]["id"]).replace("resp_", "job_", 1)
        self.told.add(job_id)
        self._history.add(
            Kind.SEEN,
            "webhook",
            job_id=job_id,
            webhook_id=sent.headers["webhook-id"],
            is_valid=all(verifies(secret, sent) for secret in self.secrets),
        )
        return web.Response(status=204)


def verifies(secret: str, sent: Sent) -> bool:
    """True when a receiver that knows this secret takes it."""
    try:
        Webhook(secret).verify(sent.body, sent.headers)
    except WebhookVerificationError:
        return False
    return True


@asynccontextmanager
async def hooks_of(history: History) -> AsyncIterator[Hooks]:
    async with receiving() as receiver:
        yield Hooks(history, receiver)
