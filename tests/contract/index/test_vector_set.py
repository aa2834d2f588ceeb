"""What the index in vector sets promises beyond the contract."""

from collections.abc import AsyncIterator
from contextlib import aclosing

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from eventing.errors import BadRequest, Unavailable
from steps.handler import NotInstalled
from steps.index.filter import Comparison, Compound, Filter, matches
from steps.index.index import Attribute, Chunk, Query
from steps.index.vector_set import VectorSetIndex
from tests.contract.index.test_index import DIM, REVISION, chunk, filled, ids, search, unit

NAMES = st.sampled_from(["a", "b", 'c"] or 1 == 1', ""])
VALUES = st.one_of(
    st.booleans(),
    st.sampled_from([0, -0.0, 1, 1.0, 1e-7, -2.5, 1e300, 2**53, 10**400]),
    st.sampled_from(["", "1", "true", 'x"', "\\", "é\0"]),
)
NUMBERS = VALUES.filter(lambda one: isinstance(one, int | float) and not isinstance(one, bool))
COMPARISONS = st.one_of(
    st.builds(Comparison, NAMES, st.sampled_from(["eq", "ne"]), VALUES),
    st.builds(Comparison, NAMES, st.sampled_from(["gt", "gte", "lt", "lte"]), NUMBERS),
    st.builds(
        Comparison,
        NAMES,
        st.sampled_from(["in", "nin"]),
        st.lists(VALUES, min_size=1, max_size=12).map(tuple),
    ),
)
FILTERS: st.SearchStrategy[Filter] = st.recursive(
    COMPARISONS,
    lambda inner: st.builds(
        Compound, st.sampled_from(["and", "or"]), st.lists(inner, min_size=1, max_size=3).map(tuple)
    ),
    max_leaves=5,
)
ATTRIBUTES = st.dictionaries(NAMES, VALUES.filter(lambda one: one != 10**400), max_size=3)


@pytest.fixture
async def sets(vector_sets: Redis, vector_set_url: str) -> AsyncIterator[VectorSetIndex]:
    """An empty one."""
    async with aclosing(VectorSetIndex(vector_set_url)) as index:
        yield index


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(held=st.lists(ATTRIBUTES, min_size=1, max_size=4), wanted=FILTERS)
async def test_any_filter_finds_what_the_pure_one_lets_pass(
    vector_sets: Redis, sets: VectorSetIndex, held: list[dict[str, Attribute]], wanted: Filter
) -> None:
    await vector_sets.flushall()
    chunks = [Chunk(id=f"{n}", vector=unit(n), attributes=own) for n, own in enumerate(held)]
    await filled(sets, *chunks)
    passing = [each.id for each in chunks if matches(wanted, each.attributes)]

    assert sorted(ids(await search(sets, Query(vector=unit(0), filter=wanted)))) == passing
    assert await sets.delete("acme", "docs", where=wanted) == len(passing)


async def test_a_deleted_index_of_many_chunks_leaves_no_key(
    vector_sets: Redis, sets: VectorSetIndex
) -> None:
    await filled(sets, *(chunk(f"{n:03}", n % DIM, f"lease {n}") for n in range(150)))
    await filled(sets, chunk("other", 0), name="other")

    assert await sets.delete("acme", "docs") == 150
    assert all(b":other}" in key for key in await vector_sets.keys("*"))
    assert await sets.delete("acme", "docs") == 0


async def test_an_index_of_which_the_server_evicted_chunks_can_be_deleted(
    vector_sets: Redis, sets: VectorSetIndex
) -> None:
    await filled(sets, *(chunk(f"{n}", n) for n in range(4)))
    await vector_sets.delete("torpor:{vset:acme:docs}:chunk:1")

    assert len(await search(sets, Query(vector=unit(1)))) == 3
    assert await sets.delete("acme", "docs") == 3
    assert await vector_sets.keys("torpor:{vset:acme:docs}") == []


