"""The step `ground`: which words stand in no passage, what is said of an answer, and when it is withheld."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from eventing.clock import SystemClock
from eventing.errors import BadRequest, Unavailable
from eventing.job.job import Job, JobId, JobRequest, JobState
from eventing.job.passage import Passage
from eventing.job.pipelines.document import parse_pipelines
from steps.grounding.checker import checked
from steps.grounding.step import Ground, parse_rule
from steps.grounding.support import support
from steps.handler import Continue, Refuse, Skip, StepCall, StepOutcome, Withhold
from steps.validation.model_client import ModelClient

HANDBOOK = "Every employee has 27 days of paid leave. Leave is asked for in the portal."
ROWS = Path(__file__).parents[3] / "bench/data/grounding_rows.jsonl"
QUESTION = "How much leave is there?"
BLOCK = {"mode": "block", "min_score": 0.5}


def called(*texts: str, settings: dict[str, Any] | None = None) -> StepCall:
    body = {"model": "m", "messages": [{"role": "user", "content": QUESTION}]}
    request = JobRequest(url="/v1/chat/completions", body=body)
    choices = [
        {"index": n, "message": {"role": "assistant", "content": text}}
        for n, text in enumerate(texts)
    ]
    plan = parse_pipelines({"m": {"steps": ["retrieve", "ground"]}})["m"]
    return StepCall(
        job=Job(id=JobId("job_1"), state=JobState.IN_PROGRESS, request=request, plan=plan),
        request=request,
        settings=settings or {},
        attempt=1,
        deadline_ms=0,
        candidate={"choices": choices},
        passages=(Passage(file_id="file-1", filename="handbook.md", text=HANDBOOK),),
    )


@pytest.fixture
async def client() -> AsyncIterator[ModelClient]:
    made = ModelClient(SystemClock())
    yield made
    await made.aclose()


@pytest.fixture
def ground(client: ModelClient) -> Ground:
    """The step without a checker's endpoint."""
    return Ground(client)


def marked(answer: str, *passages: str) -> list[str]:
    return [answer[each.start : each.end] for each in support(answer, passages).unsupported]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("Employees have 27 days of leave [1].", []),
        ("Employees have 30 days of leave.", ["30"]),
        ("The Portal is asked for paid leaves.", []),
        ("They are paid by Mumbai Steel Works, in the portal.", ["Mumbai Steel Works"]),
        ("Leave is 1,000 days.", ["1,000"]),
    ],
)
def test_words_and_numbers_that_stand_in_no_passage_are_marked(
    answer: str, words: list[str]
) -> None:
    assert marked(answer, HANDBOOK) == words


def test_accents_case_and_number_words_are_the_same_word() -> None:
    assert marked("CAFÉ has 3 rooms", "The cafe has three rooms") == []


def test_words_in_an_order_that_no_passage_has_lower_the_score() -> None:
    copied = support("27 days of paid leave", [HANDBOOK]).score
    mixed = support("paid days of leave 27", [HANDBOOK]).score
    assert copied == 1
    assert mixed is not None
    assert mixed < 1


@pytest.mark.parametrize(("answer", "ok"), [("Leave [1].", True), ("Leave [2].", False)])
def test_a_citation_of_a_passage_that_there_is_not_is_found(answer: str, ok: bool) -> None:
    assert support(answer, [HANDBOOK]).citations_ok is ok


@given(answer=st.text(max_size=200), passage=st.text(max_size=200))
def test_any_text_has_a_score_between_0_and_1_and_spans_inside_it(
    answer: str, passage: str
) -> None:
    found = support(answer, [passage])

    assert found.score is None or 0 <= found.score <= 1
    ends = [place for each in found.unsupported for place in (each.start, each.end)]
    assert ends == sorted(ends)
    assert not ends or (ends[0] >= 0 and ends[-1] <= len(answer))
    assert support(answer, [answer]).unsupported == ()


def test_changed_numbers_and_foreign_words_lower_the_score_on_questions_not_tuned_on() -> None:
    lines = ROWS.read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] in ("number", "invented")]

    def score(row: dict[str, Any], name: str) -> float:
        return support(row[name], [row["knowledge"]]).score or 0.0

    right = [score(row, "right_answer") for row in rows]
    wrong = [score(row, "hallucinated_answer") for row in rows]
    wins = sum((a > b) + 0.5 * (a == b) for a in right for b in wrong)
    assert len(lines) >= 60
    assert wins / (len(right) * len(wrong)) >= 0.9


