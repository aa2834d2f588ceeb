"""What no CloudEvent may hold: by the specification, and by the cases of its conformance suite."""

from urllib.parse import quote

import orjson
import pytest

from eventing.cloudevent.event import (
    STRUCTURED,
    build_binary,
    parse_http,
)
from eventing.errors import NotACloudEvent
from eventing.telemetry.span import followable

BINARY = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "t"}
INVALID = [
    ("time", "yesterday"),
    ("time", "2026-11-29"),
    ("time", "2026-11-29T20:00:00"),
    ("time", "2026-13-29T20:00:00Z"),
    ("time", "2026-02-30T20:00:00Z"),
    ("time", "2026-11-29T25:00:00Z"),
    ("time", "2026-11-29 20:00:00Z"),
    ("time", "1764446400"),
    ("time", ""),
    ("subject", ""),
    ("subject", "a\x00b"),
    ("id", "a\nb"),
    ("type", "t\x7f"),
    ("source", "/s\x85"),
    ("source", "/two words"),
    ("subject", "a\ufffe"),
    ("dataschema", ""),
    ("dataschema", "schema.json"),
    ("tenant", "a\x1bb"),
]


class TestWhatNoEventMayHold:
    @pytest.mark.parametrize(("name", "value"), INVALID)
    def test_is_refused_in_structured_mode(self, name: str, value: str) -> None:
        envelope = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", name: value}

        with pytest.raises(NotACloudEvent) as refused:
            parse_http({"content-type": STRUCTURED}, orjson.dumps(envelope))

        assert refused.value.field == name

    @pytest.mark.parametrize(("name", "value"), INVALID)
    def test_is_refused_in_binary_mode_percent_encoded(self, name: str, value: str) -> None:
        with pytest.raises(NotACloudEvent) as refused:
            parse_http(BINARY | {f"ce-{name}": quote(value, safe="/:")}, b"")

        assert refused.value.field == name

    @pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 1.5, [], {}])
    def test_extensions_are_texts_booleans_and_integers_of_32_bits(self, value: object) -> None:
        envelope = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "many": value}

        with pytest.raises(NotACloudEvent, match="many"):
            parse_http({"content-type": STRUCTURED}, orjson.dumps(envelope))

    def test_data_comes_in_one_form(self) -> None:
        envelope = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}
        both = envelope | {"data": 1, "data_base64": "MQ=="}

        with pytest.raises(NotACloudEvent, match="data_base64"):
            parse_http({"content-type": STRUCTURED}, orjson.dumps(both))

    @pytest.mark.parametrize("time", ["2016-12-31T23:59:60Z", "2026-11-29t20:00:00.123456789z"])
    def test_a_leap_second_and_small_letters_are_a_time(self, time: str) -> None:
        assert parse_http(BINARY | {"ce-time": time}, b"").time == time

    def test_a_time_of_null_is_none(self) -> None:
        envelope = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "time": None}

        event = parse_http({"content-type": STRUCTURED}, orjson.dumps(envelope))

        assert event.time == ""


class TestRawUtf8:
    @pytest.mark.parametrize("text", ["/läden", "/店", "/a☃b"])
    def test_a_raw_header_has_the_same_identity_as_its_percent_encoded_form(
        self, text: str
    ) -> None:
        raw = text.encode().decode("latin-1")  # as a server hands headers on

        plain = parse_http(BINARY | {"ce-source": raw, "ce-tenant": raw}, b"")

        assert plain == parse_http(
            BINARY | {"ce-source": quote(text), "ce-tenant": quote(text)}, b""
        )
        assert plain.source == plain.extensions["tenant"] == text

    @pytest.mark.parametrize("raw", [b"/l\xe4den", b"/\xff", b"/\xc3"])
    def test_bytes_that_are_not_utf8_are_refused_by_name(self, raw: bytes) -> None:
        with pytest.raises(NotACloudEvent, match="ce-source"):
            parse_http(BINARY | {"ce-source": raw.decode("latin-1")}, b"")


