"""Request and result events, against the published schemas."""

from dataclasses import replace
from pathlib import Path

import jsonschema
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.audit.event import AUDITED
from eventing.cloudevent.budget_event import SOFT_BUDGET_PASSED
from eventing.cloudevent.event import Event, build_structured, parse_http
from eventing.cloudevent.job_event import (
    PLANNED,
    PREPARED,
    REQUESTED,
    attempt_of,
    job_of,
    planned_event,
    request_event,
    tenant_of,
)
from eventing.cloudevent.request_id import EXTENSION, KEPT
from eventing.cloudevent.result_event import (
    CANCELLED,
    COMPLETED,
    DATAREF_ABOVE_BYTES,
    FAILED,
    RESULT_TYPES,
    ending_of,
    result_event,
    timings,
)
from eventing.cloudevent.tool_event import APPROVAL_ANSWERED, APPROVAL_REQUESTED
from eventing.errors import InvalidJob
from eventing.job.job import (
    API_SOURCE,
    AttemptRecord,
    Job,
    JobError,
    JobRequest,
    JobState,
    Lane,
    derive_job_id,
    new_job_id,
)
from eventing.job.plan import Plan, PlannedStep

SCHEMAS = Path(__file__).parents[3] / "docs" / "schemas"
REQUEST = JobRequest(
    url="/v1/chat/completions",
    body={"model": "m", "messages": [{"role": "user", "content": "why? ☃"}]},
    custom_id="line-7",
)
NOW_MS = 1_800_000_000_123
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
JOB = Job(
    id=new_job_id(),
    state=JobState.QUEUED,
    request=REQUEST,
    tenant="acme",
    lane=Lane.INTERACTIVE,
    traceparent=TRACE,
    created_ms=NOW_MS,
    deadline_ms=NOW_MS + 60_000,
)
ENDED = replace(
    JOB,
    state=JobState.COMPLETED,
    attempt=2,
    started_ms=NOW_MS + 10,
    first_token_ms=NOW_MS + 20,
    finished_ms=NOW_MS + 500,
    result={"status_code": 200, "body": {"choices": []}},
    usage={"total_tokens": 3},
    history=(
        AttemptRecord(attempt=1, owner="w", started_ms=NOW_MS, ended_ms=NOW_MS + 5, outcome="lost"),
        AttemptRecord(attempt=2, owner="w", started_ms=NOW_MS + 6, outcome="completed"),
    ),
)
ERROR = JobError(code="exhausted", message="every attempt was lost", field="")
ENDINGS = {
    "completed": ENDED,
    "incomplete": replace(ENDED, state=JobState.INCOMPLETE),
    "failed": replace(ENDED, state=JobState.FAILED, result=None, usage=None, error=ERROR),
    "cancelled": replace(ENDED, state=JobState.CANCELLED, result=None, usage=None),
    "never started": replace(
        JOB, state=JobState.CANCELLED, finished_ms=NOW_MS + 1, deadline_ms=0, traceparent=""
    ),
    "thin": replace(ENDED, result={"body": "x" * DATAREF_ABOVE_BYTES}),
}


def schema(event_type: str) -> dict[str, object]:
    return dict(orjson.loads((SCHEMAS / f"{event_type}.json").read_bytes()))


def conforms(event: Event) -> bool:
    """True when the event, as it travels in structured mode, is valid under its own schema."""
    _, body = build_structured(event)
    jsonschema.validate(
        orjson.loads(body),
        schema(event.type),
        format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
    )
    return True


class TestSchemas:
    @pytest.mark.parametrize("event_type", [REQUESTED, *RESULT_TYPES])
    def test_a_published_schema_is_one_and_is_named_by_its_type(self, event_type: str) -> None:
        document = schema(event_type)

        jsonschema.Draft202012Validator.check_schema(document)
        assert document["title"] == event_type

    @pytest.mark.parametrize(
        "job",
        [
            JOB,
            replace(JOB, deadline_ms=0, traceparent="", request=replace(REQUEST, custom_id=None)),
        ],
        ids=["with all", "with what must be"],
    )
    def test_request_events_keep_their_schema(self, job: Job) -> None:
        assert conforms(request_event(job))

    @pytest.mark.parametrize("job", ENDINGS.values(), ids=ENDINGS.keys())
    def test_result_events_keep_their_schema(self, job: Job) -> None:
        assert conforms(result_event(job))

    def test_there_is_a_schema_for_each_type_and_no_other(self) -> None:
        types = {REQUESTED, *RESULT_TYPES, AUDITED, SOFT_BUDGET_PASSED}
        types |= {APPROVAL_REQUESTED, APPROVAL_ANSWERED}
        assert {path.stem for path in SCHEMAS.glob("*.json")} == types

    @pytest.mark.parametrize(
        "broken",
        [
            lambda e: replace(e, data=b"{}"),
            lambda e: replace(e, type=COMPLETED),
            lambda e: replace(e, extensions={**e.extensions, "priority": "urgent"}),
            lambda e: replace(e, extensions={**e.extensions, "expirytime": "tomorrow"}),
        ],
        ids=["no data", "other type", "other lane", "no time"],
    )
    def test_the_request_schema_refuses_what_is_none(self, broken: object) -> None:
        event = broken(request_event(JOB))  # type: ignore[operator]

        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(
                orjson.loads(build_structured(event)[1]),
                schema(REQUESTED),
                format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
            )


