"""The job: identity, request and states, as pure values."""

from dataclasses import FrozenInstanceError, fields

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventing.errors import InvalidJob
from eventing.job.job import (
    API_SOURCE,
    AttemptRecord,
    Job,
    JobError,
    JobRequest,
    JobState,
    derive_job_id,
    event_identity,
    is_job_id,
    job_id_of_identity,
    new_job_id,
    parse_request,
)
from eventing.job.plan import Plan, PlannedStep, StepRecord, StepStatus

# What a parsed event can hold: no control characters. Few letters, so that names often meet.
_WORD = st.text("a/:\x20é", min_size=1, max_size=3)
NAMED = st.tuples(_WORD.map("/s/{}".format), _WORD, _WORD | st.just("default"))
"""Source, id and tenant of a producer's event."""
CHAT = {"model": "m", "messages": [{"role": "user", "content": "why?"}]}
URL = "/v1/chat/completions"


def line(body: object = None, **changes: object) -> bytes:
    return orjson.dumps({"url": URL, "body": CHAT if body is None else body} | changes)


TALK = CHAT["messages"]


def chats(**changes: object) -> bytes:
    """A call of two conversations."""
    body = {"model": "m", "messages": [TALK, TALK]} | changes
    return line(body, url="/v1/chat/completions/batch")


class TestIdentity:
    def test_a_new_id_is_a_job_id_and_never_the_same(self) -> None:
        ids = {new_job_id() for _ in range(1000)}

        assert len(ids) == 1000
        assert all(is_job_id(job_id) for job_id in ids)

    def test_an_event_of_our_api_names_its_job(self) -> None:
        job_id = new_job_id()

        assert derive_job_id(API_SOURCE, job_id) == job_id

    @given(st.text(), st.text())
    def test_any_event_names_one_job(self, source: str, event_id: str) -> None:
        job_id = derive_job_id(source, event_id)

        assert is_job_id(job_id)
        assert derive_job_id(source, event_id) == job_id

    def test_where_source_ends_and_id_begins_matters(self) -> None:
        assert derive_job_id("/a", "b") != derive_job_id("/ab", "") != derive_job_id("/", "ab")

    def test_an_external_source_cannot_name_another_producers_job(self) -> None:
        job_id = new_job_id()

        assert derive_job_id("/mallory", job_id) != job_id

    @given(NAMED, NAMED)
    def test_two_tenants_events_never_name_the_same_job(
        self, one: tuple[str, str, str], other: tuple[str, str, str]
    ) -> None:
        assert (derive_job_id(*one) == derive_job_id(*other)) == (one == other)

    @given(NAMED)
    def test_a_tenants_event_is_not_the_default_tenants(self, named: tuple[str, str, str]) -> None:
        source, event_id, tenant = named

        is_default = tenant == "default"
        assert (derive_job_id(*named) == derive_job_id(source, event_id)) == is_default

    @given(NAMED)
    def test_a_queue_members_identity_gives_its_job(self, named: tuple[str, str, str]) -> None:
        assert job_id_of_identity(event_identity(*named)) == derive_job_id(*named)

    @pytest.mark.parametrize(
        "text",
        ["", "job_", "job_" + "g" * 24, "job_" + "A" * 24, "job_" + "0" * 23, "0" * 24, "job_" * 7],
    )
    def test_anything_else_is_no_job_id(self, text: str) -> None:
        assert not is_job_id(text)


class TestStates:
    @pytest.mark.parametrize("state", JobState)
    def test_only_queued_and_in_progress_go_on(self, state: JobState) -> None:
        assert state.is_terminal == (state not in (JobState.QUEUED, JobState.IN_PROGRESS))


