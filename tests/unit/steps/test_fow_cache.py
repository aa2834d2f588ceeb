"""The rule against the pairs of fow-cache (data CC BY 4.0, Mabon ap Gwyn): what it serves, and what of that wrongly."""

import pytest

from bench.semantic_cache import Judged, fow_pairs, judge, rates, served_chats
from steps.embedding.packaged import PackagedEmbedder
from steps.semantic_cache.agreement import Verdict, agree
from steps.semantic_cache.canonical import canonical
from steps.semantic_cache.spelling import is_word

pytest.importorskip("fow_cache")


@pytest.fixture
async def judged() -> list[Judged]:
    """The pairs that the words let through, embedded; the others are misses whatever their cosine is."""
    pairs = fow_pairs()
    passed = [
        pair
        for pair in pairs
        if agree(canonical(pair.b), canonical(pair.a), is_word).verdict
        in (Verdict.SAME, Verdict.NEAR)
    ]
    embedder = PackagedEmbedder()
    found = await judge(passed, embedder)
    await embedder.aclose()
    return [*found, *(Judged(pair, 0.0, None, False) for pair in pairs if pair not in passed)]


async def test_a_quarter_of_the_right_pairs_is_served_and_no_trap(judged: list[Judged]) -> None:
    unread = [each for each in judged if not each.pair.was_read]
    for some in (judged, unread):
        hit, wrong = rates(some, lambda each: each.rule is not None)
        print(
            f"served {hit:.3f} of the right pairs, {wrong:.3f} of the traps, of {len(some)} pairs"
        )
        assert wrong <= 0.013
        assert hit >= 0.23


def test_no_pair_of_chats_is_served() -> None:
    right, wrong = served_chats()
    print(f"chats: served {right} right and {wrong} wrong of 240")
    assert wrong == 0
