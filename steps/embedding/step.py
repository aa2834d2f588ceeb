"""The step `embed`: answers `/v1/embeddings` with the packaged model, without a predictor.

A plan that has it makes its model one that the steps serve alone (`pipelines.yaml`).
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from eventing.errors import BadRequest, ContextExceeded, InvalidJob
from eventing.job.job import JobError
from steps.embedding.packaged import DIM, MAX_PIECES, PackagedEmbedder
from steps.handler import Answer, Refuse, StepCall, StepOutcome

MOST_TEXTS: Final = 2048
"""OpenAI's limit of texts in one call."""


class EmbedStep:
    """The handler. The embedder belongs to the caller."""

    def __init__(self, embedder: PackagedEmbedder) -> None:
        self._embedder = embedder

    async def __call__(self, call: StepCall) -> StepOutcome:
        """Vectors of unit length as OpenAI gives them. Raises `NotInstalled`."""
        body = call.request.body
        try:
            texts = texts_of(call.request.url, body)
            counts = await self._embedder.count_pieces(texts)
            if "truncate_prompt_tokens" not in body:
                _check_length(texts, counts)
        except BadRequest as error:
            return Refuse(error=JobError(code=error.code, message=error.message, field=error.field))
        vectors = await self._embedder.embed(texts)
        is_packed = body.get("encoding_format") == "base64"
        read = sum(min(count, MAX_PIECES) for count in counts)
        usage = {"prompt_tokens": read, "total_tokens": read}
        result = {
            "object": "list",
            "data": [
                {"object": "embedding", "index": place, "embedding": _shown(vector, is_packed)}
                for place, vector in enumerate(vectors)
            ],
            "model": call.request.model,
            "usage": usage,
        }
        return Answer(result=result, usage=usage, detail={"texts": len(texts)})


def texts_of(url: str, body: Mapping[str, Any]) -> list[str]:
    """The texts of a call. Raises `InvalidJob` naming the field."""
    if url != "/v1/embeddings":
        raise InvalidJob("this model makes embeddings, and answers no prompts", "body.model")
    given = body.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, Sequence) or not 1 <= len(texts) <= MOST_TEXTS:
        raise InvalidJob(f"input must be a text, or 1 to {MOST_TEXTS} texts", "body.input")
    if not all(isinstance(text, str) for text in texts):
        raise InvalidJob("input must be texts: token ids are of another model", "body.input")
    if body.get("dimensions") not in (None, DIM):
        raise InvalidJob(f"this model has {DIM} dimensions and no fewer", "body.dimensions")
    if body.get("encoding_format") not in (None, "float", "base64"):
        raise InvalidJob("encoding_format must be float or base64", "body.encoding_format")
    return list(texts)


def _check_length(texts: Sequence[str], counts: Sequence[int]) -> None:
    """Raises `ContextExceeded` for the first text that the model would not read to its end."""
    for place, count in enumerate(counts):
        if count > MAX_PIECES:
            raise ContextExceeded(
                f"input {place} has {count} tokens, more than the {MAX_PIECES} that this model reads; "
                "cut it, or send truncate_prompt_tokens",
                "body.input",
            )


def _shown(vector: NDArray[np.float32], is_packed: bool) -> Any:
    if is_packed:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [round(float(number), 8) for number in vector]