class TestRequest:
    @pytest.mark.parametrize(
        ("url", "body"),
        [
            (URL, CHAT),
            (URL, CHAT | {"max_tokens": 1, "max_completion_tokens": 2}),
            (URL, {"model": "m", "messages": [{"role": "user", "content": ["why?"]}]}),
            (URL, {"model": "m", "messages": [{"role": "assistant", "content": None}]}),
            ("/v1/completions", {"model": "m", "prompt": "why?"}),
            ("/v1/completions", {"model": "m", "prompt": [1, 2]}),
            ("/v1/embeddings", {"model": "m", "input": ["a", "b"]}),
        ],
    )
    def test_an_openai_call_is_a_request(self, url: str, body: dict[str, object]) -> None:
        request = parse_request(line(body, url=url, custom_id="c", method="POST"))

        assert request == JobRequest(url=url, body=body, custom_id="c")
        assert request.model == "m"

    @pytest.mark.parametrize(
        ("data", "field"),
        [
            pytest.param(b"", "data", id="empty"),
            pytest.param(b"{", "data", id="cut"),
            pytest.param(b"[]", "data", id="list"),
            pytest.param(b"null", "data", id="null"),
            pytest.param(b"\xff", "data", id="not utf-8"),
            pytest.param(b"[" * 100_000, "data", id="deep"),
            pytest.param(line(method="GET"), "method", id="get"),
            pytest.param(line(method=None), "method", id="no method"),
            pytest.param(line(custom_id=7), "custom_id", id="number as custom_id"),
            pytest.param(line(url="/v1/images"), "url", id="unknown url"),
            pytest.param(line(url=None), "url", id="no url"),
            pytest.param(line(url=["/v1"]), "url", id="list as url"),
            pytest.param(orjson.dumps({"url": URL}), "body", id="no body"),
            pytest.param(line([]), "body", id="list as body"),
            pytest.param(line("x"), "body", id="text as body"),
            pytest.param(line({"messages": []}), "body.model", id="no model"),
            pytest.param(line(CHAT | {"model": ""}), "body.model", id="empty model"),
            pytest.param(line(CHAT | {"model": 7}), "body.model", id="number as model"),
            pytest.param(line({"model": "m"}), "body.messages", id="no messages"),
            pytest.param(line(CHAT | {"messages": []}), "body.messages", id="empty messages"),
            pytest.param(line(CHAT | {"messages": {}}), "body.messages", id="object as messages"),
            pytest.param(line(CHAT | {"messages": ["x"]}), "body.messages[0]", id="text message"),
            pytest.param(line(CHAT | {"messages": [{}]}), "body.messages[0]", id="no role"),
            pytest.param(
                line(CHAT | {"messages": [{"role": "user", "content": 7}]}),
                "body.messages[0].content",
                id="number as content",
            ),
            pytest.param(
                line(CHAT | {"messages": [{"role": "user", "content": ""}]}),
                "body.messages[0].content",
                id="empty question",
            ),
            pytest.param(
                line({"model": "m"}, url="/v1/completions"), "body.prompt", id="no prompt"
            ),
            pytest.param(line({"model": "m"}, url="/v1/embeddings"), "body.input", id="no input"),
            pytest.param(chats(messages=[]), "body.messages", id="no conversations"),
            pytest.param(chats(messages=[[]]), "body.messages[0]", id="an empty conversation"),
            pytest.param(chats(messages=TALK), "body.messages[0]", id="one conversation, bare"),
            pytest.param(
                chats(messages=[TALK, [{"role": "wizard"}]]),
                "body.messages[1][0].role",
                id="a wizard in the second conversation",
            ),
            pytest.param(chats(messages=[TALK] * 129), "body.messages", id="129 conversations"),
            pytest.param(chats(stream=True), "body.stream", id="conversations streamed"),
            pytest.param(chats(tools=[{}]), "body.tools", id="conversations with tools"),
            pytest.param(chats(n=2), "body.n", id="two answers to each conversation"),
            pytest.param(line(CHAT | {"max_tokens": 0}), "body.max_tokens", id="no tokens"),
            pytest.param(line(CHAT | {"max_tokens": True}), "body.max_tokens", id="true tokens"),
            pytest.param(line(CHAT | {"max_tokens": 1.5}), "body.max_tokens", id="half a token"),
            pytest.param(
                line(CHAT | {"max_completion_tokens": -1}),
                "body.max_completion_tokens",
                id="less than no tokens",
            ),
        ],
    )
    def test_an_invalid_request_is_refused_by_field(self, data: bytes, field: str) -> None:
        with pytest.raises(InvalidJob) as caught:
            parse_request(data)

        assert caught.value.field == field
        assert caught.value.status == 422

    def test_a_refusal_repeats_nothing_long(self) -> None:
        secret = "canary" * 1000

        with pytest.raises(InvalidJob) as caught:
            parse_request(line(method=secret))

        assert len(caught.value.message) < 120

    @given(
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.text(max_size=5)),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3),
                st.dictionaries(
                    st.sampled_from(
                        ["url", "body", "model", "messages", "role", "content", "method"]
                    ),
                    inner,
                ),
            ),
        )
    )
    def test_no_data_does_worse_than_a_refusal(self, value: object) -> None:
        for data in (orjson.dumps(value), line(value)):
            try:
                parse_request(data)
            except InvalidJob as error:
                assert error.field != "", "a refusal names its field"  # noqa: PT017

    @given(
        st.text(min_size=1),
        st.one_of(st.none(), st.text()),
        st.dictionaries(
            st.text().map("x{}".format), st.one_of(st.text(), st.integers(0, 2**60), st.booleans())
        ),
    )
    def test_a_request_survives_its_json(
        self, question: str, custom_id: str | None, extra: dict[str, object]
    ) -> None:
        body = extra | {"model": "m", "messages": [{"role": "user", "content": question}]}
        request = JobRequest(url=URL, body=body, custom_id=custom_id)

        assert parse_request(request.to_json()) == request


