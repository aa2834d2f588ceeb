"""The semantic cache on a real store with the real embedder: what is served, to whom, and until when."""

import asyncio
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from redis.asyncio import Redis

from eventing.errors import InvalidJob
from eventing.job.cache.cache import CacheKind
from eventing.job.job import JobId
from eventing.job.stream import EntryKind
from eventing.live.ended import EndedConsumer
from eventing.redis import keys
from eventing.redis.connection import connect
from steps.embedding.packaged import REVISION, PackagedEmbedder
from steps.handler import Skip
from steps.semantic_cache.entries import SemanticEntries
from steps.semantic_cache.settings import NAME, parse_settings
from steps.semantic_cache.step import SemanticCacheStep
from tests.contract.broker.stack import until
from tests.contract.semantic_rig import SERVES, SemanticRig, is_hit, text_of
from tests.redis_server import RedisServer
from tests.time_limits import STORE_S

ONE = "How do I renew my library card?"
SAME = "hi, how can i renew my library card please"
OTHER = "How do I cancel my library card?"


@pytest.fixture(scope="module")
def embedder() -> PackagedEmbedder:
    """One for the module; its thread ends with the process."""
    return PackagedEmbedder()


@pytest.fixture
async def rig(redis: Redis, embedder: PackagedEmbedder) -> AsyncIterator[SemanticRig]:
    made = SemanticRig(redis, embedder)  # type: ignore[arg-type]
    yield made
    await made.models.aclose()


class TestHit:
    async def test_the_same_question_in_other_words_is_answered_without_a_predictor(
        self, rig: SemanticRig
    ) -> None:
        first = await rig.ask(ONE, "At the desk.")

        second = await rig.ask(SAME)

        assert text_of(second) == "At the desk."
        assert second.result is not None
        assert second.result["id"] == f"chatcmpl-{second.id.removeprefix('job_')}"
        assert second.usage == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        assert second.cache is not None
        assert second.cache.kind is CacheKind.SEMANTIC
        assert second.cache.source_job == first.id
        assert second.cache.similarity is not None
        assert second.cache.similarity > 0.8
        assert second.cache.saved_usage == first.usage
        assert second.pipeline[0].detail["cache"] == "hit"

    async def test_its_token_stream_is_shown_again(self, rig: SemanticRig) -> None:
        await rig.ask(ONE, "At the desk.")
        second = await rig.ask(SAME)

        entries = await rig.store.read_stream(second.id)

        shown = [entry for entry in entries if entry.kind is EntryKind.TOKENS]
        assert [(entry.token_ids, entry.delta) for entry in shown] == [((1, 2, 3), "At the desk.")]

    async def test_a_question_that_asks_something_else_is_not(self, rig: SemanticRig) -> None:
        await rig.ask(ONE)

        assert not is_hit(await rig.ask(OTHER))

    async def test_a_hit_becomes_no_entry_of_its_own(self, rig: SemanticRig) -> None:
        first = await rig.ask(ONE)
        second = await rig.ask(SAME)
        await rig.write(second.id)

        third = await rig.ask("How can I renew my library card?")

        assert third.cache is not None
        assert third.cache.source_job == first.id

    async def test_writing_an_answer_twice_keeps_it_once(
        self, rig: SemanticRig, redis: Redis
    ) -> None:
        first = await rig.ask(ONE)
        await rig.write(first.id)

        assert await redis.zcard(keys.semantic_entries("acme")) == 1


