"""Results of tools: what the model is shown of one, and where the whole lies.

Called by what runs calls, and by the step `tools` for the built-in tool that reads a part of one. Images and audio are
named and not shown; resource links are not followed.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from eventing.errors import ObjectGone
from eventing.job.job import Job
from eventing.job.tools.call import CallState, ToolCall
from eventing.job.tools.limits import ToolLimits, most_equal
from eventing.store.objects.object_store import ObjectStore
from steps.tools.client.answer import Result, Target

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
        """What the model is shown; the whole is kept where that is a part of it. Raises `ObjectsUnavailable`."""
        text, notes = target.without_credentials(text_of(result)), notes_of(job, call, limits)
        whole = text.encode("utf-8", "replace")
        if len(whole) <= limits.shown_bytes:
            return Shown(
                output=_with_notes(text, notes),
                is_error=result.is_error,
                output_bytes=len(whole),
            )
        ref = f"{call.turn}.{call.place}"
        await self._objects.write(f"{job.id}/{ref}", whole)
        shown = head_and_tail(whole, limits.shown_bytes, ref, is_cut=bool(result.cut))
        return Shown(
            output=_with_notes(shown, notes),
            is_error=result.is_error,
            object_ref=f"{ref} sha256:{hashlib.sha256(whole).hexdigest()}",
            output_bytes=len(whole),
        )

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
    if result.cut:
        return result.cut.decode("utf-8", "replace")
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


def head_and_tail(whole: bytes, shown_bytes: int, ref: str, *, is_cut: bool) -> str:
    """The beginning and the end of a long result, and how the rest is read."""
    tail = shown_bytes // _TAIL_SHARE
    head = shown_bytes - tail
    size = f"{len(whole)} bytes" + (", the rest of the answer was not read" if is_cut else "")
    between = f"[bytes {head} to {len(whole) - tail} of {size}; they are read with torpor__read, ref {ref!r}]"
    first = whole[:head].decode("utf-8", "ignore")
    last = whole[len(whole) - tail :].decode("utf-8", "ignore")
    return f"{first}\n{between}\n{last}"


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
