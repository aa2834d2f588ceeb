"""Knative Triggers: parsing, validation and filter matching.

Called by the broker and the api at start, and for every event. Pure, once the file is read. Field names and
meanings are those of `eventing.knative.dev/v1` Trigger; a field that is not supported is refused by name.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import TypeAdapter, ValidationError

from eventing.broker.delivery.decision import BackoffPolicy, DeliverySpec
from eventing.cloudevent.event import Event
from eventing.errors import BadRequest
from eventing.process.setting import http_url

PARALLELISM: Final = "torpor.dev/parallelism"
RETRY_SPAN: Final = "torpor.dev/retry-span"
"""Annotation of a trigger for events that another broker gave up: how long that broker's retries last in all."""
_ATTRIBUTE: Final = re.compile(r"[a-z][a-z0-9]*\Z")
_DURATION: Final = TypeAdapter(timedelta)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """A subscription; an event goes into its queue when all `filters` match.

    With `retry_span_s` set, its events are those that another broker gave up after at most that many seconds.
    """

    name: str
    subscriber: str
    delivery: DeliverySpec
    filters: tuple[Mapping[str, Any], ...] = field(default=())
    parallelism: int = 1
    retry_span_s: float = 0.0

    def matches(self, event: Event) -> bool:
        return all(matches(expression, event) for expression in self.filters)

    def may_want(self, type_: str) -> bool:
        """False when the filters name another type."""
        return all(e.get("exact", {}).get("type", type_) == type_ for e in self.filters)


def matches(expression: Mapping[str, Any], event: Event) -> bool:
    """True when the CloudEvents Subscriptions filter `expression` holds for the event."""
    return all(_DIALECT[dialect](operand, event) for dialect, operand in expression.items())


def load_triggers(path: Path) -> list[Trigger]:
    """The triggers in a YAML file. Raises `BadRequest` naming the invalid field, or that the file cannot be read."""
    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise BadRequest(
            f"cannot read triggers from {path}: {' '.join(str(error).split())}", "path"
        ) from error
    try:
        return [parse_trigger(document) for document in documents if document]
    except (AttributeError, TypeError) as error:  # a text or a list where an object is wanted
        raise BadRequest(f"{path} holds something else than Triggers", "spec") from error


def parse_trigger(manifest: Mapping[str, Any]) -> Trigger:
    """The trigger in a Knative Trigger manifest. Raises `BadRequest` naming the field."""
    name = str(manifest.get("metadata", {}).get("name", ""))
    spec = manifest.get("spec", {})
    subscriber = spec.get("subscriber", {}).get("uri", "")
    if not name or not subscriber:
        raise BadRequest(
            "a trigger needs metadata.name and spec.subscriber.uri", "spec.subscriber.uri"
        )
    _check_address(subscriber, "spec.subscriber.uri")
    annotations = manifest.get("metadata", {}).get("annotations", {})
    return Trigger(
        name=name,
        subscriber=subscriber,
        delivery=parse_delivery(spec.get("delivery", {})),
        filters=_filters(spec),
        parallelism=_whole(
            "metadata.annotations." + PARALLELISM, annotations.get(PARALLELISM, 1), 1
        ),
        retry_span_s=_seconds(
            "metadata.annotations." + RETRY_SPAN, annotations.get(RETRY_SPAN, "PT0S")
        ),
    )


def parse_delivery(spec: Mapping[str, Any]) -> DeliverySpec:
    """The `delivery` of a Trigger. Durations are ISO 8601, as in Knative."""
    known = {"retry", "backoffPolicy", "backoffDelay", "timeout", "deadLetterSink", "retryAfterMax"}
    for name in spec.keys() - known:
        raise BadRequest(f"spec.delivery.{name} is not supported", f"spec.delivery.{name}")
    policy = spec.get("backoffPolicy", BackoffPolicy.EXPONENTIAL)
    if policy not in list(BackoffPolicy):
        raise BadRequest(
            "spec.delivery.backoffPolicy must be linear or exponential", "backoffPolicy"
        )
    return DeliverySpec(
        retry=_whole("spec.delivery.retry", spec.get("retry", 0), 0),
        backoff_policy=BackoffPolicy(policy),
        backoff_delay_s=_seconds("spec.delivery.backoffDelay", spec.get("backoffDelay", "PT0.2S")),
        timeout_s=_seconds("spec.delivery.timeout", spec.get("timeout", "PT30S"), least_s=0.001),
        dead_letter_sink=_sink(spec.get("deadLetterSink")),
        retry_after_max_s=_seconds(
            "spec.delivery.retryAfterMax", spec.get("retryAfterMax", "PT60S")
        ),
    )


