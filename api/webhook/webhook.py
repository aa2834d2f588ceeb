"""Values of webhooks: endpoints, signing secrets, messages and deliveries. Pure.

Called by the store, the sender and the handlers of webhooks. Events have OpenAI's names and small bodies;
signatures are those of Standard Webhooks.
"""

import hashlib
import secrets
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

import orjson
from standardwebhooks import Webhook

from api.webhook.schedule import TryVerdict
from eventing.errors import InvalidJob
from eventing.job.call.rule import Schema
from eventing.job.job import Job, JobState
from eventing.store.conversation.summary import SUMMARY

PER_JOB: Final = "we_jobs"
"""Id of the endpoint whose secret signs the webhooks of jobs with a `webhook` of their own; it has no URL."""
JOB_WEBHOOK: Final = "torpor.webhook"
"""Metadata key of the URL that a job's webhook goes to."""
_RESPONSE: Final = "torpor.response"
BATCH: Final = "torpor.batch"
"""Metadata key of the batch that a job is a line of."""
WEBHOOK_URL: Final = "webhook.url"
"""The request field that is named when such a URL is refused."""
WEBHOOK_SCHEMA: Final[Schema] = {
    "type": ["object", "null"],
    "required": ["url"],
    "properties": {
        "url": {"type": "string", "minLength": 1, "description": "https, to a public host"}
    },
    "additionalProperties": False,
    "description": "where to send a webhook when the job has ended",
}
"""What `parse_webhook_options` judges."""
OVERLAP_S: Final = 24 * 3600
"""How long the old secret signs as well after a rotation."""


