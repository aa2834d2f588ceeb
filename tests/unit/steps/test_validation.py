"""The step `validate-output`: what is valid, how often is asked again, and what becomes of what stays wrong."""

import json
from dataclasses import replace
from typing import Any

import pytest

from eventing.clock import SystemClock
from eventing.errors import BadRequest
from eventing.job.job import MODELS, AttemptRecord, Job, JobId, JobRequest, JobState
from steps.handler import Again, Continue, Refuse, StepCall, StepOutcome, Withhold
from steps.validation.format_rules import schema_problems
from steps.validation.model_client import ModelClient
from steps.validation.step import ValidateOutput, checks, parse_rule
from steps.validation.verdict import Verdict

SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0}},
    "required": ["age"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
JSON = {"type": "json_object"}
GUARDS = ModelClient(SystemClock())  # asks none here


def called(
    text: str, settings: dict[str, Any], *, rejected: int = 0, deadline_ms: int = 0, **body: Any
) -> StepCall:
    asked = {"model": "small", "messages": [{"role": "user", "content": "How old?"}], **body}
    request = JobRequest(url="/v1/chat/completions", body=asked)
    outcomes = [*["rejected"] * rejected, "completed"]
    history = tuple(
        AttemptRecord(attempt=n, owner="w", started_ms=1, ended_ms=60_001, outcome=outcome)
        for n, outcome in enumerate(outcomes, 1)
    )
    job = Job(id=JobId("job_1"), state=JobState.IN_PROGRESS, request=request, history=history)
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    return StepCall(
        job=job,
        request=request,
        settings=settings,
        attempt=1,
        deadline_ms=deadline_ms,
        candidate={"choices": [choice]},
    )


async def judged(text: str, settings: dict[str, Any], **more: Any) -> StepOutcome:
    return await ValidateOutput(checks(GUARDS), SystemClock(), CountedInMemory())(
        called(text, settings, **more)
    )


@pytest.mark.parametrize(
    ("text", "body", "settings", "is_valid"),
    [
        ("anything", {}, {}, True),
        ('{"age": 3}', {"response_format": JSON}, {}, True),
        ("[3]", {"response_format": JSON}, {}, False),
        ("not json", {"response_format": JSON}, {}, False),
        ('{"age": 3}', {"response_format": FORM}, {}, True),
        ('{"age": -3}', {"response_format": FORM}, {}, False),
        ('{"age": 3, "x": 1}', {"response_format": FORM}, {}, False),
        ('{"age": 3}', {}, {"format": {"schema": SCHEMA}}, True),
        ("{}", {}, {"format": {"schema": SCHEMA}}, False),
        ("long", {}, {"format": {"max_characters": 3}}, False),
    ],
)
async def test_an_answer_has_the_form_that_was_asked_for(
    text: str, body: dict[str, Any], settings: dict[str, Any], is_valid: bool
) -> None:
    outcome = await judged(text, settings, **body)

    assert isinstance(outcome, Continue)
    assert (outcome.result, outcome.detail["valid"]) == (None, is_valid)


async def test_a_wrong_answer_is_asked_again_with_what_was_wrong() -> None:
    outcome = await judged('{"age": "x"}', {"repairs": 2}, response_format=FORM)

    assert isinstance(outcome, Again)
    assert outcome.request is not None
    assert outcome.model is None
    first, said, asked = outcome.request.body["messages"]
    assert (first["content"], said["content"]) == ("How old?", '{"age": "x"}')
    assert "$.age: 'x' is not of type 'integer'" in asked["content"]
    assert "'x'" not in json.dumps(dict(outcome.detail))  # no caller is shown the text


async def test_a_second_repair_takes_the_place_of_the_first() -> None:
    first = await judged("wrong", {"repairs": 2}, response_format=JSON)
    assert isinstance(first, Again)
    assert first.request is not None

    messages = first.request.body["messages"]
    second = await judged(
        "worse", {"repairs": 2}, rejected=1, response_format=JSON, messages=messages
    )

    assert isinstance(second, Again)
    assert second.request is not None
    contents = [each["content"] for each in second.request.body["messages"]]
    assert (len(contents), contents[1]) == (3, "worse")


async def test_when_repairs_are_used_up_the_next_models_are_asked_in_turn() -> None:
    settings = {"repairs": 1, "cascade": ["middle", "large"]}
    asked = [
        await judged("wrong", settings, rejected=count, response_format=JSON) for count in range(4)
    ]

    models = [each.model for each in asked if isinstance(each, Again)]
    assert models == [None, "middle", "large"]
    assert isinstance(asked[3], Continue)
    assert asked[3].detail["valid"] is False


async def test_what_stays_wrong_is_withheld_where_the_step_blocks() -> None:
    outcome = await judged(
        "wrong", {"mode": "block", "repairs": 1}, rejected=1, response_format=JSON
    )

    assert isinstance(outcome, Withhold)
    assert outcome.detail["failed"] == ["format"]


async def test_without_time_for_another_answer_none_is_asked_for() -> None:
    soon_ms = SystemClock().wall_ms() + 30_000  # the last answer took a minute

    outcome = await judged("wrong", {"repairs": 2}, deadline_ms=soon_ms, response_format=JSON)

    assert isinstance(outcome, Continue)


async def test_an_answer_that_must_not_be_shown_is_not_repaired() -> None:
    async def forbidden(call: StepCall) -> Verdict:
        return Verdict(problems=("it has a secret",), may_repair=False, detail={"flagged": True})

    step = ValidateOutput({"moderation": forbidden}, SystemClock(), CountedInMemory())
    settings = {"mode": "block", "repairs": 3, "moderation": {}}
    outcome = await step(called("x", settings))

    assert isinstance(outcome, Withhold)
    assert outcome.detail["moderation"] == {"flagged": True}


async def test_the_answer_of_another_model_says_why_it_was_asked() -> None:
    settings = {"cascade": ["large"]}
    call = called('{"a": 1}', settings, rejected=1, response_format=JSON)
    other = JobRequest(url=call.request.url, body={**call.request.body, "model": "large"})
    step = ValidateOutput(checks(GUARDS), SystemClock(), CountedInMemory())
    outcome = await step(
        StepCall(
            job=call.job,
            request=other,
            settings=settings,
            attempt=2,
            deadline_ms=0,
            candidate=call.candidate,
        )
    )

    assert outcome.detail["asked"] == "small"
    assert outcome.detail["answered"] == "large"
    assert outcome.detail["reason"] == "an answer was not valid"


async def test_a_prompt_is_repaired_too() -> None:
    request = JobRequest(
        url="/v1/completions",
        body={"model": "m", "prompt": "How?", "response_format": JSON},
    )
    job = Job(id=JobId("job_1"), state=JobState.IN_PROGRESS, request=request)
    call = StepCall(
        job=job,
        request=request,
        settings={"repairs": 1},
        attempt=1,
        deadline_ms=0,
        candidate={"choices": [{"text": "wrong"}]},
    )

    outcome = await ValidateOutput(checks(GUARDS), SystemClock(), CountedInMemory())(call)

    assert isinstance(outcome, Again)
    assert outcome.request is not None
    assert outcome.request.body["prompt"].startswith("How?\n\nAn answer to this was:\nwrong\n")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "(a+)+$"},
        {"$ref": "http://127.0.0.1:9/x"},
        {"type": 7},
        {
            "$defs": {
                **{f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)},
                "d40": {},
            },
            "$ref": "#/$defs/d0",
        },
    ],
    ids=["pattern", "elsewhere", "no schema", "nest"],
)
async def test_a_hostile_schema_costs_bounded_time_and_calls_nobody(schema: dict[str, Any]) -> None:
    (problem,) = await schema_problems(schema, "a" * 40 + "!")

    assert "could not be checked" in problem


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"mode": "delete"}, "mode"),
        ({"repairs": 9}, "repairs"),
        ({"repairs": True}, "repairs"),
        ({"cascade": "large"}, "cascade"),
        ({"cascade": ["a"] * 9}, "cascade"),
        ({"format": {"pattern": "x"}}, "format.pattern"),
        ({"format": {"schema": 3}}, "format.schema"),
        ({"repairs": 1, "hold": "window"}, "hold"),
        ({"colour": 1}, "colour"),
    ],
)
async def test_wrong_settings_are_named(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRequest) as raised:
        parse_rule(settings)
    assert raised.value.field == field
    assert isinstance(await judged("x", settings), Refuse)


