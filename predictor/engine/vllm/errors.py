"""Translates vLLM's errors: caller or engine, which field, and what to change.

Called by `predictor.engine.vllm.serving` and `predictor.engine.vllm.start`. Messages come from vLLM and pydantic
but never contain the values that were sent, which may be prompts.
"""

import re
from typing import Any, Final

from predictor.engine.engine import EngineRequest
from predictor.errors import (
    BadRequest,
    ContextExceeded,
    EngineDeadError,
    EngineRequestError,
    EngineStartError,
    Overloaded,
)

CHAT_URL: Final = "/v1/chat/completions"
CHAT_BATCH_URL: Final = "/v1/chat/completions/batch"
COMPLETION_URL: Final = "/v1/completions"
EMBEDDING_URL: Final = "/v1/embeddings"

_LOWER: Final = (
    "lower --kv-cache-memory-bytes, --max-model-len, --max-num-seqs "
    "or --gpu-memory-utilization, or take a smaller model"
)
_OUT_OF_MEMORY: Final = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|bad_alloc|"
    r"no available memory|memory .{0,120}is less than|KV cache is needed|exit code -9|'-9'|: -9\b",
    re.IGNORECASE,
)
INPUT_FIELD: Final = {
    **dict.fromkeys((CHAT_URL, CHAT_BATCH_URL), "messages"),
    COMPLETION_URL: "prompt",
    EMBEDDING_URL: "input",
}
_TOO_LONG: Final = ("input_text", "input_tokens")
"""vLLM's names for an input that is too long, whatever the endpoint."""
_SIGNS: Final = {
    "Grammar": ("structured_outputs", "response_format"),
    "grammar": ("structured_outputs", "response_format"),
    "conversation": ("messages",),
}
"""Words in messages without a field, and the field that each concerns."""
_BUILT_IN_TYPES: Final = {"str", "int", "float", "bool", "list", "dict", "none"}


def bad_fields(error: Any) -> BadRequest:
    """A pydantic `ValidationError` as the first invalid field, by its path in the body."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    path = [str(part) for part in first["loc"] if not _is_union_label(part)]
    field = ".".join(path)
    message = _one_line(first["msg"])
    return BadRequest(f"{field}: {message}" if field else message, field=field)


def translate(error: BaseException, request: EngineRequest) -> Exception:
    """vLLM's error for one request, as the exception that `Engine.run` documents."""
    from vllm.exceptions import GracefulHTTPError, VLLMClientError
    from vllm.v1.engine.exceptions import EngineDeadError as VllmEngineDead

    match error:
        case BadRequest() | EngineRequestError() | EngineDeadError() | Overloaded():
            return error
        case VllmEngineDead():
            return EngineDeadError("the engine's process is gone")
        case GracefulHTTPError():
            return Overloaded("the engine's queue is full")
        case VLLMClientError() | ValueError() | TypeError() | NotImplementedError():
            return _bad_request(_message(error), getattr(error, "parameter", None), request)
        case _:
            return EngineRequestError(f"the engine failed this request: {type(error).__name__}")


def from_response(error: Any, request: EngineRequest) -> Exception:
    """The exception for an error that vLLM's serving layer has turned into JSON."""
    if error["code"] >= 500:
        return EngineRequestError(f"the engine failed this request: {error['type']}")
    return _bad_request(_one_line(str(error["message"])), error.get("param"), request)


def start_failure(error: BaseException, detail: str = "") -> EngineStartError:
    """Why the engine did not start, in one line that says what to change."""
    text = _one_line(detail or f"{type(error).__name__}: {error}")
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(f"{text} {error}"):
        return EngineStartError(f"not enough memory for this model: {_LOWER} ({text})")
    return EngineStartError(f"the engine did not start: {text}")


def _bad_request(message: str, parameter: str | None, request: EngineRequest) -> BadRequest:
    if parameter in _TOO_LONG:
        return ContextExceeded(message, field=INPUT_FIELD[request.url])
    return BadRequest(message, field=parameter or _named_field(message, request))


def _named_field(message: str, request: EngineRequest) -> str:
    """The field that a message is about, when vLLM does not name it."""
    for field in sorted(request.body, key=len, reverse=True):
        spoken = field.replace("_", "[ _-]")
        if re.search(rf"\b{spoken}\b", message, re.IGNORECASE):
            return field
    for sign, fields in _SIGNS.items():
        for field in fields:
            if sign in message and field in request.body:
                return field
    return INPUT_FIELD.get(request.url, "") if "prompt" in message else ""


def _message(error: BaseException) -> str:
    """The message alone: `str()` of vLLM's errors adds the value that was sent."""
    return _one_line(str(error.args[0]) if error.args else type(error).__name__)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:500]


def _is_union_label(part: object) -> bool:
    """Pydantic puts the tried type into the path of a union; it is not a field of the body."""
    if not isinstance(part, str):
        return False
    return not part.isidentifier() or part[:1].isupper() or part in _BUILT_IN_TYPES
