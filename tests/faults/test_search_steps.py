"""Steps that search, under kill -9 at each of their points: the semantic cache and its writer, and retrieval."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from eventing.redis import keys
from eventing.store.file_store import new_file_id
from eventing.store.vector_store.record import FileSettings, FileStatus, StoreSettings, VectorStore
from eventing.store.vector_store.store import VectorStores
from steps.embedding.packaged import PackagedEmbedder
from steps.index.embedded import EmbeddedIndex
from steps.index.index import Chunk
from steps.retrieval.ingest import FILE
from tests.faults.client import body
from tests.faults.conftest import Judge
from tests.faults.history import Kind
from tests.faults.processes import TENANT, System
from tests.faults.programs import Zygote
from tests.faults.proxy import Proxy, Way
from tests.faults.test_kill import called, hurt_with, kill_at, warm
from tests.faults.test_steps import shown, stepping

pytestmark = pytest.mark.timeout(1800)
CACHE = {"step": "semantic-cache", "settings": {"shadow": None, "lookup_ms": 10_000}}
ASKED = "How do I renew my library card?"
SAME = "hi, how can i renew my library card please"
TOPICS = ("bread", "rain", "chess", "tides", "wool", "glass", "bees", "salt", "clay", "maps")
PASSAGE = "The harbour office opens at seven."


def question(text: str) -> dict[str, Any]:
    line = body(1, prompt=text)
    line["body"]["temperature"] = 0
    return line


def cache_points(system: System) -> list[tuple[Proxy, bytes, Way, bool]]:
    redis, vectors = system.steps_redis, b"torpor:cache:vectors"
    points: list[tuple[Proxy, bytes, Way, bool]] = [
        (redis, called("begin_step"), Way.UP, True),
        (redis, vectors, Way.UP, True),
        (system.steps_delivery, b"HTTP/1.1 200", Way.DOWN, False),
    ]
    for is_forwarded in (False, True):
        points += [
            (redis, b"torpor:cache:served", Way.UP, is_forwarded),
            (redis, called("advance"), Way.UP, is_forwarded),
            (redis, called("semantic_keep"), Way.UP, is_forwarded),
        ]
    return points


async def until_kept(system: System, count: int) -> None:
    """Return once the writer has kept that many answers."""
    async with asyncio.timeout(90):
        while await system.redis.zcard(keys.semantic_entries(TENANT)) < count:
            await asyncio.sleep(0.05)


async def test_the_semantic_cache_survives_a_kill_at_every_point(
    zygote: Zygote, tmp_path: Path, trials: int
) -> None:
    async with stepping(zygote, tmp_path, CACHE) as (system, steps):
        first = await system.client.submit(question(ASKED), "first")
        await system.ended([first], within_s=60)
        await until_kept(system, 1)
        points, hits, misses = cache_points(system), list[str](), [str(first)]
        for trial in range(max(trials // 2, len(points))):
            link, needle, way, is_forwarded = points[trial % len(points)]
            topic = f"What is {TOPICS[trial % 10]} made of, and who needs {trial + 100} of it?"
            hold = link.hold(needle, way, is_forwarded=is_forwarded)
            asking = [
                asyncio.ensure_future(system.client.submit(question(text), f"{trial}-{text[:4]}"))
                for text in (SAME, topic)
            ]
            assert await kill_at(hold, steps), f"step {needle!r} was never reached"
            system.history.add(Kind.FAULT, "kill", what=steps.name, step=needle.decode())
            steps.start()
            await steps.ready()
            hit, miss = await asyncio.gather(*asking)
            hits.append(hit)
            misses.append(miss)
            await system.ended([hit, miss], within_s=60)
        await until_kept(system, len(misses))

        assert await system.redis.zcard(keys.semantic_entries(TENANT)) == len(misses)
        await answered_as(system, first, hits)
        for job_id in misses:
            job = await shown(system, job_id)
            assert (job["state"], job["attempt"]) == ("completed", 1), job
            assert [each["status"] for each in job["pipeline"]] == ["completed"]
            assert job["pipeline"][0]["detail"]["cache"] == "miss"


async def answered_as(system: System, first: str, hits: list[str]) -> None:
    """Each has the first one's answer and its tokens once, and woke no predictor."""
    source = await shown(system, first)
    for job_id in hits:
        job = await shown(system, job_id)
        assert (job["state"], job["attempt"]) == ("completed", 0), job
        assert job["result"]["choices"] == source["result"]["choices"]
        assert job["token_count"] == source["token_count"]
        assert [each["status"] for each in job["pipeline"]] == ["completed"]
        assert job["usage"]["total_tokens"] == 0


async def library(system: System) -> VectorStore:
    """A vector store with one passage."""
    stores, index, embedder = (
        VectorStores(system.redis),
        EmbeddedIndex(system.redis),
        PackagedEmbedder(),
    )
    store = await stores.create(TENANT, StoreSettings(name="docs"))
    file_id = new_file_id()
    note = await stores.add_file(store, file_id, FileSettings(filename="hours.md"))
    (file,) = await stores.files(store.id, [file_id])
    assert await stores.begin(note, file.generation)
    await index.create(TENANT, store.id, dim=embedder.dim, model_revision=embedder.revision)
    (vector,) = await embedder.embed([PASSAGE])
    chunk = Chunk(id=f"{file_id}:0", text=PASSAGE, vector=vector, attributes={FILE: file_id})
    await index.put(TENANT, store.id, [chunk], model_revision=embedder.revision)
    await stores.end(note, file.generation, FileStatus.COMPLETED, usage_bytes=34, chunks=1)
    await index.aclose()
    await embedder.aclose()
    return store


async def test_what_is_asked_is_judged_and_given_its_passage_once_whoever_dies(
    zygote: Zygote, tmp_path: Path, trials: int, judge: Judge
) -> None:
    plan: list[Any] = [
        {"step": "moderate-input", "settings": {"rules": [{"words": ["forbidden"]}]}},
        {"step": "retrieve", "settings": {"vector_store_names": ["docs"]}},
        {"step": "route", "settings": {"tiers": ["seeded"]}},
    ]
    async with stepping(zygote, tmp_path, *plan) as (system, steps):
        await warm(system)
        store = await library(system)
        redis = system.steps_redis
        points: list[tuple[Proxy, bytes, Way, bool]] = [
            (redis, called("begin_step"), Way.UP, True),
            (redis, keys.vector_store(store.id).encode(), Way.UP, True),
            (redis, keys.index(TENANT, store.id).encode(), Way.UP, True),
            (redis, called("advance"), Way.UP, False),
            (redis, called("advance"), Way.UP, True),
            (system.steps_delivery, b"HTTP/1.1 200", Way.DOWN, False),
        ]
        jobs = await hurt_with(system, points, steps, max(trials // 2, len(points)))
        await system.ended(jobs, within_s=60 + trials)

        for job_id in jobs:
            job = await shown(system, job_id)
            assert (job["state"], job["attempt"]) == ("completed", 1), job
            assert [each["status"] for each in job["pipeline"]] == ["completed"] * 3, job
            assert [each["text"] for each in job["pipeline"][1]["detail"]["sources"]] == [PASSAGE]
        await judge(system, len(jobs), of="jobs")
