"""What every vector index promises."""

from collections.abc import Sequence
from urllib.parse import urlsplit

import asyncpg
import numpy as np
import pytest

from steps.handler import NotInstalled
from steps.index.filter import Comparison, Compound
from steps.index.index import Chunk, Hit, Index, ModelMismatch, Query, Vector
from steps.index.pgvector import PgVectorIndex

DIM = 8
REVISION = "tests@1"


def unit(place: int) -> Vector:
    """The unit vector along one axis."""
    vector = np.zeros(DIM, dtype=np.float32)
    vector[place] = 1.0
    return vector


def chunk(id_: str, place: int, text: str = "", **attributes: str | float | bool) -> Chunk:
    return Chunk(id=id_, vector=unit(place), text=text or id_, attributes=attributes)


async def filled(
    index: Index, *chunks: Chunk, tenant: str = "acme", name: str = "docs", revision: str = REVISION
) -> None:
    await index.create(tenant, name, dim=DIM, model_revision=revision)
    await index.put(tenant, name, chunks, model_revision=revision)


async def search(index: Index, query: Query, tenant: str = "acme", name: str = "docs") -> list[Hit]:
    return await index.search(tenant, name, query, model_revision=REVISION)


def ids(hits: Sequence[Hit]) -> list[str]:
    return [hit.id for hit in hits]


async def test_a_chunk_is_found_by_its_vector_with_text_and_attributes(index: Index) -> None:
    await filled(index, chunk("a", 0, "apples", lang="en", page=3.0), chunk("b", 1, "pears"))

    (hit, *_) = await search(index, Query(vector=unit(0), k=1))

    assert (hit.id, hit.text, dict(hit.attributes)) == ("a", "apples", {"lang": "en", "page": 3.0})
    assert hit.cosine == pytest.approx(1.0)
    assert hit.fused == pytest.approx(1.0)


async def test_a_chunk_is_found_by_its_words(index: Index) -> None:
    await filled(index, chunk("a", 0, "the lease lapses"), chunk("b", 1, "a Trigger's filter"))

    hits = await search(index, Query(text="which FILTER?", k=5))

    assert ids(hits) == ["b"]
    assert hits[0].bm25 > 0
    assert hits[0].cosine == 0


async def test_both_rankings_are_fused(index: Index) -> None:
    await filled(
        index, chunk("near", 0, "nothing"), chunk("word", 1, "lease"), chunk("both", 0, "lease")
    )

    hits = await search(index, Query(text="lease", vector=unit(0), k=3))

    assert hits[0].id == "both"
    assert {*ids(hits)} == {"near", "word", "both"}
    assert hits[0].fused > hits[1].fused


async def test_a_weight_of_zero_leaves_a_ranking_out(index: Index) -> None:
    await filled(index, chunk("near", 0, "nothing"), chunk("word", 1, "lease"))

    only_text = Query(text="lease", vector=unit(0), k=1, embedding_weight=0.0)
    only_vector = Query(text="lease", vector=unit(0), k=1, text_weight=0.0)

    assert ids(await search(index, only_text)) == ["word"]
    assert ids(await search(index, only_vector)) == ["near"]


async def test_a_tenant_finds_nothing_of_another(index: Index) -> None:
    await filled(index, chunk("a", 0, "secret"), tenant="acme")
    await filled(index, chunk("b", 0, "secret"), tenant="globex")

    for query in (Query(vector=unit(0), k=50), Query(text="secret", k=50)):
        assert ids(await search(index, query, tenant="globex")) == ["b"]
    assert await search(index, Query(vector=unit(0)), tenant="nobody") == []
    assert await index.delete("globex", "docs", ids=["a"]) == 0
    assert ids(await search(index, Query(vector=unit(0)))) == ["a"]


async def test_each_of_many_tenants_finds_its_own_chunks_alone(index: Index) -> None:
    """Of the same ids, words and vectors, whatever a tenant is called, and after others have deleted theirs."""
    tenants = [
        "acme",
        "acme:docs",
        "*",
        "a}:vectors",
        "{acme}",
        "",
        "é",
        "a\nb",
        "%",
        "'; --",
        "A" * 200,
    ]
    for tenant in tenants:
        mine = [chunk(f"{n}", n % 4, f"lease of {tenant!r}", owner=tenant) for n in range(20)]
        await filled(index, *mine, tenant=tenant)
    for tenant in tenants[:3]:
        assert await index.delete(tenant, "docs", where=Comparison("owner", "nin", ("x",))) == 20

    for tenant in tenants:
        left = 0 if tenant in tenants[:3] else 20
        for query in (
            Query(vector=unit(0), k=500),
            Query(text="lease", k=500),
            Query(text="lease", vector=unit(1), k=500, filter=Comparison("owner", "ne", "x")),
        ):
            hits = await search(index, query, tenant=tenant)
            assert len(hits) == left
            assert {hit.attributes["owner"] for hit in hits} <= {tenant}


