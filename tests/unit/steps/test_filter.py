"""Filters as a request has them, in JSON."""

from typing import Any

import orjson
import pytest

from eventing.errors import BadRequest
from steps.index.filter import matches, parse_filter

ATTRIBUTES = {"year": 2024.0, "lang": "en", "draft": True}  # as they are recorded


@pytest.mark.parametrize(
    ("filters", "is_match"),
    [
        (b'{"type": "gte", "key": "year", "value": 2024}', True),
        (b'{"type": "gt", "key": "year", "value": 2024}', False),
        (b'{"type": "lt", "key": "year", "value": 2024.5}', True),
        (b'{"type": "eq", "key": "year", "value": 2024}', True),
        (b'{"type": "in", "key": "year", "value": [2023, 2024]}', True),
        (b'{"type": "nin", "key": "year", "value": [2023, "en"]}', True),
        (b'{"type": "eq", "key": "lang", "value": "en"}', True),
        (b'{"type": "ne", "key": "draft", "value": true}', False),
        (
            b'{"type": "and", "filters": [{"type": "gt", "key": "year", "value": 1},'
            b' {"type": "eq", "key": "lang", "value": "de"}]}',
            False,
        ),
    ],
)
def test_a_filter_in_json_is_read_and_holds(filters: bytes, is_match: bool) -> None:
    wanted = parse_filter(orjson.loads(filters))

    assert wanted is not None
    assert matches(wanted, ATTRIBUTES) is is_match


@pytest.mark.parametrize(
    ("filters", "field"),
    [
        ({"type": "like", "key": "a", "value": 1}, "filters.type"),
        ({"type": "eq", "key": "", "value": 1}, "filters.key"),
        ({"type": "eq", "key": "a", "value": None}, "filters.value"),
        ({"type": "eq", "key": "a", "value": [1]}, "filters.value"),
        ({"type": "in", "key": "a", "value": []}, "filters.value"),
        ({"type": "gt", "key": "a", "value": "1"}, "filters.value"),
        ({"type": "or", "filters": []}, "filters.filters"),
    ],
)
def test_a_wrong_filter_is_refused_by_field(filters: Any, field: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_filter(filters)

    assert refused.value.field == field
