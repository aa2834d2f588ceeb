"""Tells readers of a job how far a running call is, as its tool says it: the newest of each second, whatever comes.

Called by `steps.tools.caller`, beside the call.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

from eventing.errors import Unavailable
from eventing.job.tools.progress import progress_text
from eventing.job.tools.store import ProgressStatus
from steps.tools.client.answer import OnProgress

_EVERY_S: Final = 1.0
_READ_CHARS: Final = 4096
Note = Callable[[str], Awaitable[ProgressStatus]]


@asynccontextmanager
async def noted_progress(note: Note, secrets: Sequence[str] = ()) -> AsyncIterator[OnProgress]:
    """What the call says is handed to `note`, at most once a second, until this is left."""
    newest: list[tuple[float | None, float | None, str | None]] = []
    is_said = asyncio.Event()

    def say(progress: float | None, total: float | None, message: str | None) -> None:
        newest[:] = [(progress, total, message)]
        is_said.set()

    async def tell() -> None:
        while True:
            await is_said.wait()
            is_said.clear()
            with suppress(Unavailable):  # then the next one is told
                text = said_text(*newest[-1], secrets)
                if text and await note(text) in _OVER:
                    return
            await asyncio.sleep(_EVERY_S)

    task = asyncio.ensure_future(tell())
    try:
        yield say
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


_OVER: Final = (ProgressStatus.LATE, ProgressStatus.MISSING)


def said_text(
    progress: float | None, total: float | None, message: str | None, secrets: Sequence[str]
) -> str:
    """The progress as it is stored: without the credentials that the tool was sent, which some servers repeat."""
    said = (message or "")[:_READ_CHARS]
    for secret in secrets:
        said = said.replace(secret, "[credential]")
    return progress_text(progress, total, said)
