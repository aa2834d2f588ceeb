"""How a job is to be run, as its caller says in headers and in the job line.

Called by every way in: jobs, OpenAI's endpoints, batches. Pure.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson

from api.http.metadata import METADATA, check_metadata
from api.http.parameter import IDEMPOTENCY_KEY, REQUEST_ID, Parameter
from api.limit.service_tier import lane_of
from api.webhook.webhook import WEBHOOK_SCHEMA, parse_webhook_options
from eventing.cloudevent.request_id import KEPT, checked
from eventing.errors import InvalidJob
from eventing.job.call.rule import FieldRule, Schema, check, nullable, one_of
from eventing.job.job import NO_FALLBACK, RUNNABLE_URLS, Lane
from eventing.job.pipelines.document import MOST_STEPS
from eventing.job.plan import PlannedStep
from eventing.job.store import ConversationTurn
from eventing.job.tools.carried import Carried
from eventing.job.tools.request import OnApproval
from eventing.telemetry.span import followable

_LONGEST_S: Final = 30 * 24 * 3600
_PRIORITY: Final = one_of(*Lane)
_EXPIRES: Final = FieldRule(
    f"seconds, more than 0 and at most {_LONGEST_S}",
    lambda v: isinstance(v, int | float) and not isinstance(v, bool) and 0 < v <= _LONGEST_S,
    {"type": "number", "exclusiveMinimum": 0, "maximum": _LONGEST_S},
)
_FALLBACK: Final = one_of(NO_FALLBACK)
_SKIP_STEPS: Final = FieldRule(
    f"a list of at most {MOST_STEPS} names of steps",
    lambda v: isinstance(v, list) and len(v) <= MOST_STEPS and all(isinstance(n, str) for n in v),
    {"type": "array", "maxItems": MOST_STEPS, "items": {"type": "string"}},
)
JOB_SCHEMA: Final[Schema] = {
    "type": "object",
    "required": ["url", "body"],
    "properties": {
        "url": {"enum": list(RUNNABLE_URLS)},
        "body": {
            "description": "what `url` takes",
            "anyOf": [
                {"$ref": f"#/components/schemas/{name}"}
                for name in (
                    "ChatCompletionRequest",
                    "ChatBatchRequest",
                    "CompletionRequest",
                    "EmbeddingRequest",
                    "ModerationRequest",
                )
            ],
        },
        "custom_id": {"type": ["string", "null"], "description": "your name for the job"},
        "method": {"const": "POST"},
        "priority": nullable(_PRIORITY.schema),
        "expires_after": nullable(_EXPIRES.schema)
        | {"description": "deadline in seconds; a job that has not ended by then fails"},
        "metadata": METADATA,
        "skip_steps": nullable(_SKIP_STEPS.schema)
        | {"description": "steps of the model's pipeline to leave out, of those that may be"},
        "fallback": nullable(_FALLBACK.schema)
        | {"description": "`none`: no other model or provider than the one asked may answer"},
        "webhook": WEBHOOK_SCHEMA,
    },
}
"""A job line: what `parse_request` and `parse_submit_options` judge."""
SUBMIT_HEADERS: Final = (
    IDEMPOTENCY_KEY,
    REQUEST_ID,
    Parameter("Torpor-Expires-After", "As `expires_after`: whole seconds", "header"),
    Parameter("Torpor-Skip-Steps", "As `skip_steps`: names, separated by commas", "header"),
    Parameter("Torpor-Fallback", "As `fallback`: `none`", "header"),
    Parameter("Torpor-Webhook", "As `webhook.url`", "header"),
    Parameter(
        "Cache-Control",
        "`max-age=N`: an answer may be that many seconds old; `no-cache`: none is served; `no-store`: none is kept "
        "either; `only-if-cached`: 504 where none is kept",
        "header",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitOptions:
    """The options of a submit besides the request itself."""

    idempotency_key: str = ""
    lane: Lane = Lane.DEFAULT
    expires_after_s: float = 0.0
    traceparent: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    turn: ConversationTurn | None = None
    skip_steps: tuple[str, ...] = ()
    fallback: str = ""
    cache_control: str = ""
    own_steps: tuple[PlannedStep, ...] = ()
    on_approval: OnApproval = OnApproval.WAIT
    carried: Carried | None = None

    @property
    def sha(self) -> str:
        """A digest of the options. Trace and request id are not part of it."""
        metadata = {name: text for name, text in self.metadata.items() if name != KEPT}
        own = [step.to_dict() for step in self.own_steps]
        asked = [self.lane, self.expires_after_s, metadata, *self.skip_steps, *own]
        if self.carried is not None:
            asked.append({"carried": self.carried.taken})
        if self.fallback:
            asked.append({"fallback": self.fallback})
        return hashlib.sha256(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)).hexdigest()

    def with_metadata(self, own: Mapping[str, str]) -> "SubmitOptions":
        """The options with our metadata added to the caller's."""
        return replace(self, metadata={**self.metadata, **own})

    def in_tier(self, tier: Any, where: str) -> "SubmitOptions":
        """The options of a call that asks for OpenAI's `service_tier`. Raises `InvalidJob` naming `where`."""
        lane, mark = lane_of(tier, self.lane, where)
        return replace(self, lane=lane).with_metadata(mark)