async def test_names_that_need_escaping_are_apart(index: Index) -> None:
    await filled(index, chunk("a", 0), tenant="a:b", name="c")
    await filled(index, chunk("b", 0), tenant="a", name="b:c")

    assert ids(await search(index, Query(vector=unit(0)), tenant="a:b", name="c")) == ["a"]
    assert ids(await search(index, Query(vector=unit(0)), tenant="a", name="b:c")) == ["b"]


async def test_a_filter_does_not_starve_the_results(index: Index) -> None:
    many = [chunk(f"x{n:03}", 0, "lease", lang="de") for n in range(150)]
    rare = [chunk(f"y{n}", 1, "lease and more words", lang="en") for n in range(5)]
    await filled(index, *many, *rare)
    only = Comparison("lang", "eq", "en")

    for query in (
        Query(vector=unit(0), k=5, filter=only),
        Query(text="lease", k=5, filter=only),
        Query(text="lease", vector=unit(0), k=5, filter=only),
    ):
        assert sorted(ids(await search(index, query))) == ["y0", "y1", "y2", "y3", "y4"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        pytest.param(Comparison("lang", "eq", "en"), "a", id="eq"),
        pytest.param(Comparison("lang", "ne", "en"), "bc", id="ne"),
        pytest.param(Comparison("year", "gt", 2024), "b", id="gt"),
        pytest.param(Comparison("year", "gte", 2024), "ab", id="gte"),
        pytest.param(Comparison("year", "lt", 2025), "a", id="lt"),
        pytest.param(Comparison("year", "lte", 2025.0), "ab", id="lte"),
        pytest.param(Comparison("lang", "in", ("en", "de")), "ab", id="in"),
        pytest.param(Comparison("lang", "nin", ("en", "de")), "c", id="nin"),
        pytest.param(Comparison("draft", "eq", True), "b", id="boolean"),
        pytest.param(Comparison("draft", "eq", 1), "", id="one is not true"),
        pytest.param(Comparison("year", "eq", "2024"), "", id="text is not number"),
        pytest.param(
            Compound("and", (Comparison("year", "gte", 2024), Comparison("lang", "eq", "de"))),
            "b",
            id="and",
        ),
        pytest.param(
            Compound("or", (Comparison("year", "gt", 2024), Comparison("lang", "eq", "en"))),
            "ab",
            id="or",
        ),
        pytest.param(Comparison("it's", "eq", "x') OR 1=1 --"), "", id="hostile"),
    ],
)
async def test_filters_have_openais_meaning(
    index: Index, wanted: Comparison | Compound, found: str
) -> None:
    await filled(
        index,
        chunk("a", 0, lang="en", year=2024, draft=False),
        chunk("b", 1, lang="de", year=2025, draft=True),
        chunk("c", 2),
    )

    hits = await search(index, Query(vector=unit(0), filter=wanted))

    assert sorted(ids(hits)) == list(found)


async def test_a_known_id_is_replaced(index: Index) -> None:
    await filled(index, chunk("a", 0, "apples", lang="en"))
    assert ids(await search(index, Query(vector=unit(0)))) == ["a"]

    await index.put("acme", "docs", [chunk("a", 1, "pears", lang="de")], model_revision=REVISION)

    (hit,) = await search(index, Query(vector=unit(1)))
    assert (hit.text, hit.attributes["lang"], hit.cosine) == ("pears", "de", pytest.approx(1.0))
    assert await search(index, Query(text="apples")) == []
    assert (await index.stats("acme", "docs")).chunks == 1


async def test_attributes_change_without_the_vector(index: Index) -> None:
    await filled(index, chunk("a", 0, "apples", lang="en"))
    await search(index, Query(vector=unit(0)))

    changes = [Chunk(id="a", attributes={"lang": "de"}), Chunk(id="unknown", attributes={})]
    await index.put("acme", "docs", changes, model_revision=REVISION)

    (hit,) = await search(
        index, Query(text="apples", vector=unit(0), filter=Comparison("lang", "eq", "de"))
    )
    assert (hit.text, hit.cosine) == ("apples", pytest.approx(1.0))
    assert (await index.stats("acme", "docs")).chunks == 1


async def test_deleted_chunks_are_not_found(index: Index) -> None:
    await filled(index, chunk("a", 0, "lease", file="1"), chunk("b", 0, "lease", file="2"))
    await search(index, Query(vector=unit(0)))

    assert await index.delete("acme", "docs", ids=["a", "never"]) == 1
    assert ids(await search(index, Query(vector=unit(0)))) == ["b"]
    assert await index.delete("acme", "docs", where=Comparison("file", "eq", "2")) == 1
    assert await search(index, Query(text="lease", vector=unit(0))) == []