NO_TRACEPARENT = [
    "00-00000000000000000000000000000000-b7ad6b7169203331-01",
    "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
    "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
    "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
    "01-00000000000000000000000000000000-b7ad6b7169203331-01-more",
    "0af7651916cd43dd8448eb211c80319c:b7ad6b7169203331:0:1",
    "x" * 3000,
]


@pytest.mark.parametrize("text", NO_TRACEPARENT)
def test_a_traceparent_that_is_none_ends_here_and_its_state_with_it(text: str) -> None:
    told = {"traceparent": text, "tracestate": "vendor=1", "tenant": "acme"}

    in_headers = parse_http(BINARY | {f"ce-{k}": v for k, v in told.items()}, b"")
    envelope = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", **told}
    in_envelope = parse_http({"content-type": STRUCTURED}, orjson.dumps(envelope))

    assert in_headers.extensions == in_envelope.extensions == {"tenant": "acme"}
    assert followable(text) == ""


def test_a_traceparent_of_a_later_version_is_accepted() -> None:
    later = "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more"

    assert followable(later) == "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert followable(followable(later)) == followable(later)


BASE = {"specversion": "1.0", "id": "e", "type": "io.test", "source": "https://example.org"}
GONE = "<gone>"  # a text: it stands in the names of tests, which all workers must agree on
INVALID_IN_SUITE = [
    *({name: GONE} for name in BASE),
    *({name: ""} for name in BASE),
    *({"time": text} for text in (
        "lunchtime", "2018-04-05T18:31Z", "2018-04-05T18:31:00X", "2018-04-05T18:31:00+25:00",
        "2018-04-05T18:31:00+xx:00", "2018-04-05T18:31:00+05", "2018-02-30T18:31:00Z",
    )),
    {"specversion": "0.9"},
    {"specversion": 1.0},
    {"datacontenttype": "xyz"},
    {"datacontenttype": "text/"},
    {"datacontenttype": ""},
    {"dataschema": ""},
    {"subject": ""},
    {"id": 25},
    {"id": {"xyz": "abc"}},
    {"MyExtension": "bad"},
    {"my.extension": "bad"},
    {"myextension": 1.5},
    {"myextension": ["bad"]},
    {"data": "text", "data_base64": "eyAieHl6IjogMTIzIH0="},
    {"data_base64": "no base64!"},
    {"data_base64": 7},
]  # fmt: skip
"""The invalid events of cloudevents/conformance (format/json), and their like."""
VALID = [
    {},
    dict.fromkeys(("datacontenttype", "dataschema", "subject", "time")),
    {"datacontenttype": "text/plain", "dataschema": "https://example.org/s", "subject": "tests"},
    {"time": "2018-04-05T17:31:00.000000000Z"},
    {"time": "2018-04-05T16:31:00-01:00"},
    {"source": "#fragment"},
    {"datacontenttype": "text/plain", "data": "Simple text"},
    {
        "extinteger": 10, "extboolean": True, "extstring": "text", "exturiref": "//authority/path",
        "exttimestamp": "2023-03-31T15:12:00Z", "extbinary": "TWE=",
    },
]  # fmt: skip


def as_json(changes: dict[str, object]) -> bytes:
    return orjson.dumps({k: v for k, v in (BASE | changes).items() if v is not GONE})


@pytest.mark.parametrize("changes", INVALID_IN_SUITE, ids=str)
def test_an_invalid_event_of_the_conformance_suite_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(NotACloudEvent):
        parse_http({"content-type": "application/cloudevents+json"}, as_json(changes))


@pytest.mark.parametrize("changes", VALID, ids=str)
def test_a_valid_event_of_the_conformance_suite_is_read_and_travels(
    changes: dict[str, object],
) -> None:
    event = parse_http({"content-type": "application/cloudevents+json"}, as_json(changes))

    told = event.attributes()
    for name, value in changes.items():
        if value is not None and name != "data":
            assert told[name] == (str(value).lower() if isinstance(value, bool) else str(value))
    assert parse_http(*build_binary(event)) == event
