"""JSON Lines: splits a byte stream into lines, and checks that an upload is JSON Lines. Pure.

Called by the batch runner and the file store. A line ends with CR, LF or both (JSON text contains neither
unescaped); a byte order mark at the start is ignored.
"""

import codecs
import re
from typing import Final, NamedTuple

import orjson

from eventing.errors import InvalidJob

_END: Final = re.compile(rb"\r\n|\r|\n")
_BOM: Final = codecs.BOM_UTF8
_MAGIC: Final = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"PK\x03\x04", "a zip archive (or an Excel workbook)"),
    (b"%PDF", "PDF"),
    (b"PAR1", "Parquet"),
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_LINES_LOOKED_AT: Final = 1_000
_SHOWN: Final = 40


class BatchLine(NamedTuple):
    """A line that is not blank; `end` is the offset after it."""

    number: int
    end: int
    raw: bytes


class LineSplitter:
    """Splits pieces of a file into lines, from `offset` on; blank lines are counted but not returned."""

    def __init__(self, offset: int = 0, number: int = 0) -> None:
        self._offset = offset
        self._number = number
        self._rest = b""

    @property
    def number(self) -> int:
        """Number of the last line, blank or not."""
        return self._number

    @property
    def rest(self) -> int:
        """Bytes of the line that has not ended yet."""
        return len(self._rest)

    def feed(self, piece: bytes, *, is_last: bool = False) -> list[BatchLine]:
        """The lines that end in `piece`."""
        data = self._rest + piece
        lines, start = [], 0
        for end in _END.finditer(data):
            if end.end() == len(data) and end[0] == b"\r" and not is_last:
                break  # an LF may follow
            self._number += 1
            if raw := _text(data[start : end.start()]):
                lines.append(BatchLine(self._number, self._offset + end.end(), raw))
            start = end.end()
        if is_last and start < len(data):
            self._number += 1
            if raw := _text(data[start:]):
                lines.append(BatchLine(self._number, self._offset + len(data), raw))
            start = len(data)
        self._offset += start
        self._rest = data[start:]
        return lines


def _text(line: bytes) -> bytes:
    """A line without what is around it; files that were joined have byte order marks in their middle."""
    return line.strip().removeprefix(_BOM).strip()


class JsonlCheck:
    """Checks an upload piece by piece. Every method raises `InvalidJob` naming what the file is instead."""

    def __init__(self, longest_line: int) -> None:
        self._longest_line = longest_line
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._splitter = LineSplitter()
        self._head = b""
        self._size = 0
        self._first: bytes | None = None
        self._is_jsonl = False

    def feed(self, piece: bytes) -> None:
        """Check the next piece."""
        if self._size < _SHOWN:
            self._head = (self._head + piece)[:_SHOWN]
            _check_head(self._head)
        self._decode(piece)
        self._size += len(piece)
        if not self._is_jsonl:
            self._look_at(self._splitter.feed(piece))

    def finish(self) -> None:
        """Check the end of the file. A file without lines passes."""
        self._decode(b"", is_last=True)
        if not self._is_jsonl:
            self._look_at(self._splitter.feed(b"", is_last=True))
        if not self._is_jsonl and self._first is not None:
            raise InvalidJob(_what_it_is(self._first), "file")

    def _decode(self, piece: bytes, *, is_last: bool = False) -> None:
        try:
            self._decoder.decode(piece, is_last)
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            message = f"the file is not UTF-8: byte 0x{byte:02x} near {self._size + error.start}"
            raise InvalidJob(message, "file") from error

    def _look_at(self, lines: list[BatchLine]) -> None:
        """One JSON object on a line of its own is enough: an invalid line fails alone, when it is run."""
        for line in lines:
            if self._first is None:
                self._first = line.raw
                if line.raw.startswith(b"["):
                    raise InvalidJob(_what_it_is(line.raw), "file")
            if _is_object(line.raw):
                self._is_jsonl = True
                return
            if line.number > _LINES_LOOKED_AT:
                raise InvalidJob(_what_it_is(self._first), "file")
        if self._splitter.rest > self._longest_line:
            first = self._first or self._head.removeprefix(_BOM).lstrip()
            reason = f"line {self._splitter.number + 1} is over {self._longest_line} bytes"
            raise InvalidJob(_what_it_is(first) if first.startswith(b"[") else reason, "file")


def _check_head(head: bytes) -> None:
    for magic, name in _MAGIC:
        if head.startswith(magic):
            raise InvalidJob(f"the file is {name}; send JSON Lines in UTF-8", "file")
    if b"\0" in head:
        raise InvalidJob("the file is UTF-16 or binary; send JSON Lines in UTF-8", "file")


def _is_object(raw: bytes) -> bool:
    try:
        return isinstance(orjson.loads(raw), dict)
    except orjson.JSONDecodeError:
        return False


def _what_it_is(first: bytes) -> str:
    """What a file that is not JSON Lines seems to be, by its first line."""
    shown = first[:_SHOWN].decode("utf-8", "replace")
    if first.startswith(b"["):
        return "the file is a JSON array; write each of its objects on a line of its own"
    if first.startswith(b"{"):
        return f"no line is a JSON object ({shown!r}); write each object on a line of its own"
    if first.startswith(b"<"):
        return f"the file is HTML or XML ({shown!r}); send JSON Lines"
    if any(mark in first for mark in (b",", b";", b"\t")):
        return f"the file is CSV ({shown!r}); send JSON Lines"
    return f"the file is not JSON Lines: it starts with {shown!r}"