async def test_a_deleted_index_can_be_made_again_for_another_model(index: Index) -> None:
    await filled(index, chunk("a", 0), chunk("b", 1))
    await search(index, Query(vector=unit(0)))

    assert await index.delete("acme", "docs") == 2
    assert await search(index, Query(vector=unit(0))) == []
    assert await index.version("acme", "docs") == 0

    await index.create("acme", "docs", dim=2, model_revision="other")
    vector = np.array([1.0, 0.0], dtype=np.float32)
    await index.put("acme", "docs", [Chunk(id="c", vector=vector)], model_revision="other")
    hits = await index.search("acme", "docs", Query(vector=vector), model_revision="other")
    assert ids(hits) == ["c"]


async def test_vectors_of_two_models_are_never_mixed(index: Index) -> None:
    await filled(index, chunk("a", 0))

    with pytest.raises(ModelMismatch):
        await index.create("acme", "docs", dim=DIM, model_revision="tests@2")
    with pytest.raises(ModelMismatch):
        await index.create("acme", "docs", dim=DIM + 1, model_revision=REVISION)
    with pytest.raises(ModelMismatch):
        await index.put("acme", "docs", [chunk("b", 0)], model_revision="tests@2")
    short = Chunk(id="b", vector=np.ones(3, dtype=np.float32))
    with pytest.raises(ModelMismatch):
        await index.put("acme", "docs", [short], model_revision=REVISION)
    with pytest.raises(ModelMismatch):
        await index.put("acme", "unmade", [chunk("b", 0)], model_revision=REVISION)
    with pytest.raises(ModelMismatch):
        await index.search("acme", "docs", Query(vector=unit(0)), model_revision="tests@2")
    await index.create("acme", "docs", dim=DIM, model_revision=REVISION)
    assert (await index.stats("acme", "docs")).chunks == 1


async def test_the_version_grows_with_every_change(index: Index) -> None:
    versions = [await index.version("acme", "docs")]
    await filled(index, chunk("a", 0))
    versions.append(await index.version("acme", "docs"))
    await index.put("acme", "docs", [chunk("b", 1)], model_revision=REVISION)
    versions.append(await index.version("acme", "docs"))
    await index.delete("acme", "docs", ids=["b"])
    versions.append(await index.version("acme", "docs"))

    assert versions[0] == 0
    assert versions == sorted(set(versions))
    stats = await index.stats("acme", "docs")
    assert (stats.dim, stats.model_revision, stats.version) == (DIM, REVISION, versions[-1])


async def test_the_exact_neighbours_are_found(index: Index) -> None:
    """Recall@10 of 1.0 against the definition, over filters and deletions."""
    draw = np.random.default_rng(7)
    vectors = draw.normal(size=(400, DIM)).astype(np.float32)
    chunks = [
        Chunk(id=f"{n:04}", text=f"passage {n}", vector=vector, attributes={"odd": bool(n % 2)})
        for n, vector in enumerate(vectors)
    ]
    await filled(index, *chunks)
    await index.delete("acme", "docs", ids=[f"{n:04}" for n in range(0, 400, 7)])
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    alive = [n for n in range(400) if n % 7 and n % 2]

    for query in draw.normal(size=(20, DIM)).astype(np.float32):
        cosines = units @ (query / np.linalg.norm(query))
        nearest = sorted(alive, key=lambda n: -cosines[n])[:10]
        hits = await search(index, Query(vector=query, filter=Comparison("odd", "eq", True)))
        assert ids(hits) == [f"{n:04}" for n in nearest]


async def test_hostile_queries_are_only_words(index: Index) -> None:
    await filled(index, chunk("a", 0, "lease"))

    for text in ('"', "NEAR(", "lease* OR text:", "') --", "", "\x00", "a" * 100_000, "AND"):
        await search(index, Query(text=text, vector=unit(0)))
    assert ids(await search(index, Query(text='"lease" AND (NOT'))) == ["a"]


async def test_a_database_without_pgvector_is_told_from_one_that_does_not_answer(
    postgres_url: str,
) -> None:
    owner = await asyncpg.connect(postgres_url)
    await owner.execute("CREATE ROLE guest LOGIN PASSWORD 'guest'")
    await owner.execute("CREATE DATABASE empty OWNER guest")
    place = urlsplit(postgres_url)
    engine = PgVectorIndex(
        place._replace(path="/empty", netloc=place.netloc.replace("postgres", "guest", 1)).geturl()
    )
    try:
        with pytest.raises(NotInstalled, match="CREATE EXTENSION vector as its owner"):
            await engine.create("acme", "docs", dim=DIM, model_revision=REVISION)
    finally:
        await engine.aclose()
        await owner.execute("DROP DATABASE empty WITH (FORCE)")
        await owner.execute("DROP ROLE guest")
        await owner.close()
