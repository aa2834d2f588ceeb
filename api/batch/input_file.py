"""Reads the lines of a batch's input file, a piece at a time. Called by the runner."""

from collections.abc import AsyncGenerator
from typing import Final

from api.batch.batch import LINE_LIMIT
from api.batch.jsonl import BatchLine, LineSplitter
from eventing.errors import InvalidJob
from eventing.store.file_store import FileCard, FileStore

_READ_BYTES: Final = 256 * 1024
_WITH_BLANK: Final = 10 * LINE_LIMIT


async def read_lines(
    files: FileStore, card: FileCard, offset: int, number: int, *, longest: int
) -> AsyncGenerator[BatchLine, None]:
    """The lines after `offset`, where line `number` ends.

    Raises `InvalidJob` for a line much longer than `longest` bytes, and for a file of blank lines.
    """
    splitter, position = LineSplitter(offset, number), offset
    while True:
        piece = await files.read(card, position, _READ_BYTES)
        position += len(piece)
        for line in splitter.feed(piece, is_last=not piece):
            yield line
        if splitter.rest > longest + _READ_BYTES:
            raise InvalidJob(f"line {splitter.number + 1} is over {longest} bytes")
        if splitter.number > _WITH_BLANK:
            raise InvalidJob(f"the input file has over {_WITH_BLANK} lines, most of them blank")
        if not piece:
            return