MESSAGES = [{"role": "user", "content": ONE}]
APART = {
    "system": {"messages": [{"role": "system", "content": "Be rude."}, *MESSAGES]},
    "model": {"model": "other"},
    "temperature": {"temperature": 0.7},
    "seed": {"seed": 7},
    "format": {"response_format": {"type": "json_object"}},
    "max tokens": {"max_tokens": 9},
    "tools": {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
    "stop": {"stop": ["x"]},
    "name": {"messages": [{"role": "user", "content": ONE, "name": "eve"}]},
}


class TestApart:
    @pytest.mark.parametrize("name", APART)
    async def test_another_request_with_the_same_words_is_a_miss(
        self, rig: SemanticRig, name: str
    ) -> None:
        await rig.ask(ONE)

        assert not is_hit(await rig.ask(ONE, **APART[name]))

    async def test_another_tenant_is_a_miss(self, rig: SemanticRig) -> None:
        await rig.ask(ONE)

        assert not is_hit(await rig.ask(ONE, tenant="evil"))

    async def test_fields_that_do_not_change_the_answer_do_not_part(self, rig: SemanticRig) -> None:
        await rig.ask(ONE)

        assert is_hit(await rig.ask(SAME, stream=True, user="me"))

    async def test_a_later_turn_is_not_looked_for(self, rig: SemanticRig) -> None:
        await rig.ask(ONE)
        chat = [*MESSAGES, {"role": "assistant", "content": "Yes?"}, *MESSAGES]

        job = await rig.ask(ONE, messages=chat)

        assert rig.reason(job) == "not the first turn"

    async def test_a_plan_with_memory_or_retrieval_has_no_semantic_cache(
        self, redis: Redis, embedder: PackagedEmbedder
    ) -> None:
        rig = SemanticRig(redis, embedder, steps=("retrieve",))  # type: ignore[arg-type]

        job = await rig.submit(ONE)
        await rig.run_step(job)

        assert rig.reason(job) == "context"

    async def test_new_weights_and_an_invalidation_void_what_is_kept(
        self, rig: SemanticRig, redis: Redis
    ) -> None:
        await rig.ask(ONE)
        await redis.hset(keys.REVISIONS, "m", "weights-2")
        assert not is_hit(await rig.ask(SAME))

        assert is_hit(await rig.ask(ONE))
        await rig.store.answers.invalidate_answers("acme", ["m"], is_all=False, is_dry_run=False)
        assert not is_hit(await rig.ask(SAME))

    async def test_an_answer_that_was_under_way_when_all_were_voided_is_not_kept(
        self, rig: SemanticRig
    ) -> None:
        job = await rig.submit(ONE)
        await rig.run_step(job)
        await rig.store.answers.invalidate_answers("acme", ["m"], is_all=False, is_dry_run=False)
        await rig.generate(job.id, "old")
        await rig.write(job.id)

        assert not is_hit(await rig.ask(SAME))


class TestErasure:
    async def test_deleting_the_job_erases_its_vector(self, rig: SemanticRig, redis: Redis) -> None:
        first = await rig.ask(ONE)
        assert await redis.keys("torpor:cache:vectors:*")

        await rig.store.delete(first.id)

        assert await redis.keys("torpor:cache:*") == []
        assert not is_hit(await rig.ask(SAME))

    async def test_deleting_the_entry_leaves_the_job_and_it_is_not_kept_again(
        self, rig: SemanticRig, redis: Redis
    ) -> None:
        first = await rig.ask(ONE)

        assert await rig.store.answers.forget_answer("acme", keys.semantic_name(first.id))
        await rig.write(first.id)

        assert await redis.keys("torpor:cache:vectors:*") == []
        assert (await rig.job(first.id)).result is not None
        assert not is_hit(await rig.ask(SAME))

    async def test_another_tenant_can_not_delete_an_entry(self, rig: SemanticRig) -> None:
        first = await rig.ask(ONE)

        assert not await rig.store.answers.forget_answer("evil", keys.semantic_name(first.id))
        assert is_hit(await rig.ask(SAME))

    async def test_no_store_leaves_nothing(self, rig: SemanticRig, redis: Redis) -> None:
        job = await rig.ask(ONE, cache_control="no-store")

        assert rig.reason(job) == "no-store"
        assert await redis.keys("torpor:cache:*") == []

    async def test_an_entry_is_not_given_after_its_time(self, rig: SemanticRig) -> None:
        await rig.ask(ONE)
        rig.clock.ahead_ms = 3_601_000

        assert not is_hit(await rig.ask(SAME))

    async def test_max_age_refuses_an_older_answer(self, rig: SemanticRig) -> None:
        await rig.ask(ONE)
        rig.clock.ahead_ms = 20_000

        assert not is_hit(await rig.ask(SAME, cache_control="max-age=10"))
        assert is_hit(await rig.ask(SAME, cache_control="max-age=30"))

    async def test_a_tenant_has_at_most_so_many_entries(
        self, redis: Redis, embedder: PackagedEmbedder
    ) -> None:
        settings = {**SERVES, "most_entries": 3}
        rig = SemanticRig(redis, embedder, settings=settings)  # type: ignore[arg-type]
        texts = [f"How do I pay the {word}?" for word in ("rent", "fine", "toll", "bill", "loan")]
        for text in texts:
            await rig.ask(text)

        hits = [is_hit(await rig.ask(text)) for text in texts[2:]]

        assert hits == [True, True, True]
        assert await redis.zcard(keys.semantic_entries("acme")) == 3
        partition = (await redis.keys("torpor:cache:vectors:*"))[0]
        assert await redis.hlen(partition) == 4  # and its version


class TestVectors:
    """Two processes look up in one partition: each knows what the other kept or forgot."""

    async def test_what_one_process_keeps_or_forgets_another_knows(
        self, rig: SemanticRig, embedder: PackagedEmbedder
    ) -> None:
        other = SemanticRig(rig.redis, embedder)
        first = await rig.ask(ONE)
        assert is_hit(await other.ask(SAME))
        second = await other.ask("How do I pay a late fee?")
        assert is_hit(await rig.ask("how can I pay a late fee"))

        await rig.store.delete(first.id)
        assert not is_hit(await other.ask("How could I renew my library card?"))
        await rig.store.delete(second.id)
        assert not is_hit(await other.ask("How could I pay a late fee?"))

    async def test_a_partition_that_was_emptied_and_filled_again_is_read_again(
        self, rig: SemanticRig
    ) -> None:
        first = await rig.ask(ONE)
        assert is_hit(await rig.ask(SAME))
        await rig.store.delete(first.id)
        again = await rig.ask(ONE)

        hit = await rig.ask(SAME)

        assert hit.cache is not None
        assert hit.cache.source_job == again.id


class TestWhoHasIt:
    @pytest.mark.parametrize(
        ("settings", "call", "reason"),
        [
            ({"tenants": ["other"]}, {}, "tenant"),
            ({"sampled": False}, {"temperature": 1}, "sampled"),
            ({"sampled": False}, {"n": 2}, "sampled"),
            ({}, {"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
            ({"unknown": 1}, {}, "semantic-cache: unknown: Extra inputs are not permitted"),
        ],
        ids=["tenant", "temperature", "n", "tools", "settings"],
    )
    async def test_a_call_that_is_not_for_the_cache_says_why(
        self,
        redis: Redis,
        embedder: PackagedEmbedder,
        settings: dict[str, object],
        call: dict[str, object],
        reason: str,
    ) -> None:
        rig = SemanticRig(redis, embedder, settings={**SERVES, **settings})  # type: ignore[arg-type]
        job = await rig.submit(ONE, **call)
        await rig.run_step(job)

        assert rig.reason(job) == reason


class TestComplaint:
    async def test_a_refusal_within_a_minute_withdraws_the_entry_for_all(
        self, rig: SemanticRig, redis: Redis
    ) -> None:
        first = await rig.ask(ONE, "wrong")
        assert is_hit(await rig.ask(SAME))

        again = await rig.ask(SAME, "right", cache_control="no-cache")

        assert text_of(again) == "right"
        served = await rig.ask("How could I renew my library card?")
        assert served.cache is not None
        assert served.cache.source_job == again.id
        assert (await redis.hget(keys.semantic_shadow("acme"), "same complained m")) == b"1"
        assert (await rig.job(first.id)).result is not None

    async def test_a_refusal_without_an_answer_before_is_no_complaint(
        self, rig: SemanticRig
    ) -> None:
        first = await rig.ask(ONE)

        await rig.ask(SAME, cache_control="no-cache")

        third = await rig.ask("How could I renew my library card?")
        assert third.cache is not None
        assert await rig.entries.counts("acme") == {}
        assert first.id

    async def test_another_tenants_refusal_withdraws_nothing(self, rig: SemanticRig) -> None:
        await rig.ask(ONE)
        await rig.ask(SAME)

        await rig.ask(SAME, tenant="evil", cache_control="no-cache")

        assert is_hit(await rig.ask(SAME))


class TestShadow:
    @pytest.fixture
    def shadow(self, redis: Redis, embedder: PackagedEmbedder) -> SemanticRig:
        budget = {"least": 3, "error_rate": 0.6, "holdout": 0}
        settings = {**SERVES, "shadow": budget}
        return SemanticRig(redis, embedder, settings=settings)  # type: ignore[arg-type]

    async def test_a_rule_serves_when_its_answers_agreed_often_enough(
        self, shadow: SemanticRig
    ) -> None:
        await shadow.ask(ONE, "At the desk, for 5 euros.")
        for _ in range(3):
            job = await shadow.ask(SAME, "At the desk, for 5 euros.")
            assert not is_hit(job)
            assert job.pipeline[0].detail["shadow"]["rule"] == "same"

        assert is_hit(await shadow.ask(SAME))
        assert await shadow.entries.counts("acme") == {"same agreed m": 3}

    async def test_it_stays_in_shadow_while_fresh_answers_differ(self, shadow: SemanticRig) -> None:
        await shadow.ask(ONE, "At the desk, for 5 euros.")
        for price in range(6, 11):
            assert not is_hit(await shadow.ask(SAME, f"At the desk, for {price} euros."))

        counts = await shadow.entries.counts("acme")
        assert sum(counts.values()) == 5
        assert counts["same differed m"] >= 4

    async def test_a_tenants_phase_is_its_own(self, shadow: SemanticRig) -> None:
        await shadow.ask(ONE, "yes")
        for _ in range(3):
            await shadow.ask(SAME, "yes")
        await shadow.ask(ONE, "yes", tenant="other")

        assert not is_hit(await shadow.ask(SAME, "yes", tenant="other"))

    async def test_an_ending_told_twice_is_counted_once(self, shadow: SemanticRig) -> None:
        await shadow.ask(ONE, "yes")
        job = await shadow.ask(SAME, "yes")
        await shadow.write(job.id)

        assert await shadow.entries.counts("acme") == {"same agreed m": 1}


class TestVerifier:
    @pytest.mark.parametrize(("word", "serves"), [("Yes.", True), ("no", False), ("maybe", False)])
    async def test_other_words_are_served_only_if_the_model_says_yes_in_one_call(
        self, redis: Redis, embedder: PackagedEmbedder, word: str, serves: bool
    ) -> None:
        asked = []

        async def answer(request: web.Request) -> web.Response:
            asked.append(await request.json())
            return web.json_response({"choices": [{"message": {"content": word}}]})

        app = web.Application()
        app.router.add_post("/v1/chat/completions", answer)
        async with TestServer(app) as server:
            url = str(server.make_url("/v1"))
            verifier = {"url": url, "model": "judge", "timeout_ms": 20_000}
            settings = {**SERVES, "verifier": verifier, "verified_similarity": 0.5}
            rig = SemanticRig(redis, embedder, settings=settings)  # type: ignore[arg-type]
            await rig.ask("How do I cancel my subscription?")
            await rig.ask("How do I stop my subscription?")
            asked.clear()

            job = await rig.ask("I want to end my subscription")

            assert is_hit(job) is serves
            assert len(asked) == 1
            await rig.models.aclose()

    async def test_a_verifier_that_is_away_is_a_no(
        self, redis: Redis, embedder: PackagedEmbedder, port: int
    ) -> None:
        verifier = {"url": f"http://127.0.0.1:{port}/v1", "model": "judge"}
        settings = {**SERVES, "verifier": verifier, "verified_similarity": 0.5}
        rig = SemanticRig(redis, embedder, settings=settings)  # type: ignore[arg-type]
        await rig.ask("How do I cancel my subscription?")

        assert not is_hit(await rig.ask("I want to end my subscription"))
        await rig.models.aclose()


class _Slow:
    """An embedder that never answers."""

    dim = 384
    revision = REVISION

    async def embed(self, texts: object) -> np.ndarray:
        await asyncio.Event().wait()
        raise AssertionError

    async def aclose(self) -> None:
        """Nothing is open."""


class TestDown:
    async def test_a_look_up_that_is_slow_is_left_out(self, redis: Redis) -> None:
        settings = {**SERVES, "lookup_ms": 50}
        rig = SemanticRig(redis, _Slow(), settings=settings)  # type: ignore[arg-type]
        job = await rig.submit(ONE)

        assert not await rig.run_step(job)

        assert isinstance(rig.outcomes[job.id], Skip)
        assert rig.reason(job) == "slow"

    async def test_a_store_that_is_away_is_left_out(
        self, rig: SemanticRig, redis_server: Callable[..., RedisServer]
    ) -> None:
        server = redis_server()
        server.start()
        away = connect(server.url, timeout_s=STORE_S)
        await away.ping()
        server.kill()
        rig.step = SemanticCacheStep(
            entries=SemanticEntries(away),
            store=rig.store,
            embedder=rig.embedder,
            verifier=rig.verifier,
            clock=rig.clock,
        )
        job = await rig.submit(ONE)

        assert not await rig.run_step(job)

        assert rig.reason(job) == "store_unavailable"
        await away.aclose()

    async def test_the_writer_catches_up_as_a_consumer_group(self, rig: SemanticRig) -> None:
        job = await rig.submit(ONE)
        await rig.run_step(job)
        await rig.generate(job.id, "At the desk.")
        consumer = EndedConsumer(rig.redis, rig.store, [rig.writer], group=NAME)

        task = asyncio.create_task(consumer.run())
        name = keys.semantic_name(JobId(job.id))

        async def is_kept() -> bool:
            return bool(await rig.redis.exists(keys.cache_entry("acme", name)))

        await until(is_kept, timeout_s=20)
        task.cancel()
        assert is_hit(await rig.ask(SAME))


@pytest.mark.parametrize(
    ("given", "field"),
    [({"ttl_s": 0}, "ttl_s"), ({"unknown": 1}, "unknown"), ({"verifier": {"url": "x"}}, "verifier"),
     ({"similarity": 0.1}, "similarity")],
    ids=["ttl", "unknown", "verifier", "similarity"],
)  # fmt: skip
def test_wrong_settings_name_their_field(given: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidJob, match=field):
        parse_settings(given)


def test_settings_that_are_left_out_keep_the_shadow_phase() -> None:
    settings = parse_settings({})

    assert settings.shadow is not None
    assert settings.lookup_ms == 50
