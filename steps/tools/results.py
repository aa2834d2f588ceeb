"""Results of tools: what the model is shown of one, and where the whole lies.

Called by what runs calls, and by the step `tools` for the built-in tool that reads a part of one. Images and audio are
named and not shown; resource links are not followed.
"""

import asyncio
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import RawIOBase
from tempfile import NamedTemporaryFile
from typing import Any, Final

import orjson
import structlog

from eventing.errors import ObjectGone, ObjectsUnavailable
from eventing.job.job import Job
from eventing.job.tools.call import CallState, ToolCall
from eventing.job.tools.limits import ToolLimits, most_equal
from eventing.store.objects.object_store import ObjectStore
from steps.tools.client.answer import CREDENTIAL, Result, Target

_log = structlog.get_logger()
_TAIL_SHARE: Final = 4
_SHOWN_READ: Final = 32 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What becomes of a result in the record."""

    output: str
    is_error: bool
    object_ref: str = ""
    output_bytes: int = 0


class ToolResults:
    """Keeps large results. The object store belongs to the caller."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    async def shown(
        self, job: Job, call: ToolCall, result: Result, limits: ToolLimits, target: Target
    ) -> Shown:
        """What the model is shown; the whole is kept where that is a part of it, and where it can be: a call that has
        been carried out is not left in doubt for a part of its result.
        """
        notes, is_error = notes_of(job, call, limits), result.is_error
        parts = list(result.cut) or [text_of(result).encode("utf-8", "replace")]
        secrets = [secret.encode() for secret in target.secrets]
        if sum(map(len, parts)) <= limits.shown_bytes:
            whole = b"".join(_without(parts, secrets))
            text = _with_notes(whole.decode("utf-8", "replace"), notes)
            return Shown(output=text, is_error=is_error, output_bytes=len(whole))
        ref = f"{call.turn}.{call.place}"
        with NamedTemporaryFile() as file:
            spooled = await asyncio.to_thread(
                _spool, file.name, _without(parts, secrets), limits.shown_bytes
            )
            is_kept = spooled.is_whole and await self._keep(f"{job.id}/{ref}", file.name)
        text = spooled.text(ref if is_kept else "", is_cut=bool(result.cut))
        return Shown(
            output=_with_notes(text, notes),
            is_error=is_error,
            object_ref=f"{ref} sha256:{spooled.digest}" if is_kept else "",
            output_bytes=spooled.size,
        )

    async def _keep(self, name: str, path: str) -> bool:
        try:
            await self._objects.write_file(name, path)
        except ObjectsUnavailable as error:
            _log.error("result not kept", action="keep_result", object=name, reason=error.message)
            return False
        return True

    async def part(self, job: Job, arguments: str) -> tuple[str, bool]:
        """A part of an earlier result of this job, and whether that is an error. Raises `ObjectsUnavailable`."""
        asked = orjson.loads(arguments or "{}")
        ref, offset, length = asked.get("ref"), asked.get("offset", 0), asked.get("length")
        call = _call_named(job, ref)
        if call is None:
            return f"There is no stored result {ref!r:.40} in this job.", True
        wanted = length if _is_whole(length) and length > 0 else _SHOWN_READ
        start = offset if _is_whole(offset) and offset >= 0 else 0
        end = min(start + min(wanted, _SHOWN_READ), call.output_bytes)
        try:
            data = await self._objects.read(f"{job.id}/{call.turn}.{call.place}", start, end)
        except ObjectGone:
            return "The result is not stored any more.", True
        text = data.decode("utf-8", "replace")
        return f"[bytes {start} to {end} of {call.output_bytes}]\n{text}", False


def text_of(result: Result) -> str:
    """A result as one text."""
    texts = [_block(each) for each in result.content]
    if not any(texts) and result.structured is not None:
        texts = [orjson.dumps(result.structured).decode()]
    return "\n".join(each for each in texts if each)


