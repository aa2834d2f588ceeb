"""What rules find in a text, and which settings are refused."""

from typing import Any

import pytest

from eventing.errors import BadRequest
from eventing.job.moderation.rules import parse_rules


def found(rule: dict[str, Any], text: str) -> list[str]:
    return [text[each.start : each.end] for each in parse_rules([rule]).findings(text)]


@pytest.mark.parametrize(
    ("words", "text", "seen"),
    [
        pytest.param(["ass"], "assisting a class", [], id="within other words"),
        pytest.param(["ass"], "an ASS.", ["ASS"], id="in any case"),
        pytest.param(["project x"], "Project \n X!", ["Project \n X"], id="over a line's end"),
        pytest.param(["über"], "Über allem, überall", ["Über"], id="other letters"),
        pytest.param(["c++"], "in C++ and c+++", ["C++", "c++"], id="with signs"),
    ],
)
def test_words_are_found_whole(words: list[str], text: str, seen: list[str]) -> None:
    assert found({"words": words}, text) == seen


@pytest.mark.parametrize(
    ("kind", "text", "seen"),
    [
        ("card", "card 4111 1111 1111 1111.", ["4111 1111 1111 1111"]),
        ("card", "12345 4111-1111-1111-1111 99", ["4111-1111-1111-1111"]),
        ("card", "4111.1111.1111.1111", ["4111.1111.1111.1111"]),
        ("card", "4111 1111 1111 1112", []),
        ("card", "0000 0000 0000 0000", []),
        ("card", "order 14111111111111111999999", []),
        ("iban", "to DE89 3704 0044 0532 0130 00 and on", ["DE89 3704 0044 0532 0130 00"]),
        ("iban", "GB82WEST12345698765432", ["GB82WEST12345698765432"]),
        ("iban", "DE89-3704-0044-0532-0130-00", ["DE89-3704-0044-0532-0130-00"]),
        ("iban", "XX63370400440532013000", []),
        ("iban", "DE88 3704 0044 0532 0130 00", []),
        ("email", "write to a.b+c@mail.example.org.", ["a.b+c@mail.example.org"]),
        ("email", "user@host", []),
        ("phone", "call +49 (89) 123-4567 now", ["+49 (89) 123-4567"]),
        ("phone", "+12", []),
        ("us_ssn", "078-05-1120", ["078-05-1120"]),
        ("us_ssn", "000-05-1120 and 900-05-1120", []),
        ("dni", "12345678Z and 12345678A", ["12345678Z"]),
        ("dni", "X1234567-L", ["X1234567-L"]),
        ("cpf", "529.982.247-25 and 529.982.247-26", ["529.982.247-25"]),
        ("nir", "2 55 08 14 168 025 38", ["2 55 08 14 168 025 38"]),
        ("secret", f"key sk-{'a' * 48}", [f"sk-{'a' * 20}"]),
        ("secret", "-----BEGIN RSA PRIVATE KEY-----", ["-----BEGIN RSA PRIVATE KEY-----"]),
        ("secret", "task-force", []),
    ],
)
def test_personal_data_is_found_where_its_check_digits_are_right(
    kind: str, text: str, seen: list[str]
) -> None:
    assert found({"personal_data": [kind]}, text) == seen


def test_a_finding_has_the_category_that_the_rule_names_and_none_of_the_text() -> None:
    (one,) = parse_rules([{"words": ["torpor"], "category": "illicit"}]).findings("a torpor")

    assert (one.category, one.kind) == ("illicit", "words")
    assert "torpor" not in repr(one)


@pytest.mark.parametrize("text", ["t\u200borpor", "\uff54\uff4f\uff52\uff50\uff4f\uff52", "𝐭𝐨𝐫𝐩𝐨𝐫"])
def test_a_word_is_not_hidden_by_other_letters(text: str) -> None:
    assert parse_rules([{"words": ["torpor"]}]).findings(f"a {text}!")


def test_a_pattern_made_to_be_slow_is_not() -> None:
    assert found({"regex": "(a+)+$"}, "a" * 200_000 + "b") == []


@pytest.mark.parametrize(
    ("rules", "field"),
    [
        ("words", "rules"),
        ([3], "rules[0]"),
        ([{}], "rules[0]"),
        ([{"words": ["a"], "regex": "a"}], "rules[0]"),
        ([{"words": "a"}], "rules[0].words"),
        ([{"words": [" "]}], "rules[0].words"),
        ([{"words": ["a"], "longest": 3}], "rules[0].longest"),
        ([{"words": ["a"], "category": 3}], "rules[0].category"),
        ([{"words": ["a"], "mode": "block"}], "rules[0].mode"),
        ([{"words": ["a"]}, {"regex": "("}], "rules[1].regex"),
        ([{"regex": "(?=a)b"}], "rules[0].regex"),
        ([{"regex": r"(a)\1"}], "rules[0].regex"),
        ([{"regex": "a*"}], "rules[0].regex"),
        ([{"regex": "(?:a{1000}){1000}"}], "rules[0].regex"),
        ([{"personal_data": ["name"]}], "rules[0].personal_data"),
    ],
    ids=str,
)
def test_wrong_rules_are_refused_by_name(rules: Any, field: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_rules(rules)

    assert refused.value.field == field


def test_rules_of_equal_settings_are_compiled_once() -> None:
    """RE2 itself keeps 128 patterns, fewer than a step may have."""
    patterns = [f"case {number}" for number in range(200)]
    first, again, other = (
        parse_rules([{"regex": pattern} for pattern in each])
        for each in (patterns, patterns, patterns[1:])
    )

    assert first is again
    assert len(first.rules) == 200
    assert len(other.rules) == 199
