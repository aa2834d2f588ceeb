"""Facts are pieces of what was said, and none that holds a value is missing; summaries are checked by them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventing.store.conversation.conversation import NumberedItem, Summary
from eventing.store.conversation.facts import Fact, facts_of, numbers_in, within
from eventing.store.conversation.summary import VERBATIM, due, refusal, summary_body

BEFORE = Summary(id="s", text="The user paid 1,250 euros on 2026-03-14.", seq=4)


def said(text: str, role: str = "user", seq: int = 1) -> NumberedItem:
    content: list[dict[str, Any]] = [{"type": "input_text", "text": text}]
    item = {"id": f"i{seq}", "type": "message", "role": role, "content": content}
    return NumberedItem(seq, item)


def texts(*items: NumberedItem) -> list[str]:
    return [fact.text for fact in facts_of(items)]


@pytest.mark.parametrize(
    "sentence",
    [
        "The budget is 48,250 euros.",
        "We meet on 2026-03-14.",
        "We meet on the 3rd of May.",
        "The order is SKU-88-B/7.",
        "It lies in /srv/data/cluster_7/config.yaml",
        "It lies in C:\\temp\\notes.txt",
        "Write to ann.lee@example.com!",
        "See https://example.com/a?b=c",
        "My dog is called rex.",
        "I live with Ann in the old town.",
        "The code word is 'blue heron'.",
        "Deploy to PROD please.",
    ],
)
def test_a_sentence_with_a_value_or_a_name_is_a_fact(sentence: str) -> None:
    assert texts(said(f"Well, all right. {sentence}\nThat is it, I think.")) == [sentence]


def test_small_talk_holds_no_fact() -> None:
    assert texts(said("How are you? I am fine, and I hope that you are too! Nice weather.")) == []


def test_a_long_sentence_is_shortened_to_what_is_around_its_values() -> None:
    sentence = f"{'so ' * 200}the port is 8443 {'and ' * 200}"

    (fact,) = texts(said(sentence))

    assert "the port is 8443" in fact
    assert fact in sentence
    assert len(fact) < 200


@pytest.mark.parametrize("piece", ["a", "a/", "1", "@", "A", "'", '"', "\\", ". ", "a.b-", "«"])
def test_the_time_that_it_takes_is_linear_in_the_text(piece: str) -> None:
    """Much of anything that a pattern could try again and again: the test's limit would be over."""
    facts_of([said(piece * (200_000 // len(piece)))])


def test_a_word_of_any_length_is_no_value() -> None:
    blob = "x9" * 5000

    assert texts(said(f"Here it is: {blob} and the port is 8443.")) != []
    assert all(blob not in fact for fact in texts(said(f"The port is 8443 and here: {blob}")))


def test_what_tools_gave_is_left_to_recall() -> None:
    output = {"id": "o", "type": "function_call_output", "call_id": "c", "output": "port 1234"}

    assert facts_of([NumberedItem(1, output)]) == []


@given(st.lists(st.text(max_size=400), max_size=4))
def test_every_fact_is_a_piece_of_a_message_and_every_number_is_in_one(given_: list[str]) -> None:
    items = [said(text, seq=n) for n, text in enumerate(given_)]

    facts = texts(*items)

    assert all(any(fact in text for text in given_) for fact in facts)
    for text in given_:
        digits = {word for word in text.split() if word.isascii() and word.isdigit()}
        assert all(any(word in fact for fact in facts) for word in digits)


def fact(seq: int, *, role: str = "user", is_value: bool = True) -> Fact:
    """A fact of sixteen bytes, with what a line of it adds."""
    return Fact(seq, role, f"fact {seq:07d}", is_value)


def test_the_oldest_and_the_newest_fit_first_and_users_before_answers() -> None:
    facts = [fact(n) for n in range(8)] + [fact(n, role="assistant") for n in range(8, 12)]

    assert [each.seq for each in within(facts, 6 * 16)] == [0, 1, 2, 5, 6, 7]
    assert [each.seq for each in within(facts, 10 * 16)] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 11]
    assert within(facts, 1000) == facts
    assert within(facts, 15) == []


def test_values_leave_a_third_to_names_and_either_takes_what_the_other_leaves() -> None:
    facts = [fact(n, is_value=n % 2 == 0) for n in range(40)]

    kept = within(facts, 9 * 16)

    assert sum(each.is_value for each in kept) == 6
    assert len(within(facts[::2], 9 * 16)) == len(within(facts[1::2], 9 * 16)) == 9


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("## Summary\n-\n-\n", "empty"),
        ("The user paid for something in the spring, it seems.", "lost_number"),
        ("The user paid 1250 euros in the spring of that year.", "lost_number"),
        ("The user paid 1250 euros on 2026-03-14, and left.", ""),
    ],
)
def test_a_summary_that_is_empty_or_lost_a_number_is_not_taken(text: str, why: str) -> None:
    assert refusal(BEFORE, text, []) == why


def test_a_number_that_is_a_fact_may_be_missing_in_the_summary() -> None:
    facts = facts_of([said("I paid 1,250 euros."), said("That was on 2026-03-14.")])

    assert refusal(BEFORE, "The user paid for something, and then left.", facts) == ""


def test_the_first_summary_has_nothing_to_lose() -> None:
    assert refusal(None, "The user and the assistant talked of birds.", []) == ""


def test_numbers_are_compared_without_separators_of_thousands() -> None:
    assert numbers_in("1,250 and 3.5 on 2026-03-14, at 10:30") == {
        "1250",
        "3.5",
        "2026-03-14",
        "10:30",
    }


def test_a_summary_is_due_when_enough_messages_are_older_than_the_newest() -> None:
    items = [said("hello", seq=n) for n in range(1, 13)]

    assert due(items[:-1], 6) == []
    assert [each.seq for each in due(items, 6)] == [1, 2, 3, 4, 5, 6]
    assert due(items, 0) == []
    assert len(items) - len(due(items, 1)) == VERBATIM


def test_a_request_for_a_summary_holds_as_much_as_fits_and_the_rest_waits() -> None:
    items = [said("x" * 3000, seq=n) for n in range(1, 40)]

    chosen = due(items, 6)
    body = summary_body("m", BEFORE, chosen)

    assert [each.seq for each in chosen] == list(range(1, 13))
    (message,) = body["messages"]
    assert BEFORE.text in message["content"]
    assert len(message["content"]) < 26_000