class EventType(StrEnum):
    """The event types, with OpenAI's names."""

    RESPONSE_COMPLETED = "response.completed"  #: the answer is complete
    RESPONSE_FAILED = "response.failed"  #: there is no answer
    RESPONSE_CANCELLED = "response.cancelled"  #: cancelled by its owner or an operator
    RESPONSE_INCOMPLETE = "response.incomplete"  #: the answer was cut off by a limit
    BATCH_COMPLETED = "batch.completed"  #: every line has ended
    BATCH_FAILED = "batch.failed"  #: the batch was not valid
    BATCH_CANCELLED = "batch.cancelled"  #: cancelled; finished lines are kept
    BATCH_EXPIRED = "batch.expired"  #: the completion window passed; finished lines are kept
    APPROVAL_REQUESTED = "approval.requested"  #: ours: a person is asked about a call of a tool
    APPROVAL_ANSWERED = "approval.answered"  #: ours: someone decided, or no one did in time
    BUDGET_SOFT_PASSED = "budget.soft.passed"  #: ours: a soft budget of the month is passed


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A signing secret, `whsec_` and base64; valid until `until_s` (0 for ever)."""

    text: str
    until_s: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A receiver of a tenant's events. The newest secret is first. `switched_off` is the reason why the endpoint is
    off, empty while it is on.
    """

    id: str
    tenant: str
    url: str
    name: str = ""
    event_types: tuple[str, ...] = ()
    secrets: tuple[Secret, ...] = ()
    created_s: int = 0
    updated_s: int = 0
    switched_off: str = ""

    def wants(self, event_type: str) -> bool:
        return not self.switched_off and bool(self.url) and event_type in self.event_types

    def signing(self, now_s: float) -> tuple[str, ...]:
        """The secrets that sign now: two during a rotation."""
        return tuple(s.text for s in self.secrets if not s.until_s or s.until_s > now_s)

    def rotated(self, secret: str, now_s: int, overlap_s: int) -> "Endpoint":
        """The endpoint with a new secret; the old one also signs for `overlap_s`."""
        old = (replace(self.secrets[0], until_s=now_s + overlap_s),) if overlap_s else ()
        return replace(self, secrets=(Secret(text=secret), *old), updated_s=now_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One event for a tenant's receivers. `key` identifies the end: the same end always gives the same delivery
    ids.
    """

    tenant: str
    type: str
    subject: str
    key: str
    created_s: int
    url: str = ""

    @property
    def event_id(self) -> str:
        return "evt_" + _digest(self.tenant, self.key)

    def body(self) -> bytes:
        """OpenAI's small body: the event type and the object's id; the receiver fetches the rest."""
        return orjson.dumps(
            {
                "id": self.event_id,
                "object": "event",
                "created_at": self.created_s,
                "type": self.type,
                "data": {"id": self.subject},
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """One try of a delivery, for the log."""

    at_ms: int
    status: int
    error: str
    duration_ms: int
    next_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookDelivery:
    """A message for one receiver. `id` is the `webhook-id`, the same on every try."""

    id: str
    tenant: str
    endpoint: str
    url: str
    type: str
    subject: str
    body: bytes
    created_ms: int = 0
    state: TryVerdict = TryVerdict.PENDING
    tries: int = 0
    log: tuple[Try, ...] = ()


def delivery_of(message: Message, endpoint_id: str, url: str) -> WebhookDelivery:
    """The delivery of `message` to an endpoint; the same two always give the same id."""
    return WebhookDelivery(
        id="wh_" + _digest(endpoint_id, url if endpoint_id == PER_JOB else "", message.event_id),
        tenant=message.tenant,
        endpoint=endpoint_id,
        url=url,
        type=message.type,
        subject=message.subject,
        body=message.body(),
    )


def message_of(job: Job) -> Message | None:
    """The message for an ended job; None for a line of a batch, whose batch has a message of its own, and for a
    summary, which no caller asked for. A redriven job that ends again gives a new message.
    """
    if BATCH in job.metadata or SUMMARY in job.metadata:
        return None
    is_cut = _RESPONSE in job.metadata and job.incomplete_reason is not None
    state = JobState.INCOMPLETE if is_cut else job.state
    return Message(
        tenant=job.tenant,
        type=f"response.{state}",
        subject=subject_of(job),
        key=f"{job.id}:{job.state}:{job.attempt}",
        created_s=job.finished_ms // 1000,
        url=job.metadata.get(JOB_WEBHOOK, ""),
    )


def subject_of(job: Job) -> str:
    """The id by which receivers know the job: the one of the call that submitted it."""
    return f"resp_{job.id.removeprefix('job_')}" if _RESPONSE in job.metadata else job.id


def parse_webhook_options(line: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, str]:
    """The webhook of a submit, for the job's metadata: from `webhook: {url}` beside url and body, or the header
    `Torpor-Webhook`. Raises `InvalidJob`. Its address is checked when the job is submitted.
    """
    webhook = line.get("webhook")
    if webhook is None:
        url = headers.get("torpor-webhook", "")
        return {JOB_WEBHOOK: url} if url else {}
    if not isinstance(webhook, Mapping) or not isinstance(webhook.get("url"), str):
        raise InvalidJob("webhook must be an object with a url", "webhook")
    if unknown := sorted(map(str, webhook.keys() - {"url"})):
        raise InvalidJob(f"webhook takes url only, not {unknown[0]:.40}", "webhook")
    if not webhook["url"]:
        raise InvalidJob("webhook.url must not be empty", WEBHOOK_URL)
    return {JOB_WEBHOOK: webhook["url"]}


def signed_headers(
    delivery_id: str, body: bytes, signing: tuple[str, ...], now_s: float
) -> Mapping[str, str]:
    """Headers of one try: id, time, and a signature for each secret."""
    at = datetime.fromtimestamp(int(now_s), UTC)
    signatures = [Webhook(secret).sign(delivery_id, at, body.decode()) for secret in signing]
    return {
        "content-type": "application/json",
        "user-agent": "Torpor-Webhooks/1",
        "webhook-id": delivery_id,
        "webhook-timestamp": str(int(now_s)),
        "webhook-signature": " ".join(signatures),
    }


def new_secret() -> str:
    """A new secret of 32 bytes (the standard asks for 24 to 64)."""
    return "whsec_" + b64encode(secrets.token_bytes(32)).decode()


def new_endpoint_id() -> str:
    return f"we_{secrets.token_hex(12)}"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:32]
