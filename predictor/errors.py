"""Errors of an engine, by what the caller can do about them.

    TorporError (eventing.errors)
    ├── BadRequest           this request can never be served; `field` names what to change
    │   └── ContextExceeded  the prompt alone is longer than the model's context
    ├── EngineRequestError   this request failed, others go on: counts as an attempt
    ├── Unavailable
    │   ├── Overloaded       the engine's queue is full
    │   └── EngineDeadError  the engine has died: the process must end
    └── EngineStartError     the engine could not start; the message says what to change
        └── ModelError       the model's files are missing or broken

Raised by the engines and by `predictor.model_files.weights`; read by `predictor.generation.generation` and the HTTP
routes. Messages never carry a prompt or an output.
"""

import traceback
from collections.abc import Mapping
from pathlib import Path

from eventing.errors import BadRequest, ContextExceeded, Overloaded, TorporError, Unavailable

__all__ = [
    "BadRequest",
    "ContextExceeded",
    "EngineDeadError",
    "EngineRequestError",
    "EngineStartError",
    "ModelError",
    "Overloaded",
    "where",
]


class EngineRequestError(TorporError):
    """This generation failed; the engine serves others. Counts as an attempt."""

    status = 500
    code = "engine_request_failed"
    is_retryable = True


class EngineDeadError(Unavailable):
    """The engine has died and will not come back in this process."""

    code = "engine_dead"


class EngineStartError(TorporError):
    """The engine could not be started. The message is one line that says what to change."""

    status = 503
    code = "engine_start_failed"


class ModelError(EngineStartError):
    """A model's files are missing, broken or could not be written."""

    code = "model_unavailable"


def where(error: BaseException) -> Mapping[str, str]:
    """The type and place of an unexpected error, for logs. Its message may contain the input (pydantic quotes it)."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
    return {"error": type(error).__name__, "places": " < ".join(reversed(places))}
