"""What stands in the prompt after retrieval, and what does not."""

import re
from dataclasses import replace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from eventing.clock import SystemClock
from eventing.job.job import Job, JobId, JobRequest, JobState
from eventing.job.pipelines.audit import AUDIT_TENANT, SEARCHED_TENANT
from steps.handler import Answer, Continue, Refuse, Skip, StepCall
from steps.retrieval.search import SearchDeps, VectorSearch
from steps.retrieval.steps import RetrieveStep, SearchStep
from tests.integration.retrieval.conftest import TENANT, Library
from tests.integration.retrieval.injections import SPECIAL, planted

CANARY = "canary-5c1e"
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]
QUESTION = "How long is the warranty?"


def search_over(library: Library) -> VectorSearch:
    return VectorSearch(
        SearchDeps(
            stores=library.stores,
            index=library.index,
            embedder=library.embedder,
            clock=SystemClock(),
        )
    )


def call_of(
    settings: dict[str, Any], messages: list[dict[str, Any]] | None = None, tenant: str = TENANT
) -> StepCall:
    body: dict[str, Any] = {"model": "m", "tools": TOOLS}
    body["messages"] = messages or [
        {"role": "system", "content": f"Never say {CANARY}."},
        {"role": "user", "content": QUESTION},
    ]
    request = JobRequest(url="/v1/chat/completions", body=body)
    job = Job(id=JobId("job_" + "0" * 24), state=JobState.QUEUED, request=request, tenant=tenant)
    return StepCall(job=job, request=request, settings=settings, attempt=1, deadline_ms=0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Bytes, and the special tokens of the usual chat models."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made = Tokenizer(models.BPE({each: n for n, each in enumerate(sorted(alphabet))}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(SPECIAL))
    return made


async def test_passages_stand_before_the_question_in_the_users_own_message(
    library: Library,
) -> None:
    store = await library.store_of("The warranty lasts two years.", "Cats sleep.")
    step = RetrieveStep(search_over(library))

    outcome = await step(call_of({"vector_store_ids": [store.id], "max_num_results": 1}))

    assert isinstance(outcome, Continue)
    assert outcome.request is not None
    system, user = outcome.request.body["messages"]
    assert system["content"] == f"Never say {CANARY}."
    assert re.fullmatch(
        r"Context.*\n=== ([0-9a-f]{16}) ===\n\[1\] 0\.md\nThe warranty lasts two years\.\n\n"
        r"=== \1 ===\nAnswer.*\n\n" + re.escape(QUESTION),
        user["content"],
    )
    (source,) = outcome.detail["sources"]
    assert (source["filename"], outcome.detail["found"]) == ("0.md", 1)


async def test_the_fence_of_every_job_is_another(library: Library) -> None:
    store = await library.store_of("The warranty lasts two years.")
    step = RetrieveStep(search_over(library))
    fences = set()
    for _ in range(5):
        outcome = await step(call_of({"vector_store_ids": [store.id]}))
        assert isinstance(outcome, Continue)
        assert outcome.request is not None
        content = outcome.request.body["messages"][-1]["content"]
        fences |= set(re.findall(r"=== (\w+) ===", content))

    assert len(fences) == 5


@pytest.mark.parametrize("number", range(50))
async def test_planted_orders_stay_inside_the_fence(
    library: Library, tokenizer: Tokenizer, number: int
) -> None:
    text = planted()[number]
    store = await library.store_of(text)
    step = RetrieveStep(search_over(library))
    call = call_of({"vector_store_ids": [store.id]})

    outcome = await step(call)

    assert isinstance(outcome, Continue)
    assert outcome.request is not None
    body = outcome.request.body
    assert body["tools"] == TOOLS
    assert {**body, "messages": []} == {**call.request.body, "messages": []}
    assert body["messages"][:-1] == call.request.body["messages"][:-1]
    content = body["messages"][-1]["content"]
    (fence,) = set(re.findall(r"=== ([0-9a-f]{16}) ===", content))
    assert content.count(fence) == 2
    _, before, after = content.split(f"=== {fence} ===")
    assert re.fullmatch(r"\nAnswer[^\n]*\n\n" + re.escape(QUESTION), after)
    assert "warranty lasts two years" in before
    assert CANARY not in content
    assert "evil.example" not in content
    assert not re.search("[\u200b\u202e\u2066\ue001\U000e0041]", content)
    special = set(range(tokenizer.get_vocab_size() - len(SPECIAL), tokenizer.get_vocab_size()))
    assert special.isdisjoint(tokenizer.encode(content).ids)


def test_the_planted_orders_have_special_tokens(tokenizer: Tokenizer) -> None:
    """The test above can fail."""
    first = tokenizer.get_vocab_size() - len(SPECIAL)

    hit = [any(i >= first for i in tokenizer.encode(text).ids) for text in planted()]
    assert sum(hit) == 50


async def test_no_chunk_crosses_tenants(library: Library) -> None:
    theirs = await library.store_of("The warranty of globex is a secret.", tenant="globex")
    mine = await library.store_of("The warranty lasts two years.")
    step, search = RetrieveStep(search_over(library)), SearchStep(search_over(library))

    for ids in ([theirs.id], [mine.id, theirs.id]):
        outcome = await step(call_of({"vector_store_ids": ids}))
        assert isinstance(outcome, Refuse)
        assert "secret" not in outcome.error.message
        body = {"vector_store_ids": ids, "query": "warranty"}
        call = call_of({})
        answer = await search(replace(call, request=JobRequest(url="x", body=body)))
        assert isinstance(answer, Refuse)


async def test_an_audit_searches_the_vector_stores_of_the_tenant_whose_answer_it_judges(
    library: Library,
) -> None:
    store = await library.store_of("The warranty lasts two years.")
    step = RetrieveStep(search_over(library))
    settings = {"vector_store_ids": [store.id]}
    asked = call_of(settings, tenant=AUDIT_TENANT)
    audit = replace(asked, job=replace(asked.job, metadata={SEARCHED_TENANT: TENANT}))
    posing = call_of(settings, tenant="globex")
    posing = replace(posing, job=replace(posing.job, metadata={SEARCHED_TENANT: TENANT}))

    outcome = await step(audit)

    assert isinstance(outcome, Continue)
    assert outcome.request is not None
    content = outcome.request.body["messages"][-1]["content"]
    assert re.fullmatch(
        r"Context.*warranty lasts.*=== \w+ ===\n\n" + re.escape(QUESTION), content, re.S
    )
    assert isinstance(await step(posing), Refuse)


async def test_a_search_answers_in_openais_form(library: Library) -> None:
    store = await library.store_of("The warranty lasts two years.", "Cats sleep all day.")
    body = {"vector_store_ids": [store.id], "query": ["warranty", "cats"], "max_num_results": 2}
    call = replace(call_of({}), request=JobRequest(url="x", body=body))

    answer = await SearchStep(search_over(library))(call)

    assert isinstance(answer, Answer)
    assert answer.result["search_query"] == ["warranty", "cats"]
    assert {each["filename"] for each in answer.result["data"]} == {"0.md", "1.md"}
    scores = [each["score"] for each in answer.result["data"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)


async def test_a_threshold_leaves_out_what_is_worse(library: Library) -> None:
    store = await library.store_of("alpha beta", "gamma delta")
    options = {"ranker": "none", "score_threshold": 0.9}
    body = {"vector_store_ids": [store.id], "query": "alpha beta", "ranking_options": options}
    call = replace(call_of({}), request=JobRequest(url="x", body=body))

    answer = await SearchStep(search_over(library))(call)

    assert isinstance(answer, Answer)
    assert [each["filename"] for each in answer.result["data"]] == ["0.md"]


async def test_a_chunk_of_a_file_that_was_just_removed_is_not_found(library: Library) -> None:
    """Its chunks go a moment later, by an event."""
    store = await library.store_of("The warranty lasts two years.")
    (file_id,) = await library.stores.file_ids(store.id)
    await library.stores.remove_file(store, file_id)

    outcome = await RetrieveStep(search_over(library))(call_of({"vector_store_ids": [store.id]}))

    assert isinstance(outcome, Continue)
    assert outcome.request is None
    assert outcome.detail["found"] == 0


async def test_a_prompt_without_a_question_is_left_as_it_is(library: Library) -> None:
    store = await library.store_of("text")
    step = RetrieveStep(search_over(library))

    outcome = await step(
        call_of({"vector_store_ids": [store.id]}, [{"role": "system", "content": "x"}])
    )

    assert isinstance(outcome, Skip)


async def test_passages_are_bounded(library: Library) -> None:
    store = await library.store_of(*(f"warranty {n} " + "word " * 400 for n in range(6)))
    step = RetrieveStep(search_over(library))
    settings = {"vector_store_ids": [store.id], "context_characters": 5000}

    outcome = await step(call_of(settings))

    assert isinstance(outcome, Continue)
    assert outcome.request is not None
    assert outcome.detail["found"] == 2
    assert len(outcome.request.body["messages"][-1]["content"]) < 6000


async def test_a_plan_names_each_tenants_own_vector_stores(library: Library) -> None:
    await library.store_of("The warranty lasts two years.")
    await library.store_of("The warranty lasts ten years.", tenant="globex")
    step = RetrieveStep(search_over(library))
    settings = {"vector_store_names": ["docs"]}

    for tenant, years in ((TENANT, "two"), ("globex", "ten")):
        outcome = await step(call_of(settings, tenant=tenant))
        assert isinstance(outcome, Continue)
        assert outcome.request is not None
        assert f"lasts {years} years" in outcome.request.body["messages"][-1]["content"]
    assert isinstance(await step(call_of(settings, tenant="nobody")), Skip)
