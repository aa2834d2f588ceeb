"""Each character of an answer is shown once, however its chunks are cut."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.generation.replay_filter import Entry, ReplayFilter, coalesce, entries_of


def chat(index: int = 0, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {
        "object": "chat.completion.chunk",
        "choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}],
    }


def call(position: int, arguments: str, **head: str) -> dict[str, Any]:
    function = {"arguments": arguments} | ({"name": head["name"]} if "name" in head else {})
    kept = {"id": head["id"], "type": "function"} if "id" in head else {}
    return {"index": position, **kept, "function": function}


def entries(chunks: Sequence[dict[str, Any]]) -> list[Entry]:
    return [entry for chunk in chunks for entry in entries_of(chunk)]


def rest(shown: Sequence[dict[str, Any]], replay: Sequence[dict[str, Any]]) -> list[Entry]:
    """What is still to be shown of `replay` to who has seen `shown`."""
    seen = ReplayFilter()
    seen.note(coalesce(entries(shown)))
    return coalesce(
        entry for chunk in replay for entry in seen.new_deltas(entries_of(dict(seen.rename(chunk))))
    )


def texts(found: Sequence[Entry], channel: str) -> str:
    return "".join(entry["delta"].get(channel, "") for entry in found)


@given(st.text(min_size=1), st.data())
def test_shown_text_plus_new_deltas_is_the_whole_text(text: str, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(text)))
    pieces = data.draw(st.lists(st.integers(0, len(text)), max_size=5).map(sorted))
    replay = [
        chat(content=text[a:b]) for a, b in zip([0, *pieces], [*pieces, len(text)], strict=True)
    ]

    assert text[:cut] + texts(rest([chat(content=text[:cut])], replay), "content") == text


def test_a_seam_within_the_thought_leaves_the_answer_whole() -> None:
    found = rest(
        [chat(reasoning="let me")],
        [chat(reasoning="let me see"), chat(content="four")],
    )

    assert found == [
        {"index": 0, "delta": {"reasoning_content": " see"}},
        {"index": 0, "delta": {"content": "four"}},
    ]


def test_a_seam_within_the_answer_shows_no_thought_again() -> None:
    found = rest(
        [chat(reasoning="hm"), chat(content="si")],
        [chat(reasoning="hm"), chat(content="six", finish="stop")],
    )

    assert found == [{"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}]


def test_usage_so_far_stands_in_the_last_of_the_entries_that_were_joined() -> None:
    made = [chat(content=word) | {"usage": {"completion_tokens": n}} for n, word in enumerate("ab")]
    asked = coalesce(entry for chunk in made for entry in entries_of(chunk, has_usage=True))

    assert asked == [{"index": 0, "delta": {"content": "ab"}, "usage": {"completion_tokens": 1}}]
    assert coalesce(entries(made)) == [{"index": 0, "delta": {"content": "ab"}}]


def test_choices_are_counted_apart() -> None:
    found = rest([chat(1, content="abc")], [chat(0, content="abc"), chat(1, content="abcd")])

    assert found == [
        {"index": 0, "delta": {"content": "abc"}},
        {"index": 1, "delta": {"content": "d"}},
    ]


def test_a_tool_call_keeps_the_id_it_was_shown_under() -> None:
    seen = ReplayFilter()
    seen.note(entries([chat(tool_calls=[call(0, '{"a"', id="call_1", name="f")])]))

    renamed = seen.rename(chat(tool_calls=[call(0, '{"a": 1}', id="call_2", name="f")]))

    assert renamed["choices"][0]["delta"]["tool_calls"][0]["id"] == "call_1"


def test_a_tool_call_that_was_announced_goes_on_without_its_name() -> None:
    found = rest(
        [chat(tool_calls=[call(0, '{"a"', id="call_1", name="f")])],
        [chat(tool_calls=[call(0, '{"a": 1}', id="call_2", name="f")])],
    )

    assert found == [
        {"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]}}
    ]


def test_a_second_tool_call_is_announced_after_the_seam() -> None:
    found = rest(
        [chat(tool_calls=[call(0, "{}", id="call_1", name="f")])],
        [
            chat(tool_calls=[call(0, "{}", id="call_2", name="f")]),
            chat(tool_calls=[call(1, "", id="call_3", name="g")]),
        ],
    )

    assert found == [
        {
            "index": 0,
            "delta": {
                "tool_calls": [
                    {
                        "index": 1,
                        "id": "call_3",
                        "type": "function",
                        "function": {"arguments": "", "name": "g"},
                    }
                ]
            },
        }
    ]


def test_the_end_is_shown_once() -> None:
    answer = [chat(content="hi", finish="stop")]

    assert rest(answer, answer) == []


def test_an_end_that_was_not_shown_is_shown_without_text() -> None:
    found = rest([chat(content="hi")], [chat(content="hi"), chat(finish="stop")])

    assert found == [{"index": 0, "delta": {}, "finish_reason": "stop"}]


def test_readers_who_were_told_to_forget_see_all_again() -> None:
    seen = ReplayFilter()
    seen.note(entries([chat(content="hi")]))
    seen.clear()

    assert list(seen.new_deltas(entries([chat(content="hi")]))) == entries([chat(content="hi")])


def test_completions_are_counted_too() -> None:
    def chunk(text: str) -> dict[str, Any]:
        return {"choices": [{"index": 0, "text": text, "finish_reason": None}]}

    assert rest([chunk("ab")], [chunk("a"), chunk("bc")]) == [{"index": 0, "text": "c"}]


@pytest.mark.parametrize(
    "chunk",
    [
        chat(role="assistant", content=""),
        {"choices": [], "usage": {}},
        {"object": "list", "data": []},
    ],
    ids=["role", "usage", "embeddings"],
)
def test_chunks_that_show_nothing_make_no_entry(chunk: dict[str, Any]) -> None:
    assert entries([chunk]) == []


def test_one_flush_shows_each_run_of_text_once() -> None:
    found = coalesce(
        entries(
            [
                chat(reasoning="a"),
                chat(reasoning="b"),
                chat(content="c"),
                chat(content="d", finish="stop"),
            ]
        )
    )

    assert found == [
        {"index": 0, "delta": {"reasoning_content": "ab"}},
        {"index": 0, "delta": {"content": "cd"}, "finish_reason": "stop"},
    ]


def test_arguments_of_one_call_are_joined_and_those_of_the_next_are_not() -> None:
    found = coalesce(
        entries(
            [
                chat(tool_calls=[call(0, "", id="c1", name="f")]),
                chat(tool_calls=[call(0, "{")]),
                chat(tool_calls=[call(0, "}")]),
                chat(tool_calls=[call(1, "", id="c2", name="g")]),
            ]
        )
    )

    assert [entry["delta"]["tool_calls"][0]["function"]["arguments"] for entry in found] == [
        "{}",
        "",
    ]


def test_joining_changes_no_entry_it_was_given() -> None:
    given_entries = entries([chat(content="a"), chat(content="b")])

    coalesce(given_entries)

    assert given_entries[0] == {"index": 0, "delta": {"content": "a"}}


def test_tokens_whose_text_is_held_back_keep_their_logprobs() -> None:
    chunk = chat(content="")
    chunk["choices"][0]["logprobs"] = {"content": [{"token": "x"}]}
    seen = ReplayFilter()
    seen.note(entries([chat(content="a")]))

    assert list(seen.new_deltas(entries([chunk]))) == [
        {"index": 0, "delta": {}, "logprobs": {"content": [{"token": "x"}]}}
    ]
