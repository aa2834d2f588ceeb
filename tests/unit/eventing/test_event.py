"""CloudEvents 1.0 over HTTP, as the core specification and its HTTP binding have them.

The cases follow the conformance features of cloudevents/spec (`docs/`, `bindings/http-protocol-
binding.md`) and the SDKs' common feature files, written anew here.
"""

import base64
import re
from contextlib import suppress
from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventing.cloudevent.event import (
    STRUCTURED,
    Event,
    build_binary,
    build_structured,
    from_record,
    parse_http,
    to_record,
)
from eventing.errors import BadRequest, NotACloudEvent, UnsupportedMode

REQUIRED = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "t"}
ENVELOPE = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}


def structured(content_type: str = STRUCTURED, **attributes: object) -> Event:
    return parse_http({"Content-Type": content_type}, orjson.dumps(ENVELOPE | attributes))


class TestBinaryMode:
    def test_attributes_come_from_headers_and_data_from_the_body(self) -> None:
        headers = REQUIRED | {
            "ce-subject": "x",
            "ce-time": "2026-11-21T03:00:00Z",
            "ce-dataschema": "https://example.org/s",
            "ce-tenant": "acme",
            "content-type": "application/json",
        }

        event = parse_http(headers, b'{"a": 1}')

        assert event == Event(
            id="1",
            source="/s",
            type="t",
            subject="x",
            time="2026-11-21T03:00:00Z",
            datacontenttype="application/json",
            dataschema="https://example.org/s",
            extensions={"tenant": "acme"},
            data=b'{"a": 1}',
        )

    def test_the_body_is_kept_byte_for_byte(self) -> None:
        body = bytes(range(256))

        event = parse_http(REQUIRED | {"content-type": "application/octet-stream"}, body)

        assert event.data == body

    @pytest.mark.parametrize("casing", [str.upper, str.title, str.lower])
    def test_header_names_have_no_case(self, casing: object) -> None:
        headers = {casing(name): value for name, value in REQUIRED.items()}  # type: ignore[operator]

        assert parse_http(headers, b"").id == "1"

    def test_an_event_without_data_or_content_type_is_one(self) -> None:
        event = parse_http(REQUIRED, b"")

        assert (event.data, event.datacontenttype) == (b"", "")

    def test_an_event_without_time_gets_none(self) -> None:
        # The SDK stamps its own clock's time, which the producer never said.
        assert parse_http(REQUIRED, b"").time == ""

    def test_a_charset_stays_with_the_content_type(self) -> None:
        headers = REQUIRED | {"content-type": 'application/json; charset="utf-8"'}

        assert parse_http(headers, b"1").datacontenttype == 'application/json; charset="utf-8"'

    def test_a_content_type_in_a_ce_header_does_not_win_over_the_real_one(self) -> None:
        headers = REQUIRED | {"content-type": "text/plain", "ce-datacontenttype": "image/png"}

        assert parse_http(headers, b"x").datacontenttype == "text/plain"

    @pytest.mark.parametrize("missing", REQUIRED)
    def test_a_missing_attribute_is_named(self, missing: str) -> None:
        headers = {name: value for name, value in REQUIRED.items() if name != missing}

        with pytest.raises(NotACloudEvent) as caught:
            parse_http(headers, b"")

        assert missing in caught.value.message
        assert caught.value.field == missing

    @pytest.mark.parametrize("empty", REQUIRED)
    def test_an_empty_attribute_is_named(self, empty: str) -> None:
        with pytest.raises(NotACloudEvent, match=empty):
            parse_http(REQUIRED | {empty: ""}, b"")

    @pytest.mark.parametrize("version", ["0.3", "1.1", "2.0", "1", "one"])
    def test_another_version_of_the_specification_is_refused(self, version: str) -> None:
        with pytest.raises(NotACloudEvent):
            parse_http(REQUIRED | {"ce-specversion": version}, b"")

    @pytest.mark.parametrize("name", ["my-ext", "my_ext", "my.ext", "é"])
    def test_an_extension_name_with_other_characters_is_refused(self, name: str) -> None:
        with pytest.raises(NotACloudEvent):
            parse_http(REQUIRED | {f"ce-{name}": "1"}, b"")

    @pytest.mark.parametrize(
        ("on_the_wire", "meant"),
        [
            pytest.param("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀", id="specification"),
            pytest.param("100%25", "100%", id="percent"),
            pytest.param("%2541", "%41", id="one round only"),
            pytest.param("a%22b", 'a"b', id="quote"),
            pytest.param('"quoted value"', "quoted value", id="legacy quotes"),
            pytest.param(r'"a \"b\" \\ c"', r'a "b" \ c', id="legacy escapes"),
            pytest.param(r'"\\"', "\\", id="legacy backslash alone"),
            pytest.param(r'"\\\""', '\\"', id="legacy backslash then quote"),
            pytest.param("%e2%82%ac", "€", id="lower-case hex"),
            pytest.param("50%", "50%", id="percent without digits"),
            pytest.param("%zz", "%zz", id="percent without hex"),
        ],
    )
    def test_header_values_are_percent_decoded_once(self, on_the_wire: str, meant: str) -> None:
        assert parse_http(REQUIRED | {"ce-subject": on_the_wire}, b"").subject == meant

    @pytest.mark.parametrize("value", ["%C0%A0", "%FF", "%ED%A0%80", "%E2%82"])
    def test_a_value_that_is_not_utf8_once_decoded_is_refused(self, value: str) -> None:
        with pytest.raises(NotACloudEvent) as caught:
            parse_http(REQUIRED | {"ce-subject": value}, b"")

        assert caught.value.field == "ce-subject"

    def test_headers_of_no_event_are_no_attributes(self) -> None:
        event = parse_http(REQUIRED | {"authorization": "Bearer s3cret", "x-ce-y": "1"}, b"")

        assert event.extensions == {}

    def test_a_plain_post_is_no_event(self) -> None:
        with pytest.raises(NotACloudEvent):
            parse_http({"content-type": "application/json"}, b"{}")