def parse_submit_options(
    line: Mapping[str, Any], headers: Mapping[str, str], *, lane: Lane = Lane.DEFAULT
) -> SubmitOptions:
    """The options of a submit: from headers, and from the job line's `priority`, `expires_after` and `metadata`.

    Raises `InvalidJob` naming the field or header.
    """
    key = headers.get("idempotency-key", "")
    if len(key) > 255:
        raise InvalidJob("Idempotency-Key may have 255 characters", "Idempotency-Key")
    metadata = check_metadata(line.get("metadata"), "metadata") | parse_webhook_options(
        line, headers
    )
    if request_id := checked(headers.get("x-request-id", "")):
        metadata[KEPT] = request_id
    return SubmitOptions(
        idempotency_key=key,
        lane=_lane(line.get("priority"), lane),
        expires_after_s=_expires_after_s(line, headers),
        traceparent=followable(headers.get("traceparent", "")),
        metadata=metadata,
        skip_steps=skip_steps_of(line, headers),
        fallback=fallback_of(line, headers),
        cache_control=headers.get("cache-control", ""),
    )


def skip_steps_of(line: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[str, ...]:
    """Names of steps, sorted. Whether they may be left out, the plan says."""
    value = line.get("skip_steps")
    if value is None:
        named = headers.get("torpor-skip-steps", "").split(",")
        value = [name.strip() for name in named if name.strip()]
    check("", value, _SKIP_STEPS, "skip_steps")
    return tuple(sorted(set(value)))


def fallback_of(line: Mapping[str, Any], headers: Mapping[str, str]) -> str:
    """`none` where no other model or provider may answer; empty otherwise."""
    where, value = "fallback", line.get("fallback")
    if value is None and "torpor-fallback" in headers:
        where, value = "Torpor-Fallback", headers["torpor-fallback"]
    if value is None:
        return ""
    check("", value, _FALLBACK, where)
    return str(value)


def _lane(value: Any, default: Lane) -> Lane:
    if value is None:
        return default
    check("", value, _PRIORITY, "priority")
    return Lane(value)


def _expires_after_s(line: Mapping[str, Any], headers: Mapping[str, str]) -> float:
    where, value = "expires_after", line.get("expires_after")
    if value is None and "torpor-expires-after" in headers:
        where = "Torpor-Expires-After"
        text = headers["torpor-expires-after"]
        value = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else -1
    if value is None:
        return 0.0
    check("", value, _EXPIRES, where)
    return float(value)