class TestRequestEvents:
    def test_the_event_of_a_job_asks_for_that_job(self) -> None:
        new = job_of(request_event(JOB))

        assert (new.id, new.request, new.tenant, new.lane) == (JOB.id, REQUEST, "acme", JOB.lane)
        assert (new.deadline_ms, new.traceparent) == (JOB.deadline_ms, TRACE)

    def test_the_callers_own_id_goes_with_the_job_to_its_end(self) -> None:
        named = replace(ENDED, metadata={KEPT: "order-17"})
        asked, told = request_event(named), result_event(named)

        assert (asked.extensions[EXTENSION], told.extensions[EXTENSION]) == ("order-17",) * 2
        assert job_of(asked).metadata == {KEPT: "order-17"}
        assert conforms(asked)
        assert conforms(told)

    @pytest.mark.parametrize("text", ["", "two words", "a\nb", "x" * 129])
    def test_an_id_that_cannot_stand_in_a_log_line_is_left_out(self, text: str) -> None:
        event = replace(request_event(JOB), extensions={EXTENSION: text})

        assert job_of(event).metadata == {}

    def test_the_same_job_gives_the_same_identity(self) -> None:
        running = replace(JOB, state=JobState.IN_PROGRESS, attempt=3)

        assert request_event(running).identity == request_event(JOB).identity

    def test_an_event_of_another_producer_asks_for_a_derived_job(self) -> None:
        event = Event(id="42", source="/shop", type=REQUESTED, data=REQUEST.to_json())

        new = job_of(event)

        assert new.id == derive_job_id("/shop", "42")
        assert (new.source, new.event_id) == ("/shop", "42")
        assert (new.tenant, new.lane, new.deadline_ms) == ("default", Lane.DEFAULT, 0)

    @pytest.mark.parametrize(
        ("name", "hint"),
        [("urls", "did you mean url"), ("priority", "there are url, body, custom_id, method")],
    )
    def test_a_field_of_another_producer_that_is_not_there_is_refused(
        self, name: str, hint: str
    ) -> None:
        data = orjson.dumps(orjson.loads(REQUEST.to_json()) | {name: "batch"})

        with pytest.raises(InvalidJob, match=hint) as refusal:
            job_of(Event(id="42", source="/shop", type=REQUESTED, data=data))
        assert refusal.value.field == name

    def test_a_newer_api_may_say_more_of_its_job(self) -> None:
        event = request_event(JOB)
        data = orjson.dumps(orjson.loads(event.data) | {"later": 1})

        assert job_of(replace(event, data=data)).request == JOB.request

    def test_a_job_of_another_producer_is_asked_for_in_its_producers_name(self) -> None:
        event = Event(id="42", source="/shop", type=REQUESTED, data=REQUEST.to_json())
        new = job_of(event)
        job = Job(
            id=new.id,
            state=JobState.QUEUED,
            request=new.request,
            source=new.source,
            event_id=new.event_id,
        )

        assert request_event(job).identity == event.identity
        assert job_of(request_event(job)).id == new.id

    @pytest.mark.parametrize(
        ("extensions", "field"),
        [
            ({"priority": "urgent"}, "priority"),
            ({"priority": ""}, "priority"),
            ({"expirytime": "tomorrow"}, "expirytime"),
            ({"expirytime": "2026-11-21T03:00:00"}, "expirytime"),
            ({"expirytime": "9999-12-31T23:59:59-14:00"}, "expirytime"),
            ({"expirytime": "0001-01-01T00:00:00+14:00"}, "expirytime"),
            ({"tenant": ""}, "tenant"),
            ({"tenant": "x" * 65}, "tenant"),
            ({"tenant": "é" * 33}, "tenant"),
            ({"tenant": "a\nb"}, "tenant"),
        ],
    )
    def test_an_extension_that_cannot_be_meant_is_refused_by_name(
        self, extensions: dict[str, str], field: str
    ) -> None:
        event = replace(request_event(JOB), extensions=extensions)

        with pytest.raises(InvalidJob) as caught:
            job_of(event)

        assert caught.value.field == field

    @pytest.mark.parametrize("moment", ["1970-01-01T00:00:00Z", "1969-07-20T20:17:40Z"])
    def test_a_deadline_long_past_is_a_deadline(self, moment: str) -> None:
        # 0 means «none» in a job; a time at or before the epoch must not become it.
        event = replace(request_event(JOB), extensions={"expirytime": moment})

        assert job_of(event).deadline_ms == 1

    def test_a_deadline_is_kept_to_the_millisecond(self) -> None:
        assert request_event(JOB).extensions["expirytime"] == "2027-01-15T08:01:00.123Z"

    @pytest.mark.parametrize("name", ["x", "x" * 64, "é" * 32])
    def test_a_tenant_of_one_to_64_bytes_is_taken(self, name: str) -> None:
        assert tenant_of(replace(request_event(JOB), extensions={"tenant": name})) == name

    @pytest.mark.parametrize(
        ("text", "attempt"),
        [("999999", 999_999), ("1000000", None), ("\u0663", None), ("-1", None), ("", None)],
    )
    def test_an_attempt_is_a_number_of_at_most_six_digits(
        self, text: str, attempt: int | None
    ) -> None:
        assert attempt_of(replace(request_event(JOB), extensions={"attempt": text})) == attempt

    @given(st.text(max_size=80))
    def test_any_tenant_is_taken_or_refused(self, name: str) -> None:
        event = Event(id="1", source="/s", type=REQUESTED, extensions={"tenant": name})

        try:
            assert tenant_of(event) == name
        except InvalidJob as error:
            assert error.field == "tenant"  # noqa: PT017

    @given(st.datetimes(timezones=st.timezones()))
    def test_any_time_is_a_deadline_or_refused(self, moment: object) -> None:
        event = replace(request_event(JOB), extensions={"expirytime": moment.isoformat()})  # type: ignore[attr-defined]

        try:
            new = job_of(event)
        except InvalidJob as error:
            assert error.field == "expirytime"  # noqa: PT017
        else:
            assert request_event(replace(JOB, deadline_ms=new.deadline_ms)).extensions