def _block(block: Mapping[str, Any]) -> str:
    match block.get("type"):
        case "text":
            return str(block.get("text", ""))
        case "image" | "audio" as kind:
            size = len(str(block.get("data", ""))) * 3 // 4
            return f"[{kind} {block.get('mimeType', '')!s:.60}, {size} bytes, not shown]"
        case "resource":
            held = block.get("resource")
            inner = held if isinstance(held, Mapping) else {}
            if isinstance(inner.get("text"), str):
                return str(inner["text"])
            return f"[resource {inner.get('uri', '')!s:.200}, not shown]"
        case "resource_link":
            return f"[link to a resource, {block.get('uri', '')!s:.200}, not followed]"
        case kind:
            return f"[{kind!s:.40}, not shown]"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spooled:
    """A long result that stands in a file: its size, its digest, and its beginning and end."""

    size: int
    digest: str
    head: bytes
    tail: bytes
    is_whole: bool  #: False where the file took only a part of it

    def text(self, ref: str, *, is_cut: bool) -> str:
        """What the model is shown, and how the rest is read; without a `ref`, that it is lost."""
        size = f"{self.size} bytes" + (", the rest of the answer was not read" if is_cut else "")
        end = self.size - len(self.tail)
        rest = f"torpor__read gives them, ref {ref!r}" if ref else "they could not be kept"
        between = f"[bytes {len(self.head)} to {end} of {size}; {rest}]"
        first, last = (each.decode("utf-8", "ignore") for each in (self.head, self.tail))
        return f"{first}\n{between}\n{last}"


def _spool(path: str, parts: Iterator[bytes], shown_bytes: int) -> _Spooled:
    """Write the parts into a file, one at a time: a flood is in memory once."""
    most_tail = shown_bytes // _TAIL_SHARE
    most_head, size, digest = shown_bytes - most_tail, 0, hashlib.sha256()
    head, tail, is_whole = b"", b"", True
    with open(path, "wb", buffering=0) as file:
        for part in parts:
            is_whole = is_whole and _written(file, part)
            digest.update(part)
            size += len(part)
            head += part[: most_head - len(head)]
            tail = (tail + part)[-most_tail:]
    return _Spooled(size=size, digest=digest.hexdigest(), head=head, tail=tail, is_whole=is_whole)


def _written(file: RawIOBase, part: bytes) -> bool:
    """False where the disk is full."""
    try:
        return file.write(part) == len(part)
    except OSError:
        return False


def _without(parts: list[bytes], secrets: Sequence[bytes]) -> Iterator[bytes]:
    """The parts without secrets, also one that stands across two of them; each is let go as it is given."""
    longest = max(map(len, secrets), default=0)
    carried = b""
    parts.reverse()
    while parts:
        text = carried + parts.pop()
        for secret in secrets:
            text = text.replace(secret, CREDENTIAL.encode())
        keep = min(longest, len(text)) if parts else 0
        carried = text[len(text) - keep :]
        yield text[: len(text) - keep]


def notes_of(job: Job, call: ToolCall, limits: ToolLimits) -> list[str]:
    """What the model is told beside a result."""
    turn = next((each for each in job.turns if each.number == call.turn), None)
    notes = []
    before = [each for each in job.turns if each.number <= call.turn]
    if call.digest and most_equal(before, [call.digest]) - 1 >= limits.repeats_noted:
        notes.append("The same call was made before. It will not be run another time.")
    if turn is not None and turn.stopped_by and call.place == len(turn.calls) - 1:
        notes.append("No tool can be called any more. Answer with what you have.")
    return notes


def _with_notes(text: str, notes: list[str]) -> str:
    return "\n".join([text, *(f"[{note}]" for note in notes)]) if notes else text


def _call_named(job: Job, ref: Any) -> ToolCall | None:
    """The call of this job whose whole result is stored under the reference."""
    calls = (call for turn in job.turns for call in turn.calls)
    return next(
        (
            call
            for call in calls
            if call.object_ref
            and call.state is CallState.RETURNED
            and ref == f"{call.turn}.{call.place}"
        ),
        None,
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
