"""No caller's string ends its part of a key, or equals a reserved key."""

import re
from collections.abc import Callable, Mapping
from itertools import combinations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api.limit.window import LimitMeter
from eventing.job.job import JobId
from eventing.redis import keys

ONE_WORD: Mapping[str, Callable[[str], str]] = {
    "job": lambda word: keys.job(JobId(word)),
    "tokens": lambda word: keys.tokens(JobId(word)),
    "jobs": keys.jobs_of,
    "dead letters": keys.dead_letters_of,
    "in flight": keys.jobs_in_flight_of,
    "results": keys.results_of,
    "batches": keys.batches_of,
    "endpoints": keys.webhook_endpoints_of,
    "delivery": keys.webhook_delivery,
    "log": keys.webhook_log_of,
    "replicas": keys.replicas,
    "limit": lambda word: LimitMeter(name="tokens", tenant=word, limit=60).current,
    "queue": lambda word: keys.queue(word, "held"),
}
OURS = {value for name, value in vars(keys).items() if name.isupper() and isinstance(value, str)}
HOSTILE = [
    "",
    "active",
    "%61ctive",
    "a:b",
    "a",
    "b",
    "{x}",
    "x}:held",
    "*",
    "%",
    "é",
    "e\u0301",
    "a\nb",
    "a/60",
    " ",
]
word = st.one_of(st.sampled_from(HOSTILE), st.text(), st.text(alphabet="a:{}%*\n/-_.", max_size=6))


@given(word, word)
@example("active", "%61ctive")
@example("a:b", "a%3Ab")
def test_two_names_never_share_a_key_of_any_kind(first: str, second: str) -> None:
    made = {(kind, each): key(each) for kind, key in ONE_WORD.items() for each in {first, second}}

    same = [(a, b) for a, b in combinations(made, 2) if made[a] == made[b]]

    assert same == []


@given(word)
@example("active")
def test_no_name_equals_a_reserved_key(name: str) -> None:
    assert {key(name) for key in ONE_WORD.values()}.isdisjoint(OURS)


@given(word, word, word, word)
@example("a:b", "c", "a", "b:c")
def test_a_name_and_an_id_side_by_side_do_not_run_together(
    tenant: str, subject: str, other: str, another: str
) -> None:
    is_same = keys.webhooks_about(tenant, subject) == keys.webhooks_about(other, another)

    assert is_same == ((tenant, subject) == (other, another))


@given(word)
def test_no_name_adds_a_separator_to_a_key(name: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9._%-]+", keys.escape(name))


@pytest.mark.parametrize("name", ["acme", "team-7", "a_b.c", "MODEL-1.5b"])
def test_an_ordinary_name_is_spelled_as_in_older_stores(name: str) -> None:
    assert keys.jobs_of(name) == f"torpor:jobs:{name}"
    assert keys.queue(f"requests-{name}", "tickets") == f"torpor:{{requests-{name}}}:tickets"