class TestResultEvents:
    @pytest.mark.parametrize(
        ("name", "event_type"),
        [
            ("completed", COMPLETED),
            ("incomplete", COMPLETED),
            ("failed", FAILED),
            ("cancelled", CANCELLED),
        ],
    )
    def test_each_end_has_its_type(self, name: str, event_type: str) -> None:
        assert result_event(ENDINGS[name]).type == event_type

    def test_the_same_end_gives_the_same_identity(self) -> None:
        assert result_event(ENDED) == result_event(ENDED)

    def test_a_second_life_ends_with_another_identity(self) -> None:
        second = replace(ENDED, attempt=3)

        assert result_event(second).identity != result_event(ENDED).identity

    @pytest.mark.parametrize("job", ENDINGS.values(), ids=ENDINGS.keys())
    def test_the_end_can_be_read_back(self, job: Job) -> None:
        job_id, ending = ending_of(result_event(job))

        assert (job_id, ending.state, ending.error) == (job.id, job.state, job.error)

    def test_a_result_over_the_limit_travels_as_a_reference(self) -> None:
        event = result_event(ENDINGS["thin"])

        assert event.extensions["dataref"] == f"/v1/jobs/{JOB.id}/result"
        assert len(event.data) < DATAREF_ABOVE_BYTES
        assert orjson.loads(event.data)["response"] is None

    def test_a_result_at_the_limit_travels_with_the_event(self) -> None:
        bare = len(result_event(replace(ENDED, result={"body": ""})).data)
        at_limit = replace(ENDED, result={"body": "x" * (DATAREF_ABOVE_BYTES - bare)})
        event = result_event(at_limit)

        assert len(event.data) == DATAREF_ABOVE_BYTES
        assert "dataref" not in event.extensions

    @pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"[" * 5000, b"\xff"])
    def test_data_that_is_not_an_object_is_refused(self, data: bytes) -> None:
        with pytest.raises(InvalidJob):
            ending_of(Event(id="1", source="/s", type=COMPLETED, subject=JOB.id, data=data))

    @pytest.mark.parametrize(
        ("type_", "changes", "field"),
        [
            *((kind, {"state": "queued"}, "data.state") for kind in RESULT_TYPES),
            *((kind, {"state": "in_progress"}, "data.state") for kind in RESULT_TYPES),
            (COMPLETED, {"state": "failed", "error": {"code": "x"}}, "data.state"),
            (FAILED, {"state": "completed"}, "data.state"),
            (CANCELLED, {"state": "failed"}, "data.state"),
            (COMPLETED, {"state": ["completed"]}, "data.state"),
            (COMPLETED, {"state": None}, "data.state"),
            (COMPLETED, {"id": "job_" + "1" * 24}, "data.id"),
            (COMPLETED, {"usage": [1]}, "data.usage"),
            (COMPLETED, {"usage": "many"}, "data.usage"),
            (COMPLETED, {"usage": {"total_tokens": "3"}}, "data.usage.total_tokens"),
            (COMPLETED, {"usage": {"prompt_tokens": -1}}, "data.usage.prompt_tokens"),
            (COMPLETED, {"usage": {"completion_tokens": 1.5}}, "data.usage.completion_tokens"),
            (COMPLETED, {"usage": {"completion_tokens": True}}, "data.usage.completion_tokens"),
            (COMPLETED, {"usage": {"total_tokens": 2**63}}, "data.usage.total_tokens"),
            (COMPLETED, {"response": [1]}, "data.response"),
            (COMPLETED, {"response": "text"}, "data.response"),
            (COMPLETED, {"error": 1}, "data.error"),
            (FAILED, {"state": "failed"}, "data.error"),
            (FAILED, {"state": "failed", "error": {"x": 1}}, "data.error.code"),
            (FAILED, {"state": "failed", "error": {"code": 1}}, "data.error.code"),
            (FAILED, {"state": "failed", "error": {"code": "x", "message": {}}}, "data.error.message"),
        ],
        ids=str,
    )  # fmt: skip
    def test_every_field_of_an_ending_is_judged(
        self, type_: str, changes: dict[str, object], field: str
    ) -> None:
        data = orjson.dumps({"id": JOB.id, "state": "completed"} | changes)

        with pytest.raises(InvalidJob) as refused:
            ending_of(Event(id="1", source="/s", type=type_, subject=JOB.id, data=data))

        assert refused.value.field == field

    @pytest.mark.parametrize("subject", ["", "job_1", "torpor:jobs", "JOB_" + "A" * 24])
    def test_an_ending_is_of_a_job(self, subject: str) -> None:
        data = orjson.dumps({"state": "completed"})

        with pytest.raises(InvalidJob, match="subject"):
            ending_of(Event(id="1", source="/s", type=COMPLETED, subject=subject, data=data))

    def test_fields_of_a_newer_version_are_passed_over(self) -> None:
        error = {"code": "x", "message": "y", "field": "", "hint": "newer"}
        data = orjson.dumps({"state": "failed", "error": error, "newer": [1]})

        _, ending = ending_of(Event(id="1", source="/s", type=FAILED, subject=JOB.id, data=data))

        assert ending.error == JobError(code="x", message="y")

    def test_a_result_event_survives_structured_mode(self) -> None:
        event = result_event(ENDED)

        assert ending_of(parse_http(*build_structured(event))) == ending_of(event)

    def test_its_source_is_not_the_apis(self) -> None:
        # A result event must never be taken for a request of the api.
        assert result_event(ENDED).source != API_SOURCE