def _filters(spec: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """`filters` take precedence over `filter` when both are set, as in Knative."""
    listed = spec.get("filters")
    if not listed:
        attributes = spec.get("filter", {}).get("attributes", {})
        listed = [{"exact": attributes}] if attributes else []
    for expression in listed:
        _check(expression)
    return tuple(listed)


def _check(expression: Any) -> None:
    """Raise for a filter that Knative's webhook refuses, or whose dialect is not supported."""
    if not isinstance(expression, Mapping) or len(expression) != 1:
        raise BadRequest("a filter must be an object with one dialect", "spec.filters")
    ((dialect, operand),) = expression.items()
    if dialect not in _DIALECT:
        raise BadRequest(f"filter dialect {dialect!r} is not supported", "spec.filters")
    for inner in _nested(dialect, operand):
        _check(inner)
    if dialect in _ON_ATTRIBUTES:
        _check_attributes(dialect, operand)


def _nested(dialect: str, operand: Any) -> Sequence[Any]:
    match dialect:
        case "all" | "any":
            if not isinstance(operand, list) or not operand:
                raise BadRequest(f"filter {dialect} wants a list of filters", "spec.filters")
            return operand
        case "not":
            return [operand]
        case _:
            return []


def _check_attributes(dialect: str, operand: Any) -> None:
    is_text = isinstance(operand, Mapping) and all(isinstance(v, str) for v in operand.values())
    if not operand or not is_text:
        raise BadRequest(f"filter {dialect} wants attribute names and texts", "spec.filters")
    for name, value in operand.items():
        if not isinstance(name, str) or not _ATTRIBUTE.match(name):
            raise BadRequest(f"{name!r:.40} is no attribute: a-z, then a-z and 0-9", "spec.filters")
        if not value and dialect != "exact":
            raise BadRequest(f"filter {dialect} of {name} wants a text", "spec.filters")


def _sink(destination: Any) -> str:
    """The address of a `deadLetterSink`. A reference to an object would need a cluster to resolve it."""
    if destination is None:
        return ""
    if not isinstance(destination, Mapping) or not isinstance(destination.get("uri"), str):
        raise BadRequest(
            "spec.delivery.deadLetterSink must have a uri", "spec.delivery.deadLetterSink.uri"
        )
    _check_address(destination["uri"], "spec.delivery.deadLetterSink.uri")
    return str(destination["uri"])


def _check_address(uri: Any, where: str) -> None:
    """Raise for an address that no event could be posted to."""
    try:
        http_url(str(uri))
    except ValueError as error:
        raise BadRequest(f"{where}: {error}", where) from error


def _each(operand: Mapping[str, str], event: Event, test: Callable[[str, str], bool]) -> bool:
    """True when every named attribute is set and passes. An empty operand matches any value, as in Knative's
    `exact`.
    """
    for name, wanted in operand.items():
        value = event.attribute(name)
        if value is None or not test(value, wanted):
            return False
    return True


_ON_ATTRIBUTES: Final = ("exact", "prefix", "suffix")
_DIALECT: Final[Mapping[str, Callable[[Any, Event], bool]]] = {
    "exact": lambda operand, event: _each(operand, event, lambda v, w: w in ("", v)),
    "prefix": lambda operand, event: _each(operand, event, str.startswith),
    "suffix": lambda operand, event: _each(operand, event, str.endswith),
    "all": lambda operand, event: all(matches(inner, event) for inner in operand),
    "any": lambda operand, event: any(matches(inner, event) for inner in operand),
    "not": lambda operand, event: not matches(operand, event),
}


def _seconds(where: str, text: Any, *, least_s: float = 0.0) -> float:
    try:
        seconds = _DURATION.validate_python(text).total_seconds()
    except ValidationError as error:
        raise BadRequest(f"{where} must be an ISO 8601 duration such as PT30S", where) from error
    if seconds < least_s:
        raise BadRequest(f"{where} must be at least {least_s:g} s", where)
    return seconds


def _whole(where: str, value: Any, least: int) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError) as error:
        raise BadRequest(f"{where} must be a whole number", where) from error
    if number < least:
        raise BadRequest(f"{where} must be at least {least}", where)
    return number
