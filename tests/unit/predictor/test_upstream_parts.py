"""What a provider's refusals mean, how its event stream is read, and what it is sent."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from eventing.errors import BadRequest, ContextExceeded, TorporError, Unavailable
from predictor.engine.engine import EngineRequest
from predictor.engine.upstream.errors import (
    UpstreamFailed,
    UpstreamKeyRefused,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamUnavailable,
    error_of,
    retry_after_s,
)
from predictor.engine.upstream.event_stream import EventStream
from predictor.engine.upstream.target import provider_body

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"error": {"code": None, "type": "invalid_request_error"}}, UpstreamRefused),
        (400, {"error": {"code": "context_length_exceeded"}}, ContextExceeded),
        (401, {"error": {"code": "invalid_api_key"}}, UpstreamKeyRefused),
        (402, None, UpstreamKeyRefused),
        (404, "gone", UpstreamRefused),
        (408, None, UpstreamUnavailable),
        (413, [], UpstreamRefused),
        (429, None, UpstreamRateLimited),
        (429, {"error": {"code": "insufficient_quota"}}, UpstreamKeyRefused),
        (500, {"error": "a text"}, UpstreamFailed),
        (502, None, UpstreamFailed),
        (503, None, UpstreamUnavailable),
        (529, {"type": "error", "error": {"type": "overloaded_error"}}, UpstreamUnavailable),
    ],
)
def test_a_refusal_is_final_costs_an_attempt_or_waits(
    status: int, body: object, kind: type[TorporError]
) -> None:
    assert type(error_of(status, {}, body)) is kind


def test_what_is_final_is_an_error_of_the_call_and_what_passes_is_none() -> None:
    assert issubclass(UpstreamRefused, BadRequest)
    assert issubclass(UpstreamRateLimited, Unavailable)
    assert not issubclass(UpstreamFailed, BadRequest | Unavailable)


def test_a_refusal_names_the_field_and_never_the_providers_sentence() -> None:
    said = {"error": {"message": "bad: my secret prompt", "code": "bad_value", "param": "top_p"}}

    error = error_of(400, {}, said)

    assert isinstance(error, BadRequest)
    assert error.field == "top_p"
    assert error.message == "the provider answered 400 (bad_value)"


def test_a_code_that_is_a_sentence_is_not_repeated() -> None:
    error = error_of(400, {}, {"error": {"code": "you said: my secret"}})

    assert error.message == "the provider answered 400"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 1.0),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"x-ms-retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, 1.0),
        ({"retry-after": "nan"}, 1.0),
        ({"retry-after": "-3"}, 1.0),
        ({"retry-after": "86400"}, 600.0),
    ],
)
def test_the_wait_that_a_provider_asks_for(headers: dict[str, str], seconds: float) -> None:
    assert retry_after_s(headers) == seconds


STREAM = (
    b': a comment\r\n\r\nevent: chunk\r\ndata: {"a":1}\r\n\r\n'
    b'data:{"b":\ndata: 2}\n\nid: 7\rdata: \xe2\x82\xac\r\rdata: [DONE]\n\n'
)
DATA = [b'{"a":1}', b'{"b":\n2}', "€".encode(), b"[DONE]"]


@pytest.mark.parametrize("cut", range(len(STREAM)))
def test_an_event_stream_reads_the_same_wherever_it_is_cut(cut: int) -> None:
    events = EventStream(limit_bytes=100)

    assert [*events.feed(STREAM[:cut]), *events.feed(STREAM[cut:])] == DATA


def test_an_event_without_an_end_is_bounded() -> None:
    events = EventStream(limit_bytes=100)

    with pytest.raises(UpstreamFailed, match="over 100 bytes"):
        list(events.feed(20 * b"data: 123456789\n"))


def request(url: str = CHAT, **body: Any) -> EngineRequest:
    return EngineRequest("r", url, {"model": "ours", **body})


def test_a_provider_gets_its_own_models_name_and_a_stream_with_usage() -> None:
    body = provider_body(request(messages=[], stream=False, temperature=0.5), "theirs")

    assert body == {
        "model": "theirs",
        "messages": [],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
    }


def test_a_provider_is_sent_nothing_that_it_would_keep() -> None:
    body = provider_body(request(messages=[], store=True, metadata={"case": "7"}), "theirs")

    assert not {"store", "metadata"} & body.keys()


def test_a_provider_that_is_vllm_parts_its_prefix_cache_by_tenants() -> None:
    def sent(tenant: str, *, has_salt: bool = True, **body: Any) -> Mapping[str, Any]:
        asked = replace(request(messages=[], **body), tenant=tenant)
        return provider_body(asked, "theirs", has_salt=has_salt)

    first = sent("acme", prompt_cache_key="thread")
    assert first == sent("acme", prompt_cache_key="thread")
    for field in ("cache_salt", "prompt_cache_key"):
        assert first[field] != sent("other", prompt_cache_key="thread")[field]
        assert "acme" not in first[field]
    # What a caller sends is of its tenant, too.
    assert sent("other", cache_salt=first["cache_salt"])["cache_salt"] != first["cache_salt"]
    assert "prompt_cache_key" not in sent("acme")
    assert (
        not {"cache_salt", "prompt_cache_key"}
        & sent("acme", has_salt=False, prompt_cache_key="thread").keys()
    )


def test_embeddings_do_not_stream() -> None:
    assert provider_body(request("/v1/embeddings", input="x"), "t") == {"model": "t", "input": "x"}
