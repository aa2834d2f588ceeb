"""Asks guard models about texts.

Called by the steps that judge requests and answers. Must not know what becomes of a text.
"""

from collections.abc import Sequence
from typing import Final

from steps.validation.guard_forms import GuardSettings, GuardVerdict, Role, guard_call, verdict_of
from steps.validation.model_client import ModelClient, digest_of

PIECE_CHARS: Final = 8000
"""A longer text is judged in pieces, so that a guard's context holds each with its prompt."""
OVERLAP_CHARS: Final = 400
MOST_PIECES: Final = 64


async def judge(
    client: ModelClient, settings: GuardSettings, role: Role, text: str, *, asker: str
) -> GuardVerdict:
    """The verdict on a text, piece by piece until one is not safe. `asker` names the job and its step. Raises
    `Unavailable` while the guard does not answer, and `BadRequest` without an endpoint.
    """
    pieces = pieces_of(text)
    if len(pieces) > MOST_PIECES:
        return GuardVerdict(is_clear=False)
    for piece in pieces:
        digest = digest_of(asker, role, settings.model, piece)
        path, body = guard_call(settings, role, piece, mark=f"====={digest[:16]}")
        verdict = verdict_of(settings, await client.ask(settings, path, body, digest))
        if verdict.categories or not verdict.is_clear:
            return verdict
    return GuardVerdict()


def pieces_of(text: str) -> Sequence[str]:
    """The text in pieces that overlap, so that what stands on a cut is whole in one of them."""
    if not text.strip():
        return ()
    step = PIECE_CHARS - OVERLAP_CHARS
    return [text[at : at + PIECE_CHARS] for at in range(0, max(len(text) - OVERLAP_CHARS, 1), step)]