async def test_a_filter_of_very_many_alternatives_is_refused(sets: VectorSetIndex) -> None:
    await filled(sets, chunk("a", 0))
    either = [
        Compound("or", (Comparison(f"x{n}", "gt", 1), Comparison(f"y{n}", "gt", 1)))
        for n in range(6)
    ]

    with pytest.raises(BadRequest, match="too many attributes"):
        await search(sets, Query(vector=unit(0), filter=Compound("and", tuple(either))))


async def test_deleted_chunks_leave_neither_vector_nor_word(
    vector_sets: Redis, sets: VectorSetIndex
) -> None:
    await filled(sets, *(chunk(f"{n:02}", n % DIM, f"lease {n}", odd=n % 2) for n in range(40)))
    await sets.put(
        "acme", "docs", [chunk("00", 3, "another text")], model_revision=REVISION
    )  # in place of an earlier one

    assert await sets.delete("acme", "docs", where=Comparison("odd", "eq", 1)) == 20
    assert await sets.delete("acme", "docs", ids=[f"{n:02}" for n in range(0, 40, 2)]) == 20
    assert await vector_sets.keys("*") == [b"torpor:{vset:acme:docs}"]
    counts = await vector_sets.hmget("torpor:{vset:acme:docs}", "length", "chunks")
    assert counts == [b"0", b"0"]
    assert await sets.delete("acme", "docs") == 0
    assert await vector_sets.keys("*") == []


async def test_a_large_index_is_searched_by_its_graph(
    vector_set_url: str, vector_sets: Redis
) -> None:
    """Near neighbours, found without comparing all; a filter is still exact."""
    async with aclosing(VectorSetIndex(vector_set_url, exact=100)) as index:
        await _finds_the_near(index)


async def _finds_the_near(index: VectorSetIndex) -> None:
    draw = np.random.default_rng(11)
    vectors = draw.normal(size=(600, DIM)).astype(np.float32)
    await filled(
        index,
        *(Chunk(id=f"{n:03}", vector=v, attributes={"n": n}) for n, v in enumerate(vectors)),
    )
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = 0
    for query in units[:50]:
        nearest = {f"{n:03}" for n in np.argsort(-(units @ query))[:10]}
        found += len(nearest.intersection(ids(await search(index, Query(vector=query)))))

    assert found >= 490
    rare = Comparison("n", "in", (1, 599))
    assert {*ids(await search(index, Query(vector=units[0], filter=rare)))} == {"001", "599"}


async def test_words_that_most_passages_hold_decide_nothing(sets: VectorSetIndex) -> None:
    await filled(sets, *(chunk(f"{n:03}", n % DIM, f"the lease of {n}") for n in range(200)))

    assert ids(await search(sets, Query(text="the lease of 7"))) == ["007"]
    assert len(await search(sets, Query(text="the LEASE", k=5))) == 5


async def test_a_rare_word_and_a_short_passage_weigh_more(sets: VectorSetIndex) -> None:
    await filled(
        sets,
        chunk("long", 0, "claim " + "and so on " * 50),
        chunk("twice", 1, "claim claim and nothing"),
        chunk("short", 2, "claim and nothing more"),
        *(chunk(f"{n}", 3, "lease of another kind") for n in range(5)),
    )

    hits = await search(sets, Query(text="claim lease", k=3))

    assert ids(hits) == ["twice", "short", "long"]


async def test_a_server_without_vector_sets_is_named(redis_url: str) -> None:
    async with aclosing(VectorSetIndex(redis_url)) as index:
        with pytest.raises(NotInstalled, match="TORPOR_INDEX_URL has no vector sets"):
            await index.create("acme", "docs", dim=DIM, model_revision=REVISION)


async def test_a_server_that_is_away_is_unavailable() -> None:
    async with aclosing(VectorSetIndex("redis://127.0.0.1:1/0", timeout_s=0.5)) as index:
        with pytest.raises(Unavailable, match="the vector index does not answer"):
            await index.search("acme", "docs", Query(vector=unit(0)), model_revision=REVISION)
