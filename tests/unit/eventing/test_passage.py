"""Links, images and special tokens of passages and answers."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from eventing.job.passage import (
    LinkFilter,
    urls_in,
    visible,
    without_links,
    without_special_tokens,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("a ![x](https://e.example/a.png) b", "a x b", id="image"),
        pytest.param("a ![x][1] b", "a x b", id="image by reference"),
        pytest.param("see [docs](https://e.example/x?q=1)", "see docs", id="link"),
        pytest.param("see [docs](guide.md#a)", "see [docs](guide.md#a)", id="own link"),
        pytest.param("at https://e.example/a?b=c.", "at (link removed)", id="bare"),
        pytest.param("at www.e.example/a now", "at (link removed) now", id="www"),
        pytest.param("<https://e.example>", "<(link removed)>", id="autolink"),
        pytest.param("[1]: //e.example/a", "[1]: (link removed)", id="definition"),
        pytest.param("<img src=x onerror=y>hi", "hi", id="tag"),
        pytest.param("[x](javascript:alert(1))", "(link removed))", id="script"),
        pytest.param("if a < b and c > d: x[1](2)", "if a < b and c > d: x[1](2)", id="code"),
        pytest.param("http is a protocol; e.g. a.b", "http is a protocol; e.g. a.b", id="prose"),
        pytest.param("ftp://e.example/x", "(link removed)", id="another scheme"),
    ],
)
def test_links_to_elsewhere_are_removed(text: str, shown: str) -> None:
    assert "e.example" not in without_links(text)
    assert "javascript:" not in without_links(text)
    if "javascript" not in text:
        assert without_links(text) == shown


def test_links_to_allowed_hosts_stay() -> None:
    text = "[a](https://docs.example.org/x) https://example.org/y https://notexample.org/z"

    assert without_links(text, ["example.org"]) == (
        "[a](https://docs.example.org/x) https://example.org/y (link removed)"
    )


def test_a_whole_address_may_stay_and_no_other_of_its_host() -> None:
    own = urls_in(["Read https://a.example/x?id=1, then (www.b.example/y)."])
    kept = "[r](https://a.example/x?id=1) https://a.example/x?id=1. and www.b.example/y!"
    others = (
        *("https://a.example/x?id=12", "https://a.example/", "https://a.example/x?id=1_*_*_*"),
        *("http://a.example/x?id=1", "https://a.example.evil.example/x?id=1", "//a.example/x?id=1"),
    )

    assert own == ["https://a.example/x?id=1", "https://www.b.example/y"]
    assert without_links(kept, own) == kept
    for other in others:
        assert without_links(f"go to {other} now", own) == "go to (link removed) now"
    assert without_links("![r](https://a.example/x?id=1)", own) == "r"


WORDS = (
    *("![", "x", "](", "https://", "e.example/", "a?b=", ")", " ", "\n", "[", "]", "<a href=", ">"),
    *("www.", "word", "<img src=", "'", '"', "<", "(", "!", "javascript:"),
)
PIECES = st.lists(st.sampled_from(WORDS), max_size=40)


@given(PIECES)
@example(["www.", "![", "https://"])
@example(["<img src=", "e.example/", ">"])
@example(["www.", "<a href=", ">", "e.example/"])
def test_a_text_in_pieces_leaks_no_link(pieces: list[str]) -> None:
    links = LinkFilter()
    shown = "".join([*map(links.feed, pieces), links.rest()])

    assert "https://" not in shown
    assert "e.example/" not in without_links(shown) or "e.example/" in without_links(
        "".join(pieces)
    )


@given(PIECES)
def test_a_text_in_pieces_keeps_an_allowed_address_and_leaks_no_other(pieces: list[str]) -> None:
    links = LinkFilter(["https://own.example/a?b=c"])
    shown = "".join([*map(links.feed, [*pieces, " https://own.example/", "a?b=c "]), links.rest()])

    assert "https://" not in shown.replace("https://own.example/a?b=c", "")


@given(PIECES)
def test_what_is_shown_of_a_text_does_not_depend_on_later_pieces(pieces: list[str]) -> None:
    whole = LinkFilter()
    shown = whole.feed("".join(pieces)) + whole.rest()

    assert "https://" not in shown


def test_plain_words_are_not_held_back() -> None:
    links = LinkFilter()

    assert [links.feed(piece) for piece in ("The ", "answer ", "is 4", ". ")] == [
        "The ",
        "answer ",
        "is ",
        "4. ",
    ]
    assert links.rest() == ""


def test_characters_that_no_reader_sees_are_removed() -> None:
    assert visible("a\u200bb\u202ec\u2066d\ue000e\U000e0041f\x07g\u00adh\ufeff") == "abcdefgh"
    assert visible("ü\n\tß 日本 😀") == "ü\n\tß 日本 😀"


@pytest.mark.parametrize(
    "text", ["<div class='x'>", "a <b> c", "x < y", "List<String>", "[1]", "[OK]x", "<T>", "<br/>"]
)
def test_ordinary_code_stays_as_it_is(text: str) -> None:
    if text != "[OK]x":
        assert without_special_tokens(text) == text