class TestStructuredMode:
    @pytest.mark.parametrize(
        "content_type",
        [
            "application/cloudevents+json",
            "application/cloudevents+json; charset=UTF-8",
            "application/cloudevents+json;charset=utf-8",
            "Application/CloudEvents+JSON",
            " application/cloudevents+json",
        ],
    )
    def test_the_content_type_may_have_case_and_parameters(self, content_type: str) -> None:
        assert orjson.loads(structured(content_type, data={"a": 1}).data) == {"a": 1}

    @pytest.mark.parametrize(
        "data",
        [{"a": [1, None]}, [1, 2], "text", 0, False, "", {}, []],
        ids=["object", "array", "string", "zero", "false", "no text", "no fields", "no items"],
    )
    def test_json_data_is_json(self, data: object) -> None:
        event = structured(data=data)

        assert orjson.loads(event.data) == data
        assert event.datacontenttype == "application/json"

    def test_text_data_is_the_text(self) -> None:
        event = structured(data="a ☃", datacontenttype="text/plain")

        assert event.data == "a ☃".encode()

    def test_base64_data_is_decoded(self) -> None:
        event = structured(
            data_base64=base64.b64encode(b"\x00\xff").decode(), datacontenttype="image/png"
        )

        assert (event.data, event.datacontenttype) == (b"\x00\xff", "image/png")

    def test_base64_json_is_json(self) -> None:
        event = structured(data_base64=base64.b64encode(b'{"a": 1}').decode())

        assert event.data == b'{"a": 1}'

    def test_an_event_without_data_is_one(self) -> None:
        assert structured().data == b""

    def test_an_event_without_time_gets_none(self) -> None:
        assert structured().time == ""

    def test_a_null_attribute_is_as_good_as_none(self) -> None:
        event = structured(subject=None, tenant=None)

        assert (event.subject, dict(event.extensions)) == ("", {})

    @pytest.mark.parametrize(
        ("value", "text"), [(True, "true"), (False, "false"), (7, "7"), (-1, "-1"), ("x", "x")]
    )
    def test_extensions_have_the_canonical_text_of_their_type(
        self, value: object, text: str
    ) -> None:
        assert structured(ext=value).extensions == {"ext": text}

    @pytest.mark.parametrize("value", [1.5, {"a": 1}, [1]])
    def test_an_extension_of_no_cloudevents_type_is_refused(self, value: object) -> None:
        with pytest.raises(NotACloudEvent):
            structured(ext=value)

    @pytest.mark.parametrize("missing", ENVELOPE)
    @pytest.mark.parametrize("value", ["absent", None, "", 7, {}])
    def test_a_missing_attribute_is_named(self, missing: str, value: object) -> None:
        envelope: dict[str, object] = dict(ENVELOPE)
        if value == "absent":
            del envelope[missing]
        else:
            envelope[missing] = value

        with pytest.raises(NotACloudEvent) as caught:
            parse_http({"content-type": STRUCTURED}, orjson.dumps(envelope))

        assert caught.value.field == missing

    @pytest.mark.parametrize(
        "body",
        [b"", b"{", b"[]", b"null", b'"x"', b"7", b"\xff", b"[" * 100_000, b'{"a":' * 50_000],
        ids=["empty", "cut", "list", "null", "text", "number", "not utf-8", "deep", "deep objects"],
    )
    def test_a_body_that_is_no_json_object_is_refused(self, body: bytes) -> None:
        with pytest.raises(NotACloudEvent):
            parse_http({"content-type": STRUCTURED}, body)

    def test_another_format_is_refused_by_name(self) -> None:
        with pytest.raises(NotACloudEvent) as caught:
            parse_http({"content-type": "application/cloudevents+avro"}, b"")

        assert caught.value.field == "content-type"

    @pytest.mark.parametrize("data", ["not base64!", 7, None])
    def test_base64_that_is_none_is_refused_or_empty(self, data: object) -> None:
        try:
            event = structured(data_base64=data)
        except NotACloudEvent:
            return
        assert event.data == b""

    def test_a_wrong_envelope_attribute_name_is_refused(self) -> None:
        with pytest.raises(NotACloudEvent):
            structured(**{"Not-A-Name": "x"})


