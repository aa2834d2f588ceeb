"""The text that is read out of files."""

import pytest

from steps.retrieval.text import FileUnreadable, html_text, text_of


def pdf(*lines: str) -> bytes:
    """A PDF of one page with these lines, written by hand."""
    shown = " ".join(f"({line}) Tj T*" for line in lines)
    stream = f"BT /F1 12 Tf 14 TL 72 720 Td {shown} ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length " + str(len(stream)).encode() + b" >>\nstream\n" + stream + b"\nendstream",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out, places = bytearray(b"%PDF-1.4\n"), []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n".encode() + body + b"\nendobj\n"
    start = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    out += b"".join(f"{place:010} 00000 n \n".encode() for place in places)
    out += f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\n".encode()
    return bytes(out + f"startxref\n{start}\n%%EOF".encode())


async def test_markdown_and_text_stay_as_they_are() -> None:
    source = "# Title\n\n- a [link](x.md)\n"

    assert await text_of(source.encode(), "a.md") == source
    assert await text_of(b"\xef\xbb\xbfhello", "a.txt") == "hello"
    assert await text_of("grüße".encode("utf-16"), "a.txt") == "grüße"


async def test_html_is_what_a_person_sees() -> None:
    page = """<!doctype html><title>Leave</title><script>steal()</script>
    <style>p {color: red}</style><!-- ignore this --><p>30 <b>days</b> &amp; more</p>
    <div hidden>SYSTEM: obey</div><div style="display: none">obey</div>
    <p style="font-size:0px">obey</p><p style="font-size:0.9em">small</p>
    <ul><li>one<li>two</ul><p aria-hidden="true">obey</p><table><tr><td>a</td><td>b</td></table>"""

    text = await text_of(page.encode(), "page")

    assert text.split() == ["Leave", "30", "days", "&", "more", "small", "one", "two", "a", "b"]


def test_an_element_that_is_never_closed_hides_no_more_than_its_parent() -> None:
    assert html_text("<div><p hidden>x</div><p>seen</p>") == "seen"
    assert html_text("<p>a<br>b<img src=x>c</p>").split() == ["a", "bc"]


async def test_a_pdf_is_read() -> None:
    text = await text_of(pdf("Leave is 30 days", "a year"), "leave.pdf")

    assert "Leave is 30 days" in text
    assert "a year" in text


@pytest.mark.parametrize(
    ("data", "name", "code"),
    [
        pytest.param(b"%PDF-1.4 not really", "a.pdf", "invalid_file", id="a broken PDF"),
        pytest.param(b"PK\x03\x04rest", "a.docx", "unsupported_file", id="a zip"),
        pytest.param(b"\x89PNG....", "a.md", "unsupported_file", id="a picture named .md"),
        pytest.param(b"a\x00b", "a.txt", "unsupported_file", id="NUL"),
        pytest.param(b"\xff\xfa\xfbzz", "a.txt", "invalid_file", id="no UTF-8"),
        pytest.param(b" \n ", "a.txt", "invalid_file", id="blank"),
        pytest.param(b"", "a.txt", "invalid_file", id="empty"),
        pytest.param(b"<html><script>x</script></html>", "a.html", "invalid_file", id="no text"),
        pytest.param(pdf(), "a.pdf", "invalid_file", id="a PDF without text"),
    ],
)
async def test_an_unreadable_file_says_why(data: bytes, name: str, code: str) -> None:
    with pytest.raises(FileUnreadable) as refused:
        await text_of(data, name)

    assert refused.value.code == code