async def test_an_answer_is_shown_with_its_verdict(ground: Ground) -> None:
    outcome = await ground(called("Employees have 30 days of leave [1]."))

    assert isinstance(outcome, Continue)
    assert outcome.result is None
    verdict = outcome.detail["grounding"]
    assert verdict["unsupported"] == [{"start": 15, "end": 17}]
    assert verdict["citations_ok"] is True
    assert 0 < verdict["score"] < 1


async def test_spans_are_places_in_the_text_that_the_client_sees(ground: Ground) -> None:
    outcome = await ground(called("![x](https://evil.example/a.png)Leave in Mumbai"))

    assert isinstance(outcome, Continue)
    shown = "xLeave in Mumbai"
    spans = outcome.detail["grounding"]["unsupported"]
    assert [shown[each["start"] : each["end"]] for each in spans] == ["xLeave in Mumbai"]


async def test_of_several_choices_the_worst_counts(ground: Ground) -> None:
    outcome = await ground(called("27 days of paid leave", "Mumbai Steel"))

    assert isinstance(outcome, Continue)
    verdict = outcome.detail["grounding"]
    assert (verdict["score"], verdict["unsupported"][0]["choice"]) == (0, 1)


@pytest.mark.parametrize(
    ("text", "is_withheld"),
    [
        ("27 days of paid leave [1]", False),
        ("27 days of paid leave [2]", True),
        ("Mumbai Steel", True),
        ("yes [2]", True),
    ],
)
async def test_block_withholds_what_its_passages_do_not_support(
    ground: Ground, text: str, is_withheld: bool
) -> None:
    assert isinstance(await ground(called(text, settings=BLOCK)), Withhold) is is_withheld


async def test_without_a_least_score_block_withholds_only_false_citations(ground: Ground) -> None:
    settings = {"mode": "block"}

    assert isinstance(await ground(called("Mumbai Steel", settings=settings)), Continue)
    assert isinstance(await ground(called("Leave [7]", settings=settings)), Withhold)


async def test_what_can_not_be_checked_is_skipped_with_a_reason(ground: Ground) -> None:
    without = replace(called("Leave"), passages=())

    assert await ground(without) == Skip(reason="no passages")
    assert await ground(called("")) == Skip(reason="the answer has no text")
    assert await ground(called("Yes.")) == Skip(reason="no word of the answer can be compared")


@pytest.mark.parametrize(
    "settings",
    [{"mode": "score"}, {"min_score": 2}, {"min_score": True}, {"hold": "window"}, {"x": 1}],
)
async def test_settings_that_can_not_be_are_refused(
    ground: Ground, settings: dict[str, Any]
) -> None:
    with pytest.raises(BadRequest):
        parse_rule(settings)
    assert isinstance(await ground(called("Leave", settings=settings)), Refuse)


@dataclass
class Endpoint:
    """The endpoint of a fake checker, that says what the test has it say."""

    said: str = "VERDICT: SUPPORTED"
    finish_reason: str = "stop"
    status: int = 200
    calls: list[tuple[dict[str, str], dict[str, Any]]] = field(default_factory=list)
    url: str = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.calls.append((dict(request.headers), await request.json()))
        choice = {"message": {"content": self.said}, "finish_reason": self.finish_reason}
        return web.json_response({"choices": [choice]}, status=self.status)


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    made, app = Endpoint(), web.Application()
    app.router.add_post("/v1/chat/completions", made.answer)
    async with TestServer(app) as server:
        made.url = str(server.make_url("/v1"))
        yield made


