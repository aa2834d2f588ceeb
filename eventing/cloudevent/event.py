"""CloudEvents 1.0 over HTTP: parsing, building and the `Event` value.

Called by the broker's ingress, the pump, the predictor's event route and the publisher. Structured mode is parsed by
the CloudEvents SDK. Binary mode, in which every job's events travel, is implemented here because it is four to seven
times as fast (bench/README.md); so is what the SDK leaves to its user: header percent-encoding (HTTP binding
3.1.3.2), content types with parameters, the refusal of batches, and errors that name the field. Must not know jobs,
Redis or any route.
"""

import base64
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote, unquote_to_bytes

import orjson
from cloudevents.exceptions import GenericException
from cloudevents.http import from_http

from eventing.errors import NotACloudEvent, UnsupportedMode
from eventing.telemetry.span import followable

STRUCTURED: Final = "application/cloudevents+json; charset=UTF-8"
_REQUIRED: Final = ("specversion", "id", "source", "type")
_KNOWN: Final = frozenset({*_REQUIRED, "subject", "time", "datacontenttype", "dataschema"})
_NOT_FROM_HEADERS: Final = frozenset({"ce-datacontenttype", "ce-data"})
"""`datacontenttype` travels as Content-Type only (HTTP binding 3.1.1); `data` is not an attribute."""
_EXTENSION_NAME: Final = re.compile(r"[a-z0-9]+\Z")
_FORBIDDEN: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
"""Characters forbidden in attributes (type system: control characters, surrogates, noncharacters)."""
_NEVER_EMPTY: Final = ("subject", "time", "datacontenttype", "dataschema")
_TIME: Final = re.compile(
    r"(\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:)(\d\d)(?:\.\d+)?(?:([Zz])|([+-]\d\d:\d\d))\Z", re.ASCII
)
_TRACE_CONTEXT: Final = ("traceparent", "tracestate")
"""W3C: a receiver that cannot read the one hands neither on."""
_MEDIA_TYPE: Final = re.compile(r"\s*[\w!#$&^.+*'`|~-]+/[\w!#$&^.+*'`|~-]+\s*(;.*)?\Z", re.ASCII)
"""RFC 2046, parameters as they come."""
_ABSOLUTE: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:\S+\Z")
_INT32: Final = range(-(2**31), 2**31)
_HEADER_SAFE: Final = "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) not in '"%')
_ALL_SAFE: Final = re.compile(f"[{re.escape(_HEADER_SAFE)}]*\\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event. `data` is the raw payload; extensions hold strings, as they travel in headers."""

    id: str
    source: str
    type: str
    subject: str = ""
    time: str = ""
    datacontenttype: str = ""
    dataschema: str = ""
    extensions: Mapping[str, str] = field(default_factory=dict)
    data: bytes = b""

    @property
    def identity(self) -> str:
        """`source` and `id`: two events with the same identity are duplicates (CloudEvents 1.0)."""
        return f"{self.source}\0{self.id}"

    def attribute(self, name: str) -> str | None:
        """The attribute `name` as a Trigger filter sees it; None when it is not set."""
        if name == "specversion":
            return "1.0"
        if name in _KNOWN:
            return getattr(self, name) or None
        return self.extensions.get(name)

    def attributes(self) -> dict[str, str]:
        """All attributes that are set, extensions included."""
        named = {name: getattr(self, name) for name in _KNOWN if name != "specversion"}
        return (
            {"specversion": "1.0"} | {k: v for k, v in named.items() if v} | dict(self.extensions)
        )


def parse_http(headers: Mapping[str, str], body: bytes) -> Event:
    """The event in an HTTP message, in binary or structured mode.

    Raises `UnsupportedMode` for a batch, `NotACloudEvent` for any other message that is not a CloudEvent 1.0.
    """
    lowered = {name.lower(): value for name, value in headers.items()}
    content_type = lowered.get("content-type", "")
    kind = content_type.strip().lower()
    if kind.startswith("application/cloudevents-batch"):
        raise UnsupportedMode(
            "batched events are not supported; send them one by one", "content-type"
        )
    if kind.startswith("application/cloudevents"):
        return _parse_structured(content_type, body)
    return _parse_binary(lowered, body)


def build_binary(event: Event) -> tuple[dict[str, str], bytes]:
    """Headers and body of the event in binary mode."""
    headers = {"content-type": event.datacontenttype} if event.datacontenttype else {}
    for name, value in event.attributes().items():
        if name != "datacontenttype":  # sent as Content-Type only (3.1.1)
            headers[f"ce-{name}"] = _encode_header(value)
    return headers, event.data


def build_structured(event: Event) -> tuple[dict[str, str], bytes]:
    """Headers and body of the event in structured mode; JSON data stays JSON, other data travels as base64."""
    # Not by the SDK, which writes `"data": null` for an event without data, which reads back as JSON.
    envelope: dict[str, Any] = event.attributes()
    if event.data:
        envelope |= _structured_data(event)
    return {"content-type": STRUCTURED}, orjson.dumps(envelope)


def to_record(event: Event) -> bytes:
    """The event as one JSON text, for the queue."""
    attributes: dict[str, Any] = event.attributes()
    attributes["data_base64"] = base64.b64encode(event.data).decode()
    return orjson.dumps(attributes)


def from_record(record: bytes | str) -> Event:
    """The event that `to_record` wrote."""
    attributes = orjson.loads(record)
    data = base64.b64decode(attributes.pop("data_base64"))
    return _from_attributes(attributes, data)


def _parse_binary(headers: Mapping[str, str], body: bytes) -> Event:
    missing = [f"ce-{name}" for name in _REQUIRED if not headers.get(f"ce-{name}")]
    if missing:
        raise NotACloudEvent(f"missing or empty header {', '.join(missing)}", missing[0])
    attributes = {
        name[3:]: _decode_header(name, value)
        for name, value in headers.items()
        if name.startswith("ce-") and name not in _NOT_FROM_HEADERS
    }
    if content_type := headers.get("content-type", ""):
        attributes["datacontenttype"] = _checked(content_type)
    _check_values(attributes)
    return _from_attributes(attributes, body)


def _parse_structured(content_type: str, body: bytes) -> Event:
    if "json" not in content_type.lower():
        raise NotACloudEvent(f"cannot read structured events as {content_type:.60}", "content-type")
    try:
        envelope = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise NotACloudEvent(f"the body is not JSON: {error.msg} at {error.pos}", "body") from error
    if not isinstance(envelope, dict):
        raise NotACloudEvent("the body must be a JSON object", "body")
    missing = [
        name for name in _REQUIRED if not isinstance(envelope.get(name), str) or not envelope[name]
    ]
    if missing:
        raise NotACloudEvent(f"missing or empty attribute {', '.join(missing)}", missing[0])
    if "data" in envelope and "data_base64" in envelope:
        raise NotACloudEvent("data and data_base64 are both there", "data_base64")
    named = {k: v for k, v in envelope.items() if k not in ("data", "data_base64")}
    _check_names(named)  # the SDK makes capitals small
    _check_base64(envelope.get("data_base64"))
    _check_values({k: _text(k, v) for k, v in named.items() if v is not None})
    event = _from_sdk({"content-type": STRUCTURED}, body, is_json_default="data" in envelope)
    # null means not set (JSON format 2.2); the SDK would fill in a time of its own.
    return event if envelope.get("time") is not None else replace(event, time="")


def _from_sdk(headers: Mapping[str, str], body: bytes, *, is_json_default: bool = False) -> Event:
    try:
        parsed = from_http(dict(headers), body, data_unmarshaller=_keep)
    except (GenericException, ValueError, TypeError, RecursionError) as error:
        raise NotACloudEvent(f"not a CloudEvent: {type(error).__name__}", "body") from error
    attributes = {k: _text(k, v) for k, v in parsed.get_attributes().items() if v is not None}
    if is_json_default:
        attributes.setdefault("datacontenttype", "application/json")
    _checked(attributes.get("datacontenttype", ""))
    data = parsed.get_data()
    if is_json_default and isinstance(data, str) and not _is_json(attributes["datacontenttype"]):
        value = orjson.loads(data)
        data = value.encode() if isinstance(value, str) else data
    return _from_attributes(attributes, data.encode() if isinstance(data, str) else (data or b""))


def _structured_data(event: Event) -> dict[str, Any]:
    """`data`, or `data_base64` for binary data, whatever its content type."""
    if _is_json(event.datacontenttype):
        with suppress(orjson.JSONDecodeError):
            return {"data": orjson.loads(event.data)}
    return {"data_base64": base64.b64encode(event.data).decode()}


def _from_attributes(attributes: Mapping[str, str], data: bytes) -> Event:
    if attributes.get("specversion") != "1.0":
        raise NotACloudEvent("specversion must be 1.0", "specversion")
    extensions = {k: v for k, v in attributes.items() if k not in _KNOWN}
    if "traceparent" in extensions and not followable(extensions["traceparent"]):
        extensions = {k: v for k, v in extensions.items() if k not in _TRACE_CONTEXT}
    _check_names(extensions)
    named = {k: attributes[k] for k in _KNOWN if k in attributes and k != "specversion"}
    return Event(**named, extensions=extensions, data=data)


def _check_names(attributes: Iterable[str]) -> None:
    for name in attributes:
        if not _EXTENSION_NAME.match(name):
            raise NotACloudEvent(f"attribute name {name!r:.40} must be a-z and 0-9 only", name)


def _check_base64(data: Any) -> None:
    """Raise for data that a lenient decoder would cut to what it understands."""
    if data is None:
        return
    try:
        base64.b64decode(data if isinstance(data, str) else "!", validate=True)
    except ValueError as error:
        raise NotACloudEvent("data_base64 must be base64", "data_base64") from error


def _text(name: str, value: Any) -> str:
    """The canonical string of an attribute (spec: type system); JSON events may have booleans and integers."""
    match value:
        case str():
            return value
        case bool():
            return str(value).lower()
        case int() if value in _INT32:
            return str(value)
        case _:
            raise NotACloudEvent(
                f"attribute {name} must be a string, a boolean or an integer of 32 bits", name
            )


def _check_values(attributes: Mapping[str, str]) -> None:
    """Raise for the first attribute whose value is not valid for its type."""
    for name, value in attributes.items():
        if _FORBIDDEN.search(value):
            raise NotACloudEvent(f"attribute {name} holds a control character", name)
        if not value and name in _NEVER_EMPTY:
            raise NotACloudEvent(f"attribute {name} must not be empty", name)
    if (source := attributes.get("source", "")) and re.search(r"\s", source):
        raise NotACloudEvent("source must be a URI reference", "source")
    if (schema := attributes.get("dataschema")) and not _ABSOLUTE.match(schema):
        raise NotACloudEvent("dataschema must be an absolute URI", "dataschema")
    if (time := attributes.get("time")) and not _is_time(time):
        raise NotACloudEvent("time must be an RFC 3339 timestamp", "time")


def _is_time(text: str) -> bool:
    match = _TIME.match(text)
    if match is None:
        return False
    begin, seconds, _, offset = match.groups()
    try:  # a leap second is valid (RFC 3339 5.7), but not a datetime
        datetime.fromisoformat(
            begin.upper() + ("59" if seconds == "60" else seconds) + (offset or "")
        )
    except ValueError:
        return False
    return True


def _keep(data: Any) -> Any:
    return data


def _checked(content_type: str) -> str:
    """A content type is used as a header unchanged, so a line break in it would inject another header."""
    if not (content_type.isascii() and content_type.isprintable()):
        raise NotACloudEvent("datacontenttype must be printable ASCII", "datacontenttype")
    if content_type and not _MEDIA_TYPE.match(content_type):
        raise NotACloudEvent("datacontenttype must be a media type", "datacontenttype")
    return content_type


def _is_json(content_type: str) -> bool:
    kind = content_type.split(";")[0].strip().lower()
    return not kind or kind.endswith(("/json", "+json"))


def _encode_header(value: str) -> str:
    return value if _ALL_SAFE.match(value) else quote(value, safe=_HEADER_SAFE)


def _decode_header(name: str, value: str) -> str:
    """One round of percent-decoding, after the legacy double quotes are removed. Headers are read as latin-1: raw
    UTF-8, which some SDKs send, gives the same value as its percent-encoded form. Raises on bytes that are not
    UTF-8.
    """
    if not value.isascii():
        try:
            value = value.encode("latin-1").decode("utf-8")
        except UnicodeError as error:
            raise NotACloudEvent(f"header {name} is not UTF-8; percent-encode it", name) from error
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = value[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    if "%" not in value:
        return value
    try:
        return unquote_to_bytes(value).decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotACloudEvent(f"header {name} is not UTF-8 once decoded", name) from error
