"""The text of a file: plain text, Markdown, HTML, PDF.

Called by `steps.retrieval.ingest`. What a file is follows from its first bytes, then from its name. A PDF is read in
a process of its own, with bounds on time and memory: a malformed one can loop, or fill the memory.
"""

import asyncio
import re
import sys
from html.parser import HTMLParser
from pathlib import PurePath
from typing import Final

from eventing.errors import TorporError
from steps.handler import not_installed
from steps.retrieval.pdf import NO_READER

_PDF_TIMEOUT_S: Final = 120.0
_MOST_TEXT_BYTES: Final = 32 * 1024 * 1024
_HTML_START: Final = re.compile(
    rb"\s*(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b", re.I | re.S
)
_ARCHIVE_STARTS: Final = (
    b"PK\x03\x04",
    b"\x1f\x8b",
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"GIF8",
    b"\xd0\xcf\x11\xe0",
)
_MARKED: Final = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_BLANK_LINES: Final = re.compile(r"\n[ \t\r\f\v]*(\n[ \t\r\f\v]*)+")


class FileUnreadable(TorporError):
    """The file has no text that can be read; `code` is OpenAI's: `unsupported_file` or `invalid_file`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code  # type: ignore[misc]  # of this one


async def text_of(data: bytes, filename: str) -> str:
    """The text of a file. Raises `FileUnreadable`, and `NotInstalled`."""
    if data.startswith(b"%PDF-"):
        text = await _pdf_text(data)
    elif data.startswith(_ARCHIVE_STARTS):
        raise FileUnreadable("unsupported_file", "only text, Markdown, HTML and PDF can be read")
    elif _HTML_START.match(data[:4096]) or PurePath(filename).suffix.lower() in (".html", ".htm"):
        text = html_text(_decoded(data))
    else:
        text = _decoded(data)
    if not text.strip():
        raise FileUnreadable("invalid_file", "the file holds no text")
    return text


def html_text(source: str) -> str:
    """The text that a person would see: no scripts, styles, comments or hidden elements."""
    reader = _Reader()
    reader.feed(source)
    reader.close()
    text = "".join(reader.parts)
    return _BLANK_LINES.sub("\n\n", text).strip()


def _decoded(data: bytes) -> str:
    encoding = next((name for mark, name in _MARKED if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise FileUnreadable("invalid_file", "the text is not UTF-8") from error
    if "\x00" in text:
        raise FileUnreadable("unsupported_file", "only text, Markdown, HTML and PDF can be read")
    return text


async def _pdf_text(data: bytes) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "steps.retrieval.pdf",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(_PDF_TIMEOUT_S):
            output, _ = await process.communicate(data)
    except TimeoutError as error:
        raise FileUnreadable("invalid_file", "the PDF takes too long to read") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == NO_READER:
        raise not_installed("pypdf")
    if process.returncode != 0 or len(output) > _MOST_TEXT_BYTES:
        raise FileUnreadable("invalid_file", "the PDF cannot be read")
    return output.decode("utf-8", "replace")


_SKIPPED: Final = frozenset({"script", "style", "noscript", "template", "svg", "object", "iframe"})
_VOID: Final = frozenset(
    {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track"}
    | {"wbr"}
)
_BLOCKS: Final = frozenset(
    {"p", "div", "section", "article", "header", "footer", "main", "aside", "nav", "ul", "ol"}
    | {"li", "table", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "blockquote", "br", "hr"}
    | {"dl", "dt", "dd", "figure", "figcaption", "title"}
)
_HIDDEN_STYLE: Final = re.compile(
    r"display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0(?![.\d]*[1-9])|opacity\s*:\s*0(?![.\d]*[1-9])",
    re.I,
)


class _Reader(HTMLParser):
    """Collects visible text. `_hidden` counts the open elements inside the outermost hidden one."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._open: list[str] = []
        self._hidden_at = -1

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _BLOCKS:
            self.parts.append("\n")
        if tag in _VOID:
            return
        self._open.append(tag)
        if self._hidden_at < 0 and (tag in _SKIPPED or _is_hidden(dict(attrs))):
            self._hidden_at = len(self._open)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open and self._open.pop() != tag:
                pass
            if len(self._open) < self._hidden_at:
                self._hidden_at = -1
        if tag in _BLOCKS:
            self.parts.append("\n")
        elif tag in ("td", "th"):
            self.parts.append("\t")

    def handle_data(self, data: str) -> None:
        if self._hidden_at < 0:
            is_code = "pre" in self._open
            self.parts.append(data if is_code else re.sub(r"\s+", " ", data))


def _is_hidden(attributes: dict[str, str | None]) -> bool:
    return (
        "hidden" in attributes
        or attributes.get("aria-hidden") == "true"
        or bool(_HIDDEN_STYLE.search(attributes.get("style") or ""))
    )