class TestChecker:
    """A model that is asked as well."""

    ANSWER = "Leave is 30 days, asked for in the portal."

    async def outcome(
        self, client: ModelClient, endpoint: Endpoint, text: str = ANSWER, **settings: Any
    ) -> StepOutcome:
        checker = {"model": "judge", "url": endpoint.url}
        return await Ground(client)(called(text, settings={"checker": checker, **settings}))

    async def test_its_verdict_and_the_places_that_it_quotes_stand_beside_the_words(
        self, client: ModelClient, endpoint: Endpoint
    ) -> None:
        endpoint.said = 'NOT SUPPORTED: "30 days"\nNOT SUPPORTED: not in it\nVERDICT: UNSUPPORTED'

        outcome = await self.outcome(client, endpoint)

        assert isinstance(outcome, Continue)
        said = outcome.detail["grounding"]["checker"]
        assert (said["model"], said["verdict"]) == ("judge", "unsupported")
        (span,) = said["unsupported"]
        assert self.ANSWER[span["start"] : span["end"]] == "30 days"

    async def test_it_is_asked_with_question_passages_and_answer_and_one_key_a_job(
        self, client: ModelClient, endpoint: Endpoint
    ) -> None:
        await self.outcome(client, endpoint)
        await self.outcome(client, endpoint)

        (first, body), (again, _) = endpoint.calls
        text = body["messages"][-1]["content"]
        assert all(part in text for part in (QUESTION, HANDBOOK, self.ANSWER))
        assert body["model"] == "judge"
        assert first["Idempotency-Key"] == again["Idempotency-Key"]
        assert first["Cache-Control"] == "no-store"

    @pytest.mark.parametrize(
        ("said", "is_withheld"),
        [
            ("VERDICT: SUPPORTED", False),
            ("VERDICT: UNSUPPORTED", True),
            ("I can not tell.", True),
            ("", True),
        ],
    )
    async def test_block_lets_nothing_through_that_it_does_not_call_supported(
        self, client: ModelClient, endpoint: Endpoint, said: str, is_withheld: bool
    ) -> None:
        endpoint.said = said

        outcome = await self.outcome(client, endpoint, mode="block")

        assert isinstance(outcome, Withhold) is is_withheld

    async def test_a_verdict_that_was_cut_off_is_none(
        self, client: ModelClient, endpoint: Endpoint
    ) -> None:
        endpoint.finish_reason = "length"

        assert isinstance(await self.outcome(client, endpoint, mode="block"), Withhold)

    async def test_while_it_is_away_block_waits_and_annotate_says_so(
        self, client: ModelClient, endpoint: Endpoint
    ) -> None:
        endpoint.status = 503

        with pytest.raises(Unavailable):
            await self.outcome(client, endpoint, mode="block")
        outcome = await self.outcome(client, endpoint)

        assert isinstance(outcome, Continue)
        assert outcome.detail["grounding"]["checker"]["verdict"] == "unavailable"

    async def test_without_an_endpoint_the_job_is_refused_by_the_settings_name(
        self, ground: Ground
    ) -> None:
        outcome = await ground(called(self.ANSWER, settings={"checker": {"model": "judge"}}))

        assert isinstance(outcome, Refuse)
        assert "checker.url is missing" in outcome.error.message

    async def test_the_worst_of_several_choices_counts(
        self, client: ModelClient, endpoint: Endpoint
    ) -> None:
        endpoint.said = "NOT SUPPORTED: 30 days\nVERDICT: UNSUPPORTED"
        settings = {"checker": {"model": "judge", "url": endpoint.url}}

        outcome = await Ground(client)(called("27 days", "30 days", settings=settings))

        assert isinstance(outcome, Continue)
        assert outcome.detail["grounding"]["checker"]["unsupported"] == [
            {"start": 0, "end": 7, "choice": 1}
        ]

    @pytest.mark.parametrize(
        "settings",
        [
            {"checker": {}},
            {"checker": {"model": "m", "x": 1}},
            {"checker": {"model": "m", "url": "x"}},
        ],
    )
    def test_wrong_settings_are_named(self, settings: dict[str, Any]) -> None:
        with pytest.raises(BadRequest, match="checker"):
            parse_rule(settings)

    @given(answer=st.text(max_size=200), said=st.text(max_size=200))
    def test_whatever_it_says_spans_lie_in_the_answer(self, answer: str, said: str) -> None:
        quoted = f"NOT SUPPORTED: {answer[3:9]}\n{said}\nVERDICT: UNSUPPORTED"

        for span in checked(answer, quoted).unsupported:
            assert 0 <= span.start < span.end <= len(answer)