class TestTimings:
    def test_each_part_is_timed_from_when_the_job_came(self) -> None:
        assert timings(ENDED) == {"queued_ms": 10, "first_token_ms": 20, "total_ms": 500}

    def test_a_phase_that_has_not_begun_has_no_time(self) -> None:
        assert timings(JOB) == {}


@pytest.mark.parametrize("trace", ["x" * 30_000, "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "00"])
def test_a_malformed_traceparent_is_not_passed_on(trace: str) -> None:
    """A result with a header of 30,000 letters was never taken by anybody."""
    asked = request_event(replace(JOB, traceparent=TRACE))
    told = job_of(replace(asked, extensions={**asked.extensions, "traceparent": trace}))

    assert told.traceparent == ""
    for event in (request_event, result_event):
        assert "traceparent" not in event(replace(ENDED, traceparent=trace)).extensions


def test_a_model_name_that_fits_into_no_header_stays_in_the_data() -> None:
    long = replace(ENDED, request=replace(REQUEST, body={**REQUEST.body, "model": "m" * 30_000}))
    event = result_event(long)

    assert "model" not in event.extensions
    assert orjson.loads(event.data)["model"] == "m" * 30_000


@pytest.mark.parametrize(
    ("plan", "type_", "step"),
    [
        pytest.param(None, REQUESTED, "", id="no plan"),
        pytest.param(Plan(steps=()), PREPARED, "", id="every step is left out"),
        pytest.param(Plan(steps=(PlannedStep(name="a"), PlannedStep(name="b"))), PLANNED, "a"),
    ],
)
def test_a_request_goes_on_to_its_first_step(plan: Plan | None, type_: str, step: str) -> None:
    event = planned_event(request_event(JOB), plan)

    assert (event.type, event.extensions.get("step", "")) == (type_, step)
    assert replace(event, type=REQUESTED, extensions={}) == replace(
        request_event(JOB), extensions={}
    )


def test_an_event_that_names_no_attempt_is_of_none() -> None:
    assert job_of(replace(request_event(JOB), extensions={"tenant": "acme"})).attempt == 0
