"""Bytes as lines, however they are cut; and what an upload that is no JSON Lines is called."""

import gzip
import zipfile
from io import BytesIO

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api.batch.jsonl import BatchLine, JsonlCheck, LineSplitter
from eventing.errors import InvalidJob

BOM = b"\xef\xbb\xbf"
GOOD = b'{"custom_id": "a"}'


def split(data: bytes, cuts: list[int], offset: int = 0, number: int = 0) -> list[BatchLine]:
    """The lines of `data` from `offset` on, fed in pieces that end at `cuts`."""
    splitter, found, start = LineSplitter(offset, number), [], offset
    for cut in sorted(c for c in cuts if offset < c < len(data)):
        found += splitter.feed(data[start:cut])
        start = cut
    return found + splitter.feed(data[start:], is_last=True)


pieces = st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r", b"\r\n", b" ", "\u2028".encode()]))


@given(pieces, st.lists(st.integers(0, 30)), st.booleans())
@example([b"a", b"\r", b"\n", b"b"], [2], False)
def test_where_a_file_is_cut_changes_no_line(
    parts: list[bytes], cuts: list[int], has_bom: bool
) -> None:
    data = (BOM if has_bom else b"") + b"".join(parts)

    lines = split(data, cuts)

    text = data.removeprefix(BOM).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    wanted = [(n, raw.strip()) for n, raw in enumerate(text.split(b"\n"), 1) if raw.strip()]
    assert [(line.number, line.raw) for line in lines] == wanted


@given(pieces, st.lists(st.integers(0, 30)), st.booleans(), st.integers(0, 20))
def test_reading_goes_on_behind_any_line(
    parts: list[bytes], cuts: list[int], has_bom: bool, place: int
) -> None:
    data = (BOM if has_bom else b"") + b"".join(parts)
    lines = split(data, [])
    done = lines[: place + 1]

    rest = split(data, cuts, done[-1].end, done[-1].number) if done else lines

    assert rest == lines[len(done) :]


def test_files_that_were_joined_have_marks_in_their_middle() -> None:
    lines = split(BOM + b"a\r\n" + BOM + b"b\n" + BOM + b" \nc" + BOM, [4, 5, 6, 7])

    assert [(line.number, line.raw) for line in lines] == [(1, b"a"), (2, b"b"), (4, b"c" + BOM)]


def judge(data: bytes, size: int = 7) -> None:
    check = JsonlCheck(1000)
    for start in range(0, len(data), size):
        check.feed(data[start : start + size])
    check.finish()


def zipped() -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("xl/workbook.xml", "<x/>")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        pytest.param(gzip.compress(GOOD), "gzip", id="gzip"),
        pytest.param(zipped(), "zip", id="Excel"),
        pytest.param(GOOD.decode().encode("utf-16"), "UTF-16", id="UTF-16"),
        pytest.param(GOOD.decode().encode("utf-16-be"), "UTF-16", id="UTF-16 without its mark"),
        pytest.param(GOOD.decode().encode("utf-32"), "UTF-32", id="UTF-32"),
        pytest.param(GOOD + b'\n{"a": "\xe9"}', "not UTF-8", id="Latin-1"),
        pytest.param(GOOD + b'\n{"a": "\xc3', "not UTF-8", id="cut in a letter"),
        pytest.param(b"[" + GOOD + b",\n" + GOOD + b"]", "JSON array", id="array"),
        pytest.param(BOM + b"[\n" + GOOD + b"\n]", "JSON array", id="array, one a line"),
        pytest.param(b'{\n "a": 1\n}\n', "JSON object", id="an object over lines"),
        pytest.param(b"custom_id,prompt\na,hi\n", "CSV", id="CSV"),
        pytest.param(b"custom_id;prompt\na;hi\n", "CSV", id="CSV of Excel"),
        pytest.param(b"<html><body/></html>", "HTML", id="HTML"),
        pytest.param(b"hello\nworld\n", "JSON Lines", id="text"),
        pytest.param(b"x" * 5000, "over 1000 bytes", id="one endless line"),
        pytest.param(b"[" + b"1," * 5000, "JSON array", id="one endless array"),
    ],
)
def test_an_upload_that_is_no_json_lines_is_called_what_it_is(data: bytes, name: str) -> None:
    with pytest.raises(InvalidJob) as refused:
        judge(data)

    assert name in refused.value.message
    assert refused.value.field == "file"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(GOOD, id="plain"),
        pytest.param(BOM + GOOD + b"\r\n" + GOOD + b"\r\n", id="Excel's mark and line ends"),
        pytest.param(GOOD + b"\r" + GOOD, id="CR only"),
        pytest.param(b"{broken\n" + GOOD, id="a bad line fails alone, later"),
        pytest.param(b"\n\n \n", id="no lines"),
        pytest.param(b"", id="empty"),
        pytest.param('{"a": "\u2028é"}'.encode(), id="a line separator in a text"),
    ],
)
def test_json_lines_are_taken(data: bytes) -> None:
    judge(data)
    judge(data, size=1)