@pytest.mark.parametrize(
    "content_type",
    [
        "application/cloudevents-batch+json",
        "application/cloudevents-batch+json; charset=UTF-8",
        "APPLICATION/CLOUDEVENTS-BATCH+JSON",
    ],
)
def test_a_batch_is_refused_as_an_unsupported_media_type(content_type: str) -> None:
    with pytest.raises(UnsupportedMode) as caught:
        parse_http({"content-type": content_type}, b"[]")

    assert caught.value.status == 415


NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=12).filter(
    lambda name: (
        name
        not in (
            *("id", "source", "type", "specversion", "subject", "time", "datacontenttype"),
            *("dataschema", "data", "database64"),
        )
    )
)
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn")), min_size=1)
SOURCES = TEXT.filter(lambda text: not re.search(r"\s", text))
EVENTS = st.builds(
    Event,
    id=TEXT,
    source=SOURCES,
    type=TEXT,
    subject=st.one_of(st.just(""), TEXT),
    time=st.sampled_from(["", "2026-11-21T03:00:00Z", "2026-11-21T03:00:00.123456789+01:00"]),
    datacontenttype=st.sampled_from(["", "text/plain", "application/octet-stream", "image/png"]),
    dataschema=st.sampled_from(["", "https://example.org/schema?v=1"]),
    extensions=st.dictionaries(NAMES, TEXT, max_size=3),
    data=st.binary(max_size=50),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=6,
)


class TestRoundTrips:
    @given(EVENTS)
    def test_binary_mode_brings_back_the_event(self, event: Event) -> None:
        headers, body = build_binary(event)

        assert all(value.isascii() and value.isprintable() for value in headers.values())
        assert parse_http(headers, body) == event

    @given(EVENTS)
    def test_structured_mode_brings_back_the_event(self, event: Event) -> None:
        headers, body = build_structured(event)

        again = parse_http(headers, body)
        if again.datacontenttype != event.datacontenttype:
            # JSON is what an envelope holds when its producer did not say.
            assert again.datacontenttype == "application/json"
            assert orjson.loads(again.data) == orjson.loads(event.data)
            again = replace(again, datacontenttype="", data=event.data)
        assert again == event

    @given(JSON)
    def test_structured_json_data_is_the_same_json(self, value: object) -> None:
        event = Event(
            id="1",
            source="/s",
            type="t",
            datacontenttype="application/json",
            data=orjson.dumps(value),
        )

        _, body = build_structured(event)

        assert orjson.loads(body)["data"] == value
        assert orjson.loads(parse_http({"content-type": STRUCTURED}, body).data) == value

    @given(EVENTS)
    def test_the_queue_record_brings_back_the_event(self, event: Event) -> None:
        assert from_record(to_record(event)) == event

    @given(st.dictionaries(st.text(max_size=20), st.text(max_size=20)), st.binary(max_size=200))
    def test_no_message_does_worse_than_a_bad_request(
        self, headers: dict[str, str], body: bytes
    ) -> None:
        for extra in ({}, REQUIRED, {"content-type": STRUCTURED}):
            with suppress(BadRequest):
                parse_http(headers | extra, body)

    @given(st.dictionaries(st.sampled_from([*ENVELOPE, "data", "data_base64", "time", "x"]), JSON))
    def test_no_envelope_does_worse_than_a_bad_request(self, envelope: dict[str, object]) -> None:
        for attributes in (envelope, ENVELOPE | envelope, envelope | ENVELOPE):
            with suppress(NotACloudEvent):
                parse_http({"content-type": STRUCTURED}, orjson.dumps(attributes))


class TestAttributes:
    EVENT = Event(id="1", source="/s", type="t", extensions={"tenant": "acme"})

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("specversion", "1.0"),
            ("id", "1"),
            ("type", "t"),
            ("tenant", "acme"),
            ("subject", None),
            ("nothing", None),
            ("data", None),
        ],
    )
    def test_a_filter_sees_what_the_event_carries(self, name: str, value: str | None) -> None:
        assert self.EVENT.attribute(name) == value

    def test_identity_is_source_and_id(self) -> None:
        other = Event(id="1", source="/s", type="other", subject="x")

        assert self.EVENT.identity == other.identity
        assert self.EVENT.identity != Event(id="/s1", source="", type="t").identity
