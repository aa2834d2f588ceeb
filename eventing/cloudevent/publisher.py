"""Publishes events to a broker and confirms that it stored them.

Called by the api (submit, cancel) and the outbox sweep. The broker is any ingress that keeps the Knative data-plane
contract: ours, or a Knative Broker. Nothing is retried here: an event that was not confirmed stays in the outbox.
"""

import ssl
from io import BytesIO
from pathlib import Path
from typing import Final, Protocol

import aiohttp

from eventing.cloudevent.event import Event, build_binary
from eventing.errors import BrokerUnavailable, EventRefused
from eventing.process.dependency import Dependency
from eventing.process.setting import token_file as token_in

_LARGE_BYTES: Final = 2**20
_REFUSED: Final = frozenset({400, 413, 415, 422, 431})
"""Statuses that concern the event itself, so that a retry would fail again. 401 and 403 concern our credentials."""


class Publisher(Protocol):
    """A destination of events."""

    async def publish(self, event: Event) -> None:
        """Return once the broker has stored the event. Raises `EventRefused` when a retry can never succeed, and
        `BrokerUnavailable` in every other case.
        """

    async def close(self) -> None:
        """Close all connections."""


def payload(body: bytes) -> bytes | BytesIO:
    """The body for aiohttp: a large one in pieces, so that sending does not block the event loop."""
    return BytesIO(body) if len(body) > _LARGE_BYTES else body


class HttpPublisher:
    """A `Publisher` over HTTP in binary mode, with one session that keeps its connections.

    `token_file` takes precedence over `token`: Kubernetes writes a new token into it before the old one expires.
    With `ca_file` an https broker is checked against those authorities only.
    """

    def __init__(
        self,
        broker_url: str,
        *,
        timeout_s: float = 1.5,
        token: str = "",
        token_file: Path | None = None,
        ca_file: Path | None = None,
    ) -> None:
        self._url = broker_url
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._token = token
        self._token_file = token_file
        self._ca_file = ca_file
        self._session: aiohttp.ClientSession | None = None
        self._broker = Dependency("broker")

    async def publish(self, event: Event) -> None:
        headers, body = build_binary(event)
        try:
            async with self._open().post(
                self._url, data=payload(body), headers=headers | self._authorization()
            ) as answer:
                status = answer.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._away("the broker does not answer") from error
        except ValueError as error:  # our token: an event's headers can always be sent
            raise self._away(f"the broker cannot be asked: {error}") from error
        if status in _REFUSED:
            raise EventRefused(f"the broker refused the event with {status}")
        if not 200 <= status < 300:
            raise self._away(f"the broker answered {status}")
        if self._broker.is_away:
            self._broker.answered()

    def _away(self, why: str) -> BrokerUnavailable:
        self._broker.failed(why)
        return BrokerUnavailable(why)

    def _authorization(self) -> dict[str, str]:
        """Read for each event: a projected token is a small file in memory, and it is rotated."""
        token = token_in(self._token_file) if self._token_file else self._token
        return {"authorization": f"Bearer {token}"} if token else {}

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        """Open the session on first use, inside the running loop."""
        if self._session is None:
            trust = ssl.create_default_context(cafile=self._ca_file) if self._ca_file else True
            self._session = aiohttp.ClientSession(
                timeout=self._timeout, connector=aiohttp.TCPConnector(limit=64, ssl=trust)
            )
        return self._session