def test_an_attempt_that_is_recorded_without_more_resumed_from_nothing() -> None:
    begun = AttemptRecord(attempt=1, owner="p", started_ms=5)

    assert (begun.ended_ms, begun.outcome, begun.resumed_from) == (0, "", 0)


@pytest.mark.parametrize(
    "value",
    [
        AttemptRecord(attempt=1, owner="p", started_ms=5),
        JobError(code="c", message="m"),
        JobRequest(url=URL, body=CHAT),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_jobs_parts_cannot_be_changed(value: object) -> None:
    (first, *_) = fields(value)  # type: ignore[arg-type]

    with pytest.raises(FrozenInstanceError):
        setattr(value, first.name, None)


@pytest.mark.parametrize(
    ("state", "attempts", "shown"),
    [
        (JobState.FAILED, 1, StepStatus.FAILED),
        (JobState.CANCELLED, 1, StepStatus.CANCELLED),
        (JobState.COMPLETED, 1, StepStatus.CANCELLED),
        (JobState.INCOMPLETE, 1, StepStatus.CANCELLED),
        (JobState.FAILED, 0, StepStatus.NOT_RUN),
        (JobState.IN_PROGRESS, 1, StepStatus.IN_PROGRESS),
    ],
)
def test_a_step_that_the_jobs_end_cut_off_says_how_the_job_ended(
    state: JobState, attempts: int, shown: StepStatus
) -> None:
    begun = StepRecord(step="a", status=StepStatus.IN_PROGRESS, started_ms=5, attempts=attempts)
    job = Job(
        id=new_job_id(),
        state=state,
        request=JobRequest(url=URL, body=CHAT),
        finished_ms=9,
        plan=Plan(steps=(PlannedStep(name="a"), PlannedStep(name="b"))),
        pipeline=(begun,),
    )

    first, second = job.steps

    assert first.status is shown
    assert first.ended_ms == (9 if attempts and state.is_terminal else 0)
    assert second.status is (StepStatus.NOT_RUN if state.is_terminal else StepStatus.QUEUED)
