"""The line that stands for the results of tool servers where a history was made shorter."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventing.job.tools.asked import asked_server
from eventing.job.tools.taint import labels_told, read_before, told, with_told
from eventing.store.conversation.messages import compaction_item, labels_of

labels = st.sets(
    st.from_regex(r"[A-Za-z]([A-Za-z0-9-]|_(?!_)){0,31}(?<!_)", fullmatch=True), max_size=5
)


@given(labels, st.text(max_size=200))
def test_what_is_told_is_read_again_whatever_stands_behind_it(named: set[str], behind: str) -> None:
    assert named <= labels_told(told(named) + behind)
    assert named <= labels_told("Summary of the conversation so far:\n" + told(named) + behind)


@given(labels)
def test_every_label_of_a_request_can_be_told(named: set[str]) -> None:
    for label in named:
        asked_server({"type": "mcp", "server_label": label}, "tools[0]")
        assert labels_told(told([label])) == {label}


def test_no_server_is_no_line() -> None:
    assert told([]) == ""


def test_what_a_tool_says_names_no_server() -> None:
    message = {"role": "tool", "tool_call_id": "c", "content": told(["web"])}
    assert read_before([message]) == frozenset()


@pytest.mark.parametrize(
    ("messages", "places"),
    [
        ([{"role": "user", "content": "Go on."}], [0]),
        ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Go on."}], [1]),
        (
            [{"role": "assistant", "content": None}, {"role": "user", "content": [{"text": "x"}]}],
            [],
        ),
        ([], []),
    ],
    ids=["one", "behind the instructions", "no text", "nothing"],
)
def test_a_line_is_put_into_the_first_text(
    messages: list[dict[str, Any]], places: list[int]
) -> None:
    made = with_told(messages, {"web"})

    assert read_before(made) == {"web"}
    assert len(made) == len(messages) + (not places)
    for place in places:
        assert made[place] == {
            **messages[place],
            "content": told({"web"}) + messages[place]["content"],
        }


def test_what_the_messages_say_already_is_not_told_again() -> None:
    once = with_told([{"role": "user", "content": "Go on."}], {"web"})
    assert with_told(once, {"web"}) == once


def test_the_items_of_a_conversation_say_whose_results_they_had() -> None:
    items = [
        {"type": "mcp_call", "server_label": "a", "name": "do", "arguments": "{}", "output": "1"},
        compaction_item("cmp_1", told(["b"]) + "We spoke."),
        {"type": "message", "role": "user", "content": told(["c"]) + "Go on."},
        {"type": "mcp_list_tools", "server_label": "d", "tools": []},
    ]
    assert labels_of(items) == {"a", "b", "c"}
