"""Messages, their ids and their signatures."""

import time
from typing import Any

import orjson
import pytest
from openai import InvalidWebhookSignatureError, OpenAI
from standardwebhooks import Webhook, WebhookVerificationError

from api.webhook.webhook import (
    PER_JOB,
    Endpoint,
    Secret,
    delivery_of,
    message_of,
    new_secret,
    parse_webhook_options,
    signed_headers,
)
from eventing.errors import InvalidJob
from eventing.job.job import Job, JobId, JobRequest, JobState

JOB = JobId("job_0123456789abcdef01234567")
BODY = b'{"id":"evt_1","data":{"id":"x"}}'
NOW_S = 1_764_000_000


def ended(**fields: Any) -> Job:
    request = JobRequest(url="/v1/chat/completions", body={"model": "m"})
    defaults: dict[str, Any] = {"id": JOB, "state": JobState.COMPLETED, "request": request}
    return Job(**defaults | {"finished_ms": NOW_S * 1000 + 250, "attempt": 1} | fields)


def sent(job: Job) -> dict[str, Any]:
    message = message_of(job)
    assert message is not None
    return dict(orjson.loads(message.body()))


@pytest.mark.parametrize(
    "state",
    [JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED, JobState.INCOMPLETE],
)
def test_each_ending_has_openais_name(state: JobState) -> None:
    assert sent(ended(state=state))["type"] == f"response.{state}"


def test_the_body_is_thin() -> None:
    job = ended(result={"choices": ["secret answer"]})

    assert sent(job) | {"id": ""} == {
        "id": "",
        "object": "event",
        "created_at": NOW_S,
        "type": "response.completed",
        "data": {"id": JOB},
    }


def test_a_response_is_named_by_its_own_id() -> None:
    job = ended(metadata={"torpor.response": "{}"})

    assert sent(job)["data"]["id"] == "resp_0123456789abcdef01234567"


def test_a_line_of_a_batch_sends_no_webhook() -> None:
    assert message_of(ended(metadata={"torpor.batch": "batch_1"})) is None


def test_the_same_ending_is_the_same_delivery() -> None:
    first, second = (message_of(ended()) for _ in range(2))
    assert first is not None
    assert second is not None

    assert delivery_of(first, "we_1", "https://a/") == delivery_of(second, "we_1", "https://a/")


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(ended(attempt=2, state=JobState.FAILED), id="an ending after a redrive"),
        pytest.param(ended(tenant="other"), id="of another tenant"),
    ],
)
def test_another_ending_is_another_delivery(other: Job) -> None:
    first, second = message_of(ended()), message_of(other)
    assert first is not None
    assert second is not None

    assert delivery_of(first, "we_1", "u").id != delivery_of(second, "we_1", "u").id


def test_two_receivers_get_two_deliveries_of_one_event() -> None:
    message = message_of(ended())
    assert message is not None

    one, two = delivery_of(message, "we_1", "u"), delivery_of(message, "we_2", "u")

    assert one.id != two.id
    assert one.body == two.body


def test_the_reference_library_verifies_what_is_sent() -> None:
    secret = new_secret()

    headers = dict(signed_headers("wh_1", BODY, (secret,), time.time()))

    assert Webhook(secret).verify(BODY, headers)["id"] == "evt_1"


def test_openais_client_verifies_what_is_sent() -> None:
    secret, message = new_secret(), message_of(ended())
    assert message is not None
    body = message.body()

    headers = signed_headers("wh_1", body, (secret,), time.time())
    event = OpenAI(api_key="x").webhooks.unwrap(body, dict(headers), secret=secret)

    assert event.type == "response.completed"
    assert event.data.id == JOB


def test_a_body_that_was_changed_is_found_out() -> None:
    secret = new_secret()
    headers = dict(signed_headers("wh_1", BODY, (secret,), time.time()))

    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(BODY.replace(b"evt_1", b"evt_2"), headers)
    with pytest.raises(InvalidWebhookSignatureError):
        OpenAI(api_key="x").webhooks.unwrap(BODY + b" ", headers, secret=secret)


def test_a_vector_of_the_standard() -> None:
    """The example of the Standard Webhooks reference libraries."""
    headers = signed_headers(
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        b'{"test": 2432232314}',
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",),
        1614265330,
    )

    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


class TestRotation:
    OLD, NEW = new_secret(), new_secret()
    ENDPOINT = Endpoint(id="we_1", tenant="t", url="u", secrets=(Secret(text=OLD),))

    def test_both_secrets_sign_while_they_overlap(self) -> None:
        rotated = self.ENDPOINT.rotated(self.NEW, NOW_S, 3600)

        headers = dict(signed_headers("wh_1", BODY, rotated.signing(time.time()), time.time()))
        still = rotated.signing(NOW_S + 3599)

        assert still == (self.NEW, self.OLD)
        assert len(headers["webhook-signature"].split()) == len(rotated.signing(time.time()))

    @pytest.mark.parametrize("secret", [OLD, NEW], ids=["old", "new"])
    def test_a_receiver_with_either_secret_is_content(self, secret: str) -> None:
        now_s = time.time()
        rotated = self.ENDPOINT.rotated(self.NEW, int(now_s), 3600)

        headers = dict(signed_headers("wh_1", BODY, rotated.signing(now_s), now_s))

        assert Webhook(secret).verify(BODY, headers)

    def test_the_old_secret_signs_no_longer_than_it_should(self) -> None:
        rotated = self.ENDPOINT.rotated(self.NEW, NOW_S, 3600)

        assert rotated.signing(NOW_S + 3600) == (self.NEW,)

    def test_without_an_overlap_the_old_secret_ends_at_once(self) -> None:
        assert self.ENDPOINT.rotated(self.NEW, NOW_S, 0).signing(NOW_S) == (self.NEW,)


def test_a_job_may_bring_its_own_webhook() -> None:
    line = {"webhook": {"url": "https://a.example/"}}

    assert parse_webhook_options(line, {}) == {"torpor.webhook": "https://a.example/"}
    assert parse_webhook_options({}, {"torpor-webhook": "https://b.example/"}) == {
        "torpor.webhook": "https://b.example/"
    }


@pytest.mark.parametrize(
    "webhook",
    ["https://a.example/", {}, {"url": 7}, {"url": ""}, {"url": "https://a", "secret": "x"}, []],
    ids=["a text", "no url", "a number", "empty", "an unknown field", "a list"],
)
def test_a_webhook_that_is_none_is_named(webhook: object) -> None:
    with pytest.raises(InvalidJob) as refused:
        parse_webhook_options({"webhook": webhook}, {})

    assert refused.value.field.startswith("webhook")


def test_only_subscribed_endpoints_get_an_event() -> None:
    endpoint = Endpoint(id="we_1", tenant="t", url="u", event_types=("response.failed",))
    off = Endpoint(id="we_1", tenant="t", url="u", event_types=("a",), switched_off="410")

    assert endpoint.wants("response.failed")
    assert not endpoint.wants("response.completed")
    assert not off.wants("a")
    assert PER_JOB == "we_jobs"
