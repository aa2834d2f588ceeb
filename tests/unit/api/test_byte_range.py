"""The one range that a `Range` header asks for (RFC 9110, section 14)."""

import pytest

from api.http.byte_range import RangeNotSatisfiable, byte_range


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=0-99", (0, 100)),
        ("bytes=0-100", (0, 100)),
        ("bytes=40-", (40, 100)),
        ("bytes=-1", (99, 100)),
        ("bytes=-500", (0, 100)),
        ("bytes=99-99", (99, 100)),
    ],
)
def test_one_range_is_given(header: str, wanted: tuple[int, int]) -> None:
    assert byte_range(header, 100) == wanted


@pytest.mark.parametrize(
    "header",
    ["", "bytes", "bytes=", "bytes=-", "bytes=5-3", "bytes=0-1,4-5", "lines=0-3", "bytes=a-b"],
)
def test_what_is_no_single_range_of_bytes_is_ignored(header: str) -> None:
    assert byte_range(header, 100) is None


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0"])
def test_a_range_with_nothing_in_it_is_refused(header: str) -> None:
    with pytest.raises(RangeNotSatisfiable) as refused:
        byte_range(header, 100)
    assert refused.value.headers["content-range"] == "bytes */100"


def test_nothing_has_no_range() -> None:
    with pytest.raises(RangeNotSatisfiable):
        byte_range("bytes=0-", 0)