class CountedInMemory:
    """As the store counts: each answer once."""

    def __init__(self) -> None:
        self.made: set[tuple[str, int]] = set()

    async def take(self, job: Job, tier: int, most: int) -> bool:
        if len(self.made | {(job.id, tier)}) > most:
            return False
        self.made.add((job.id, tier))
        return True


@pytest.mark.parametrize(
    ("per_day", "tiers"), [(1, [True, True, False]), ({"acme": 0, "default": 2}, [True] * 3)]
)
async def test_a_tenant_has_so_many_answers_by_better_models_in_a_day(
    per_day: object, tiers: list[bool]
) -> None:
    """The same answer, judged again after a crash, is one."""
    step = ValidateOutput(checks(GUARDS), SystemClock(), CountedInMemory())
    settings = {"mode": "block", "cascade": ["large"], "cascade_per_day": per_day}
    first = called("no json", settings, response_format=JSON)
    other = replace(first, job=replace(first.job, id=JobId("job_2")))

    outcomes = [await step(call) for call in (first, first, other)]

    assert [isinstance(outcome, Again) for outcome in outcomes] == tiers
    if not tiers[-1]:
        assert isinstance(outcomes[-1], Withhold)
        assert outcomes[-1].detail["cascade"] == "used up for today"


async def test_a_cascade_leaves_out_what_the_key_may_not_use() -> None:
    step = ValidateOutput(checks(GUARDS), SystemClock(), CountedInMemory())
    call = called("no json", {"cascade": ["large", "middle"]}, response_format=JSON)
    limited = replace(call, job=replace(call.job, metadata={MODELS: "middle small"}))

    outcome = await step(limited)

    assert isinstance(outcome, Again)
    assert outcome.model == "middle"


@pytest.mark.parametrize("value", [-1, True, "9", {"acme": 1.5}, {1: 2}, []])
async def test_an_invalid_number_of_better_answers_a_day_is_named(value: object) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_rule({"cascade": ["large"], "cascade_per_day": value})

    assert refused.value.field == "cascade_per_day"
